r"""Train a plain network on CIFAR-10, to see how much of an error is due to the images.

    PEERS/bin/python benchmarks/train_plain.py --train CIFAR_train.npz --val CIFAR_test.npz

Requires torch, torchvision and Pillow in a separate environment. docs/data.md shows how to create
the files; those of JPEG bytes work, too. Prints a line per epoch and, at the end, one line of JSON.

This is our own implementation of airbench94 (K. Jordan, arXiv 2404.00498). The network has seven
convolutions; the first one whitens patches of 2x2 pixels. It is trained for 9.9 epochs. On the
original images, the published accuracy is 94.01 %, the mean of many runs. There, the logits of six
views of each test image are averaged, which is `top1_six_views` here. `top1` uses one view, as our
own runs do, and `top1_mirrored` averages it with its mirror image.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from train_torchvision import read

WIDTHS = (64, 256, 256)
WHITENED = 24  # channels of the first convolution: 12 directions and their opposites
EPOCHS = 9.9
BATCH = 1024
MOMENTUM = 0.85
RATE, BIAS_RATE = 1.5, 96.0  # peak learning rates; the second is that of the offsets of batch norm
DECAY = 0.002  # of the weights per step, at any learning rate
WARM_UP, START, END = 0.23, 0.2, 0.07  # share of the steps, and rates relative to the peak
BIAS_EPOCHS = 3  # in which the bias of the first convolution is trained
SMOOTHING = 0.2
AVERAGE_STEPS, AVERAGE_DECAY = 5, 0.95**5
SHIFT = 2  # pixels


class Group(nn.Sequential):
    """Two convolutions; the first is followed by a max pool that halves the image."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            convolution(inputs, outputs),
            nn.MaxPool2d(2),
            norm(outputs),
            nn.GELU(),
            convolution(outputs, outputs),
            norm(outputs),
            nn.GELU(),
        )


def convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """Returns a 3x3 convolution whose first channels are, at first, copies of its inputs."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(layer.weight[:inputs])
    return layer


def norm(channels: int) -> nn.BatchNorm2d:
    """Returns a batch norm with a trained offset, but without a trained factor."""
    layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    layer.weight.requires_grad_(False)
    return layer


def build(images: torch.Tensor, classes: int) -> nn.Sequential:
    """Returns the network. Its first convolution whitens the patches of normalised `images`."""
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    variance, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    kernel = (directions / torch.sqrt(variance + 5e-4)).T.reshape(12, 3, 2, 2)
    first = nn.Conv2d(3, WHITENED, 2)
    with torch.no_grad():
        first.weight.copy_(torch.cat([kernel, -kernel]))
        first.bias.zero_()
    first.weight.requires_grad_(False)
    inputs = (WHITENED, *WIDTHS)
    groups = [Group(a, b) for a, b in zip(inputs, WIDTHS, strict=False)]
    head = nn.Linear(WIDTHS[-1], classes, bias=False)
    layers = [first, nn.GELU(), *groups, nn.MaxPool2d(3), nn.Flatten(), head]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def logits_of(network: nn.Sequential, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns float32 logits, computed in `dtype`."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return network(x).float() / 9


def cropped(padded: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Returns 32x32 crops of images (N, 3, 36, 36). Each has its own first row and column."""
    pixels = torch.arange(32)
    rows, columns = (first[:, None] + pixels for first in (rows, columns))
    chosen = torch.arange(len(padded))[:, None, None], rows[:, :, None], columns[:, None, :]
    return padded.permute(0, 2, 3, 1)[chosen].permute(0, 3, 1, 2)


def rate_at(share: float) -> float:
    """Returns the learning rate at a share of the steps, relative to its peak."""
    if share < WARM_UP:
        return START + (1 - START) * share / WARM_UP
    return 1 + (END - 1) * (share - WARM_UP) / (1 - WARM_UP)


@torch.no_grad()
def average(network: nn.Sequential, slow: list[torch.Tensor], decay: float) -> None:
    """Moves the running average towards the network, and sets the network to the average."""
    for value, mean in zip(network.state_dict().values(), slow, strict=True):
        if value.is_floating_point():
            value.copy_(mean.lerp_(value, 1 - decay))


