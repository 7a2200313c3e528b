"""Evaluates one model or an ensemble, with one crop or several per image (paper, section 7).

Shapes: N images, R crops of an image, S side of a network's input, C channels, K classes.
"""

import dataclasses
import functools
import itertools
import json
import math
import sys
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from PIL import Image
from rich.table import Table

from gnet_jax.config import Preprocessing, UserError
from gnet_jax.config.paths import typed_path
from gnet_jax.data.batches import BadRecord, BadRecords, prefetched, read_example
from gnet_jax.data.decode import ImageError, decode, evaluation_size, shorter_side_size
from gnet_jax.data.progress import progress_line
from gnet_jax.data.sources import Source, classes
from gnet_jax.data.sources.classes import find, listed
from gnet_jax.inference.predict import Predictor, softmax
from gnet_jax.model_folder import TrainedModel
from gnet_jax.model_folder.card import add_results, read_card
from gnet_jax.model_folder.folder import CARD_FILE, is_model_folder
from gnet_jax.training.hosts.start import gather, run_on_all_hosts
from gnet_jax.training.workdir import replacing

Crops = Literal[1, 2, 10, 144]
SCALES = (256, 288, 320, 352)  # lengths of the shorter side, for a network with 224 x 224 inputs
Box = tuple[int, int, int, int]  # left, top, right, bottom
# Top-5 error in per cent on ImageNet's validation images, by (models, crops) (paper, Table 3).
PAPER_TOP5_ERROR = {(1, 1): 10.07, (1, 10): 9.15, (1, 144): 7.89}
PAPER_TOP5_ERROR |= {(7, 1): 8.09, (7, 10): 7.62, (7, 144): 6.67}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How many images have their label as the most probable class, or among the top five."""

    images: int  # number of scored images; each is scored exactly once
    top1_count: int  # top1 is this count / images, or NaN without images
    top5_count: int
    crops: int
    models: int
    classes: int  # of the first model; with at most five, top-5 is always 100 %
    images_per_sec: float  # excluding compilation
    damaged: tuple[BadRecord, ...] = ()  # corrupt images, which are not scored
    pairing: str | None = None  # how classes were paired, if not by name

    @property
    def top1(self) -> float:
        return self.top1_count / self.images if self.images else math.nan

    @property
    def top5(self) -> float | None:
        if self.classes <= 5:
            return None
        return self.top5_count / self.images if self.images else math.nan

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"top1": self.top1, "top5": self.top5}


class _Views(NamedTuple):
    label: int  # index of the class in the first model
    crops: Mapping[Preprocessing, np.ndarray]  # (R, S, S, 3) uint8


def evaluate(
    models: Sequence[TrainedModel],
    source: Source,
    crops: Crops = 1,
    *,
    batch_size: int = 64,
    threads: int = 4,
    bad_limit: float = 0.02,
) -> Evaluation:
    """Score every image of `source` once, with probabilities averaged over crops and models.

    If several hosts call this, each scores a part of the batches, and all return the sums: the same
    counts as on one host, because no batch changes. The errors of one host are raised on all.
    `crop_plan` lists the crops. Each model uses its own preprocessing, and its classes may be in
    another order. A batch has at most `batch_size` crops. Corrupt images are skipped and listed in
    the result. Raises UserError if the models have different classes, or if the data has a class
    that they lack (`pair_classes`). Raises DataError if a label is out of range, or if the fraction
    of corrupt images is larger than `bad_limit`.
    """
    columns = _columns(models)
    names, empty = models[0].class_names, classes.empty_classes(source)
    labels, pairing = pair_classes(source.class_names, names, empty)
    if pairing is not None and jax.process_index() == 0:
        print(pairing, file=sys.stderr, flush=True)
    wanted = {model.preprocessing for model in models}
    chunk_size = max(1, min(batch_size // crops, len(source)))  # number of images
    calls = -(-chunk_size * crops // batch_size)
    predictors = [Predictor(model, -(-chunk_size * crops // calls)) for model in models]
    host, hosts = jax.process_index(), jax.process_count()
    chunks = -(-len(source) // chunk_size)
    first, end = (min(n * chunks // hosts * chunk_size, len(source)) for n in (host, host + 1))
    damaged = BadRecords(source, bad_limit)

    def load(index: int) -> _Views | BadRecord:
        try:
            image, label = read_example(source, index)
            picture = decode(image)
            plans = {p: crop_plan(*picture.size, crops, p) for p in wanted}
        except ImageError as error:
            return BadRecord(index, source.describe(index), str(error))
        return _Views(labels[label], {p: extract(picture, plan) for p, plan in plans.items()})

    def score() -> tuple[int, int, int]:
        """Returns this host's numbers of images, of correct ones, and of those in the top five."""
        images = top1 = top5 = 0
        loaded = prefetched(load, range(first, end), threads)
        while chunk := list(itertools.islice(loaded, chunk_size)):
            damaged.add(each for each in chunk if isinstance(each, BadRecord))
            scored = [each for each in chunk if isinstance(each, _Views)]
            if scored:
                ranks_N = _ranks(predictors, columns, scored)
                images += len(scored)
                top1 += int((ranks_N < 1).sum())
                top5 += int((ranks_N < 5).sum())
            advance(len(chunk))
        return images, top1, top5

    for predictor in predictors:
        predictor.warm_up()
    with progress_line("evaluating", "images", end - first, wanted=host == 0) as advance:
        began = time.perf_counter()
        own = run_on_all_hosts(score)
        texts = gather(json.dumps([own, [dataclasses.astuple(each) for each in damaged]]))
        sums, found = zip(*map(json.loads, texts), strict=True)
        images, top1, top5 = (sum(each) for each in zip(*sums, strict=True))
        rate = images / (time.perf_counter() - began)
    damaged.add(BadRecord(*each) for each in itertools.chain(*found))
    options = rate, tuple(sorted(damaged, key=lambda each: each.index)), pairing
    outputs = models[0].model.arch.num_classes
    return Evaluation(images, top1, top5, crops, len(models), outputs, *options)


