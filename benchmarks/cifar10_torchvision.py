r"""Train torchvision's GoogLeNet on CIFAR-10 in the time that `configs/cifar10.py` trains for.

    PEERS/bin/python benchmarks/cifar10_torchvision.py --train CIFAR_train.npz \
        --test CIFAR_test.npz --minutes 30

Requires torch, torchvision and Pillow in a separate environment. The files contain pixels and
labels (`x`, `y`; docs/data.md shows how to create them) or JPEG bytes (`jpeg`, `offsets`,
`labels`). Prints one line per minute and, at the end, one line of JSON.

The peer is configured as its users would configure it, and as the recipe configures our network:
channels_last, SGD with Nesterov momentum, weight decay on kernels only, label smoothing 0.1,
auxiliary losses times 0.3, mirrored and shifted crops. Its learning rate (warm-up, then cosine)
depends on the elapsed time, not on the step, and reaches zero when the given minutes are over.
"""

import argparse
import io
import itertools
import json
import math
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

MEAN = torch.tensor([125.3, 123.0, 113.9]).view(1, 3, 1, 1)
STD = torch.tensor([63.0, 62.1, 66.7]).view(1, 3, 1, 1)
PAD = 4


def read(file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns all images (N, 3, 32, 32) uint8 and their labels (N,) int64."""
    with np.load(file) as arrays:
        if "x" in arrays:
            images, labels = arrays["x"], arrays["y"]
        else:
            data, offsets, labels = (arrays[name] for name in ("jpeg", "offsets", "labels"))
            images = np.stack(
                [
                    np.asarray(Image.open(io.BytesIO(data[a:b].tobytes())).convert("RGB"))
                    for a, b in itertools.pairwise(offsets)
                ]
            )
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(
        labels.astype(np.int64)
    )


def inputs(images: torch.Tensor, size: int) -> torch.Tensor:
    """Returns normalised float32 images, enlarged to `size`, in channels_last format."""
    x = (images.float() - MEAN) / STD
    if size != x.shape[-1]:
        x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    return x.contiguous(memory_format=torch.channels_last)


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Returns the images, each mirrored at random and shifted by at most `PAD` pixels."""
    n, side = len(images), images.shape[-1]
    padded = F.pad(images, [PAD] * 4)
    rows = torch.randint(0, 2 * PAD + 1, (n, 1)) + torch.arange(side)
    columns = torch.randint(0, 2 * PAD + 1, (n, 1)) + torch.arange(side)
    mirrored = torch.rand(n, 1) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(n)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


@torch.no_grad()
def accuracy(
    model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, size: int
) -> float:
    """Returns the fraction of the images whose largest logit is the label's."""
    model.eval()
    hits = sum(
        int((model(inputs(x, size)).argmax(1) == y).sum())
        for x, y in zip(images.split(250), labels.split(250), strict=True)
    )
    model.train()
    return hits / len(labels)


def main() -> None:
    """Train for the given minutes, then evaluate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="total wall time")
    parser.add_argument("--size", type=int, default=64, help="side of the enlarged images")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1, help="peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    now = time.perf_counter
    began, budget = now(), 60 * a.minutes
    train, train_labels = read(a.train)
    test, test_labels = read(a.test)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision warns that its initialisation is slow
        model = torchvision.models.googlenet(num_classes=10, aux_logits=True, init_weights=True)
    model = model.to(memory_format=torch.channels_last).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": a.weight_decay}, {"params": others}],
        lr=a.lr,
        momentum=0.9,
        nesterov=True,
    )
    evaluation, step, said = 0.0, 0, now()
    started = now()
    while True:
        for index in torch.randperm(len(train)).split(a.batch):
            done = (now() - started) / (budget - (started - began) - evaluation)
            if done >= 1 or len(index) < a.batch:
                break
            if step == 20:  # time a tenth of the evaluation, to stop within the budget
                paused = now()
                accuracy(model, test[:1000], test_labels[:1000], a.size)
                evaluation = 11 * (now() - paused)  # the final one, ten times as long, and this one
            rate = a.lr * min(done / 0.1, 0.5 * (1 + math.cos(math.pi * (done - 0.1) / 0.9)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            x, y = inputs(shifted(train[index]), a.size), train_labels[index]
            outputs = model(x)
            losses = [
                F.cross_entropy(head, y, label_smoothing=0.1)
                for head in (outputs.logits, outputs.aux_logits1, outputs.aux_logits2)
            ]
            loss = losses[0] + 0.3 * (losses[1] + losses[2])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            if now() - said > 60:
                said = now()
                print(
                    f"{(now() - began) / 60:.1f} min | step {step} | epoch "
                    f"{step * a.batch / len(train):.2f} | loss {loss.item():.3f}",
                    flush=True,
                )
        if done >= 1:
            break
    top1 = accuracy(model, test, test_labels, a.size)
    print(
        json.dumps(
            {
                "model": "torchvision googlenet",
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "threads": a.threads,
                "size": a.size,
                "batch": a.batch,
                "lr": a.lr,
                "minutes": round((now() - began) / 60, 2),
                "steps": step,
                "epochs": round(step * a.batch / len(train), 2),
                "images": len(test),
                "top1": top1,
            }
        )
    )


if __name__ == "__main__":
    main()
