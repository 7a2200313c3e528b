r"""Train torchvision's GoogLeNet for as long as one of our recipes trains, on the same images.

    PEERS/bin/python benchmarks/train_torchvision.py --train CIFAR_train.npz --val CIFAR_test.npz \
        --size 64 --batch 128 --minutes 40
    PEERS/bin/python benchmarks/train_torchvision.py --train imagenette160/train \
        --val imagenette160/val --size 128 --batch 64 --minutes 30

Requires torch, torchvision and Pillow in a separate environment. A file contains pixels and labels
(`x`, `y`; docs/data.md shows how to create it) or JPEG bytes (`jpeg`, `offsets`, `labels`). A
folder contains a folder of photos of equal size for each class. Prints one line per minute and, at
the end, one line of JSON.

The peer is configured as its users would configure it, and as the recipe configures our network:
channels_last, SGD with Nesterov momentum, weight decay on kernels only, label smoothing 0.1,
auxiliary losses times 0.3, mirrored and shifted images (files) or random crops (folders). Its
learning rate (warm-up, then cosine) depends on the elapsed time, not on the step, and reaches zero
when the given minutes are over.
"""

import argparse
import io
import itertools
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

PAD = 4
CROP_AREA = (0.35, 1.0)  # as in configs/imagenette.py


def read(place: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the images (N, 3, H, W) uint8 of a file or folder, and their labels (N,) int64.

    Ends the program if there is no such file or folder.
    """
    if not place.exists():
        raise SystemExit(f"error: {place} not found")
    if place.is_dir():
        images, labels = read_folder(place)
    else:
        with np.load(place) as arrays:
            if "x" in arrays:
                images, labels = arrays["x"], arrays["y"]
            else:
                data, offsets, labels = (arrays[name] for name in ("jpeg", "offsets", "labels"))
                files = (io.BytesIO(data[a:b].tobytes()) for a, b in itertools.pairwise(offsets))
                images = np.stack([decode(file) for file in files])
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels.astype(np.int64))


def read_folder(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns all photos (N, H, W, 3) uint8 and the positions (N,) of their class folders."""
    classes = class_folders(folder)
    files = [sorted((folder / name).iterdir()) for name in classes]
    images = np.stack([decode(file) for file in itertools.chain.from_iterable(files)])
    return images, np.repeat(np.arange(len(classes)), [len(each) for each in files])


def class_folders(folder: Path) -> list[str]:
    """Returns the names of the class folders in a folder, in the order of the labels."""
    return sorted(each.name for each in folder.iterdir() if each.is_dir())


def decode(file: Path | io.BytesIO) -> np.ndarray:
    """Returns the RGB pixels (H, W, 3) uint8 of an image."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def resized(images: torch.Tensor, size: int) -> torch.Tensor:
    """Returns the images as float32 with sides of `size` pixels."""
    images = images.float()
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def shifted(images: torch.Tensor, size: int) -> torch.Tensor:
    """Returns the images, each mirrored at random and shifted by at most `PAD` pixels."""
    n, side = len(images), images.shape[-1]
    padded = F.pad(images, [PAD] * 4)
    rows = torch.randint(0, 2 * PAD + 1, (n, 1)) + torch.arange(side)
    columns = torch.randint(0, 2 * PAD + 1, (n, 1)) + torch.arange(side)
    mirrored = torch.rand(n, 1) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(n)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]
    return resized(moved.permute(0, 3, 1, 2), size)


def cropped(images: torch.Tensor, size: int) -> torch.Tensor:
    """Crops and mirrors each image at random, and returns the results as float32."""
    change = torchvision.transforms.Compose(
        [
            torchvision.transforms.RandomResizedCrop(size, CROP_AREA, antialias=True),
            torchvision.transforms.RandomHorizontalFlip(),
        ]
    )
    return torch.stack([change(image.float()) for image in images])


@torch.no_grad()
def accuracy(
    model: torch.nn.Module,
    inputs: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
) -> float:
    """Returns the fraction of the images whose largest logit is the label's."""
    model.eval()
    hits = sum(
        int((model(inputs(x)).argmax(1) == y).sum())
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
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="total wall time")
    parser.add_argument("--size", type=int, required=True, help="side of the network's images")
    parser.add_argument("--batch", type=int, required=True)
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
    val, val_labels = read(a.val)
    if a.train.is_dir() and class_folders(a.train) != class_folders(a.val):
        parser.error(f"{a.train} and {a.val} have different classes")
    if a.batch > len(train):
        parser.error(f"--batch is {a.batch}, but {a.train} has only {len(train)} images")
    augmented = cropped if a.train.is_dir() else shifted
    sample = train[:: math.ceil(len(train) / 1000)].float()
    std, mean = (x.view(1, 3, 1, 1) for x in torch.std_mean(sample, dim=(0, 2, 3)))

    def normalised(images: torch.Tensor) -> torch.Tensor:
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)

    def inputs(images: torch.Tensor) -> torch.Tensor:
        return normalised(resized(images, a.size))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision warns that its initialisation is slow
        model = torchvision.models.googlenet(
            num_classes=int(train_labels.max()) + 1, aux_logits=True, init_weights=True
        )
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
                tenth = len(val) // 10
                accuracy(model, inputs, val[:tenth], val_labels[:tenth])
                evaluation = 11 * (now() - paused)  # the final one, ten times as long, and this one
            rate = a.lr * min(done / 0.1, 0.5 * (1 + math.cos(math.pi * (done - 0.1) / 0.9)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            x, y = normalised(augmented(train[index], a.size)), train_labels[index]
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
    top1 = accuracy(model, inputs, val, val_labels)
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
                "images": len(val),
                "top1": top1,
            }
        )
    )


if __name__ == "__main__":
    main()
