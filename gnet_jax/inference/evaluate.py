"""Accuracy over a whole source: one model or an ensemble, one crop or many (paper, section 7).

Shapes: N images, R crops of an image, S side of a network's input, C channels, K classes.
"""

import collections
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from gnet_jax.config import Preprocessing, UserError
from gnet_jax.data import BadRecord, BadRecords, Source
from gnet_jax.data.bad_images import read_example
from gnet_jax.data.decode import ImageError, decode
from gnet_jax.data.progress import progress_line
from gnet_jax.data.sources.classes import (
    empty_classes,
    find,
    imagenet_start,
    integers,
    listed,
    nfc,
)
from gnet_jax.inference.crops import Crops, crop_plan, extract
from gnet_jax.inference.predict import Predictor, TrainedModel, say_compiling, softmax

T = TypeVar("T")


class EvaluationError(UserError):
    """Models or data that cannot be evaluated together."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How often the label was the likeliest class, and among the five likeliest."""

    images: int  # scored, each exactly once
    top1_count: int
    top5_count: int
    crops: int
    models: int
    images_per_sec: float  # without compilation
    damaged: tuple[BadRecord, ...] = ()  # left out
    pairing: str | None = None  # what was assumed where names do not tell which class is which

    @property
    def top1(self) -> float:
        """Share of 1; NaN where no image was scored."""
        return self.top1_count / self.images if self.images else float("nan")

    @property
    def top5(self) -> float:
        """Share of 1; NaN where no image was scored."""
        return self.top5_count / self.images if self.images else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """Every field and both shares, ready for JSON."""
        return dataclasses.asdict(self) | {"top1": self.top1, "top5": self.top5}


class _Views(NamedTuple):
    """One image made ready for all models."""

    label: int  # of the first model
    crops: Mapping[Preprocessing, np.ndarray]  # (R, S, S, 3) uint8