def _columns(models: Sequence[TrainedModel]) -> list[list[int]]:
    """Returns for each model its index of each class, in the first model's order of classes."""
    if not models:
        raise UserError("there is no model to evaluate; give at least one")
    first, columns = models[0].class_names, []
    for number, model in enumerate(models, start=1):
        found, back = find(first, model.class_names), find(model.class_names, first)
        odd = _without(first, found) or _without(model.class_names, back)
        if odd:
            raise UserError(f"models 1 and {number} must each have exactly one class {listed(odd)}")
        columns.append([column for column in found if column is not None])
    return columns


def pair_classes(
    names: Sequence[str], model: Sequence[str], empty: Container[str] = ()
) -> tuple[list[int], str | None]:
    """Returns the index of the model's class for each class of the data, and a note or None.

    Classes are paired by name. If no name matches, they are paired by position in two cases: if the
    data's names are numbers from 0 up to at most the model's last class, or if the model has no
    class names and as many classes as the data. The note then says so. If the model lacks a class,
    the index is -1 if the class is in `empty` (has no images); otherwise, UserError is raised.
    """
    found = find(names, model)
    unknown = _without(names, found)
    odd = [name for name in unknown if name not in empty]
    by_position = _by_position(names, model) if odd and len(unknown) == len(names) else None
    if by_position is not None:
        pairs = [f"{a!r} is {model[b]!r}" for a, b in zip(names, by_position, strict=True)]
        if len(pairs) > 4:
            pairs[2:-1] = ["..."]
        how = "classes paired by position, because the names differ: " + ", ".join(pairs)
        return by_position, how
    if odd:
        raise UserError(
            f"the data has {listed(odd)}, which the model (with {listed(model, 3)}) lacks, or "
            "which one of the two has twice; use data with the model's classes, rename them, or "
            "fine-tune the model on them (train.py finetune_folder --init MODEL)"
        )
    return [-1 if index is None else index for index in found], None


def _without(names: Sequence[str], found: Sequence[int | None]) -> list[str]:
    return [name for name, index in zip(names, found, strict=True) if index is None]


def _by_position(names: Sequence[str], model: Sequence[str]) -> list[int] | None:
    if [*model] == [f"class {i}" for i in range(len(model))] and len(names) == len(model):
        return [*range(len(names))]
    numbers, start = classes.integers(names), classes.imagenet_start(model) or 0
    if numbers is None or classes.integers(model) is not None:
        return None
    # If 0 is missing, the numbers may start at 1, often with another order of ImageNet's classes.
    if min(numbers) != 0 or max(numbers) >= len(model) - start:
        return None
    return [start + number for number in numbers]


def _ranks(
    predictors: Sequence[Predictor], columns: Sequence[list[int]], images: Sequence[_Views]
) -> np.ndarray:
    """Returns how many classes rank before each image's label, (N,). Ties rank by index."""
    label_N1 = np.array([[views.label] for views in images])
    sums_NK: Any = 0.0
    for predictor, own in zip(predictors, columns, strict=True):
        crops_NRSSC = np.stack([views.crops[predictor.trained.preprocessing] for views in images])
        logits = predictor.logits(crops_NRSSC.reshape(-1, *crops_NRSSC.shape[2:]))
        means_NK = softmax(logits.reshape(*crops_NRSSC.shape[:2], -1)).mean(axis=1)
        sums_NK = sums_NK + means_NK[:, own]
    if not np.isfinite(sums_NK).all():  # NaN would be counted as correct below
        raise UserError("the model's outputs are not finite; its weights are corrupt")
    label_sum_N1 = np.take_along_axis(sums_NK, label_N1, axis=1)
    earlier_NK = np.arange(sums_NK.shape[1]) < label_N1
    return ((sums_NK > label_sum_N1) | ((sums_NK == label_sum_N1) & earlier_NK)).sum(axis=1)