@torch.no_grad()
def evaluate(
    network: nn.Sequential, images: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype
) -> dict[str, float]:
    """Returns the accuracies that the head of this file explains."""

    def mirrored(x: torch.Tensor) -> torch.Tensor:
        return (logits_of(network, x, dtype) + logits_of(network, x.flip(3), dtype)) / 2

    network.eval()
    hits = {"top1": 0, "top1_mirrored": 0, "top1_six_views": 0}
    for x, y in zip(images.split(1000), labels.split(1000), strict=True):
        padded = F.pad(x, [1] * 4, "reflect")
        centre = mirrored(x)
        corners = mirrored(padded[:, :, :32, :32]) + mirrored(padded[:, :, 2:, 2:])
        views = logits_of(network, x, dtype), centre, centre / 2 + corners / 4
        for name, logits in zip(hits, views, strict=True):
            hits[name] += int((logits.argmax(1) == y).sum())
    return {name: count / len(labels) for name, count in hits.items()}


def main() -> None:
    """Train, then evaluate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    began, dtype = time.perf_counter(), getattr(torch, a.dtype)
    (train, labels), (val, val_labels) = read(a.train), read(a.val)
    for place, images in ((a.train, train), (a.val, val)):
        height, width = images.shape[2:]
        if (height, width) != (32, 32):
            parser.error(f"{place} has images of {width}x{height} pixels, but they must be 32x32")
    if len(train) < BATCH:
        parser.error(f"{a.train} has {len(train)} images, but a batch has {BATCH}")
    sample = train.float()
    std, mean = (x.view(1, 3, 1, 1) for x in torch.std_mean(sample, dim=(0, 2, 3)))
    train, val = ((x - mean) / std for x in (sample, val.float()))

    network = build(train[:5000], int(labels.max()) + 1).train()
    first = network[0]
    offsets = [x.bias for x in network.modules() if isinstance(x, nn.BatchNorm2d)]
    known = {id(x) for x in offsets}
    others = [x for x in network.parameters() if x.requires_grad and id(x) not in known]
    groups = [
        {"params": offsets, "lr": BIAS_RATE, "weight_decay": DECAY / BIAS_RATE},
        {"params": others, "lr": RATE, "weight_decay": DECAY / RATE},
    ]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM, nesterov=True)
    peaks = [group["lr"] for group in optimizer.param_groups]
    slow = [x.detach().clone() for x in network.state_dict().values()]
    padded = F.pad(train, [SHIFT] * 4, "reflect")
    mirrored = torch.rand(len(train)) < 0.5  # in even epochs; in odd ones, all others are mirrored
    per_epoch = len(train) // BATCH
    steps = round(per_epoch * a.epochs)
    batches, hits = (), 0  # of an epoch
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            batches, hits = torch.randperm(len(train)).split(BATCH), 0
            first.bias.requires_grad_(epoch < BIAS_EPOCHS)
        index = batches[place]
        rows, columns = torch.randint(0, 2 * SHIFT + 1, (2, BATCH))
        x, y = cropped(padded[index], rows, columns), labels[index]
        flipped = mirrored[index] ^ bool(epoch % 2)
        x = torch.where(flipped[:, None, None, None], x.flip(3), x)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * rate_at(step / steps)
        logits = logits_of(network, x.contiguous(memory_format=torch.channels_last), dtype)
        loss = F.cross_entropy(logits, y, label_smoothing=SMOOTHING)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        last = step + 1 == steps
        if last or (step + 1) % AVERAGE_STEPS == 0:
            average(network, slow, 1 if last else AVERAGE_DECAY * ((step + 1) / steps) ** 3)
        hits += int((logits.argmax(1) == y).sum())
        if last or place + 1 == per_epoch:
            minutes, top1 = (time.perf_counter() - began) / 60, hits / BATCH / (place + 1)
            print(f"{minutes:.1f} min | epoch {epoch + 1} | training top-1 {top1:.2%}", flush=True)
    accuracies = evaluate(network, val, val_labels, dtype)
    minutes = round((time.perf_counter() - began) / 60, 2)
    facts = {"torch": torch.__version__, "threads": a.threads, "dtype": a.dtype, "seed": a.seed}
    print(json.dumps(facts | {"epochs": a.epochs, "minutes": minutes, "steps": steps} | accuracies))


if __name__ == "__main__":
    main()