def evaluate(
    models: Sequence[TrainedModel],
    source: Source,
    crops: Crops = 1,
    *,
    batch_size: int = 64,
    threads: int = 4,
    progress: bool = True,
    bad_limit: float = 0.02,
) -> Evaluation:
    """Score every image of `source` once, by softmax probabilities averaged over crops and models.

    Each model sees the image through its own preprocessing. Images that cannot be decoded are left
    out, and named in the result. Classes are matched by name, those of the data and those of an
    ensemble's models; the data need not have all of them. Where the data number the model's
    classes instead of naming them, or the model has no names, they are paired by position, and the
    pairing is printed on stderr.

    Args:
        crops: of each image; see `crop_plan`.
        batch_size: most crops in one call of a network.
        threads: that read, decode and crop; the result does not depend on it.
        progress: say on stderr what goes on, with a bar where that is a terminal.
        bad_limit: largest share of the images that may be damaged.

    Raises:
        EvaluationError: for models of different classes, or images of a class that they lack.
        DataError: for a label out of range, or more damaged images than `bad_limit` allows.
    """
    if not 0 <= bad_limit < 1:
        raise EvaluationError(f"bad_limit is {bad_limit}; it must be in [0, 1)")
    for name, value in (("batch_size", batch_size), ("threads", threads)):
        if value < 1:
            raise EvaluationError(f"{name} is {value}; it must be at least 1")
    columns = _columns(models)
    labels, pairing = pair_classes(source.class_names, models[0].class_names, empty_classes(source))
    if pairing is not None:
        print(pairing, file=sys.stderr, flush=True)
    wanted = {model.preprocessing for model in models}
    for p in wanted:
        crop_plan(p.resize_to, p.resize_to, crops, p)  # refuses what is wrong before compiling
    together = max(1, min(batch_size // crops, len(source)))  # images predicted in one go
    calls = -(-together * crops // batch_size)
    predictors = [Predictor(model, -(-together * crops // calls)) for model in models]
    damaged = BadRecords(source, bad_limit)

    def load(index: int) -> _Views | BadRecord:
        return _load(source, index, crops, wanted, labels)

    images = top1 = top5 = 0
    if progress and len(source):
        say_compiling()
    for predictor in predictors:
        predictor.warm_up()
    with progress_line("evaluating", "images", len(source), wanted=progress) as advance:
        start = time.perf_counter()
        loaded = _prefetched(load, len(source), threads, together + 2 * threads)
        while chunk := list(itertools.islice(loaded, together)):
            damaged.add(each for each in chunk if isinstance(each, BadRecord))
            scored = [each for each in chunk if isinstance(each, _Views)]
            if scored:
                ranks_N = _ranks(predictors, columns, scored)
                images += len(scored)
                top1 += int((ranks_N < 1).sum())
                top5 += int((ranks_N < 5).sum())
            advance(len(chunk))
        rate = images / (time.perf_counter() - start)
    return Evaluation(images, top1, top5, crops, len(models), rate, tuple(damaged), pairing)


def _columns(models: Sequence[TrainedModel]) -> list[list[int]]:
    """The outputs of each model in the order of the first one's classes."""
    if not models:
        raise EvaluationError("there is no model to evaluate; name at least one")
    first, columns = models[0].class_names, []
    for number, model in enumerate(models, start=1):
        found = find(first, model.class_names)
        lacks = _without(first, found)
        more = _without(model.class_names, find(model.class_names, first))
        if lacks or more:
            one, other, odd = (number, 1, lacks) if lacks else (1, number, more)
            raise EvaluationError(
                f"model {one} does not have, or has more than once, {listed(odd)} of model "
                f"{other}; an ensemble needs models of the same classes"
            )
        columns.append([column for column in found if column is not None])
    return columns


def pair_classes(
    names: Sequence[str], model: Sequence[str], empty: Container[str] = ()
) -> tuple[list[int], str | None]:
    """Returns the model's class for each label of the data, and what was assumed to tell it.

    Classes are matched by name, and then nothing is assumed. Classes that the model lacks and the
    data have no image of get -1.

    Args:
        names: of the data's classes.
        model: the names of the model's classes.
        empty: those of the data's classes that have no image.

    Raises:
        EvaluationError: naming the classes of the data that the model lacks.
    """
    places = find(names, model)
    unknown = _without(names, places)
    odd = [name for name in unknown if name not in empty]
    if odd and len(unknown) == len(names):
        by_position = _by_position(names, model)
        if by_position is not None:
            return by_position, _in_words(names, by_position, model)
    if odd:
        twice = [name for name in dict.fromkeys(odd) if nfc(name) in map(nfc, model)]
        raise EvaluationError(
            f"the model or the data have {listed(twice)} more than once, so names do not tell "
            "which is which; rename them"
            if twice
            else f"the data have {listed(odd)}, which the model lacks (it has {listed(model, 3)}); "
            "evaluate it on data of its own classes, or rename them"
        )
    return [-1 if place is None else place for place in places], None


def _without(names: Sequence[str], places: Sequence[int | None]) -> list[str]:
    return [name for name, place in zip(names, places, strict=True) if place is None]


def _by_position(names: Sequence[str], model: Sequence[str]) -> list[int] | None:
    """The model's classes by their place, if the data number them or the model has no names.

    Numbers without a 0 might begin at 1, and then ImageNet's are often in another order.
    """
    if [*model] == [f"class {place}" for place in range(len(model))] and len(names) == len(model):
        return [*range(len(names))]
    numbers, start = integers(names), imagenet_start(model) or 0
    if numbers is None or integers(model) is not None:
        return None
    if min(numbers) != 0 or max(numbers) >= len(model) - start:
        return None
    return [start + number for number in numbers]


def _in_words(names: Sequence[str], places: Sequence[int], model: Sequence[str]) -> str:
    pairs = [f"{name!r} is {model[place]!r}" for name, place in zip(names, places, strict=True)]
    if len(pairs) > 4:
        pairs[2:-1] = ["..."]
    return f"classes paired by position, because the names differ: {', '.join(pairs)}"


def _load(
    source: Source,
    index: int,
    crops: Crops,
    wanted: set[Preprocessing],
    labels: Sequence[int],
) -> _Views | BadRecord:
    try:
        image, label = read_example(source, index)
        picture = decode(image)
        plans = {p: crop_plan(*picture.size, crops, p) for p in wanted}
    except ImageError as error:
        return BadRecord(index, source.describe(index), str(error))
    return _Views(labels[label], {p: extract(picture, plan) for p, plan in plans.items()})


def _ranks(
    predictors: Sequence[Predictor], columns: Sequence[list[int]], images: Sequence[_Views]
) -> np.ndarray:
    """(N,) how many classes are likelier than the label; of equal ones the first is likelier."""
    label_N1 = np.array([[views.label] for views in images])
    sums_NK: Any = 0.0
    for predictor, own in zip(predictors, columns, strict=True):
        crops_NRSSC = np.stack([views.crops[predictor.trained.preprocessing] for views in images])
        logits = predictor.logits(crops_NRSSC.reshape(-1, *crops_NRSSC.shape[2:]))
        means_NK = softmax(logits.reshape(*crops_NRSSC.shape[:2], -1)).mean(axis=1)
        sums_NK = sums_NK + means_NK[:, own]
    if not np.isfinite(sums_NK).all():  # every comparison below would call that right
        raise EvaluationError("the model's outputs are not finite; its weights are damaged")
    of_label_N1 = np.take_along_axis(sums_NK, label_N1, axis=1)
    earlier_NK = np.arange(sums_NK.shape[1]) < label_N1
    return ((sums_NK > of_label_N1) | ((sums_NK == of_label_N1) & earlier_NK)).sum(axis=1)


def _prefetched(load: Callable[[int], T], count: int, threads: int, ahead: int) -> Iterator[T]:
    """`load(0)`, `load(1)`, ... in order, at most `ahead` of them in memory at once."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = collections.deque(pool.submit(load, i) for i in range(min(ahead, count)))
        try:
            for index in range(count):
                result = waiting.popleft().result()
                if index + ahead < count:
                    waiting.append(pool.submit(load, index + ahead))
                yield result
        finally:
            for future in waiting:
                future.cancel()