def paper_table(evaluations: Sequence[Evaluation]) -> Table:
    """Returns a table of errors next to the paper's for the same numbers of models and crops."""
    paper = "paper: GoogLeNet on ImageNet's validation images (arXiv 1409.4842, Table 3)"
    table = Table(title="Error by models and crops", caption=paper)
    table.title_justify = table.caption_justify = "left"
    for name in ("models", "crops", "images", "top-1 error", "top-5 error", "paper's top-5 error"):
        table.add_column(name, justify="right", no_wrap=True)
    for e in evaluations:
        theirs = PAPER_TOP5_ERROR.get((e.models, e.crops))
        cells = (f"{e.models}", f"{e.crops}", f"{e.images:,}", f"{1 - e.top1:.2%}")
        ours = "" if e.top5 is None else f"{1 - e.top5:.2%}"
        table.add_row(*cells, ours, "" if theirs is None else f"{theirs:.2f}%")
    return table


def write_results(model: Path, data: str, split: str, evaluations: Sequence[Evaluation]) -> None:
    """Write accuracies of one model into its model card, if it is a model folder with a card."""
    card = typed_path(model) / CARD_FILE
    accuracies: dict[str, float] = {}
    for each in evaluations:
        if each.models == 1 and each.images:
            crops = "" if each.crops == 1 else f", {each.crops} crops"
            accuracies[f"top-1{crops}"] = each.top1
            if each.top5 is not None:
                accuracies[f"top-5{crops}"] = each.top5
    if not accuracies or not card.is_file() or not is_model_folder(card.parent):
        return
    try:
        text = add_results(read_card(card), card.parent.resolve().name, data, split, accuracies)
        with replacing(card) as partial:
            partial.write_text(text, "utf-8")
    except OSError as error:
        raise UserError(f"cannot write the results into {card}: {error.strerror}") from error
    print(f"wrote the results into {card}", file=sys.stderr)


# Crops (paper, section 7).


class Crop(NamedTuple):
    """One crop of a resized photo. It can be resized again and mirrored."""

    scale: tuple[int, int]  # width and height that the whole photo is resized to
    box: Box  # in the resized photo
    resize: int | None  # side to which the box is resized; None if the box has this size already
    mirror: bool


def crop_plan(width: int, height: int, crops: Crops, preprocessing: Preprocessing) -> list[Crop]:
    """Returns the crops of a photo of `width` x `height` pixels.

    1: the crop that `central_crop` makes. 2: the same and its mirror image. 10: the centre and the
    four corners of the resized photo. 144: as in the paper. The shorter side is resized to 4
    lengths; `preprocessing.resize` is not used. From each resized photo, 3 squares along its longer
    side are taken; they are equal if the photo is square. The crops of a square are its centre, its
    corners, and the whole square, resized. With 10 and 144 crops, each crop is followed by its
    mirror image. Raises ImageError if the resized photo is too large.
    """
    size = preprocessing.image_size
    if crops == 144:
        return [
            Crop(scale, box, resize, mirror)
            for shorter in SCALES
            for scale in [shorter_side_size((width, height), round(shorter * size / 224))]
            for square in _squares(*scale)
            for box, resize in [*((b, None) for b in _five(square, size)), (square, size)]
            for mirror in (False, True)
        ]
    scale = evaluation_size((width, height), preprocessing)
    boxes = _five((0, 0, *scale), size)
    return [Crop(scale, box, None, mirror) for box in boxes for mirror in (False, True)][:crops]


def _five(area: Box, size: int) -> list[Box]:
    left, top, right, bottom = area
    centre = ((left + right - size) // 2, (top + bottom - size) // 2)
    corners = [(x, y) for y in (top, bottom - size) for x in (left, right - size)]
    return [(x, y, x + size, y + size) for x, y in (centre, *corners)]


def _squares(width: int, height: int) -> Iterator[Box]:
    """Yields three squares along a photo's longer side: at its start, its centre and its end."""
    side, spare = min(width, height), abs(width - height)
    for start in (0, spare // 2, spare):
        x, y = (start, 0) if width > height else (0, start)
        yield x, y, x + side, y + side


def extract(picture: Image.Image, plan: Sequence[Crop]) -> np.ndarray:
    """Returns the crops (R, S, S, 3) in uint8. `plan` must be the plan for the picture's size."""

    @functools.cache
    def scaled(scale: tuple[int, int]) -> Image.Image:
        return picture.resize(scale, Image.Resampling.BILINEAR)

    @functools.cache
    def square(scale: tuple[int, int], box: Box, resize: int | None) -> np.ndarray:
        part = scaled(scale).crop(box)
        if resize is not None:
            part = part.resize((resize, resize), Image.Resampling.BILINEAR)
        return np.asarray(part)

    return np.stack([square(*crop[:3])[:, :: -1 if crop.mirror else 1] for crop in plan])
