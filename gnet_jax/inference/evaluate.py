"""Accuracy over a whole source: one model or an ensemble, one crop or many (paper, section 7).

Shapes: N images, R crops of an image, S side of a network's input, C channels, K classes.
"""

import collections
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from gnet_jax.config import Preprocessing, UserError
from gnet_jax.data import BadRecord, BadRecords, Source
from gnet_jax.data.decode import ImageError, decode
from gnet_jax.data.progress import progress_line
from gnet_jax.data.records import read_example
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

    label: int
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
    out, and named in the result.

    Args:
        crops: of each image; see `crop_plan`.
        batch_size: most crops in one call of a network.
        threads: that read, decode and crop; the result does not depend on it.
        progress: say on stderr what goes on, with a bar where that is a terminal.
        bad_limit: largest share of the images that may be damaged.

    Raises:
        EvaluationError: for models of different classes, or classes that are not the data's.
        DataError: for a label out of range, or more damaged images than `bad_limit` allows.
    """
    if not 0 <= bad_limit < 1:
        raise EvaluationError(f"bad_limit is {bad_limit}; it must be in [0, 1)")
    for name, value in (("batch_size", batch_size), ("threads", threads)):
        if value < 1:
            raise EvaluationError(f"{name} is {value}; it must be at least 1")
    _check_classes(models, source)
    wanted = {model.preprocessing for model in models}
    for p in wanted:
        crop_plan(p.resize_to, p.resize_to, crops, p)  # refuses what is wrong before compiling
    together = max(1, min(batch_size // crops, len(source)))  # images predicted in one go
    calls = -(-together * crops // batch_size)
    predictors = [Predictor(model, -(-together * crops // calls)) for model in models]
    damaged = BadRecords(source, bad_limit)

    def load(index: int) -> _Views | BadRecord:
        return _load(source, index, crops, wanted)

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
                ranks_N = _ranks(predictors, scored)
                images += len(scored)
                top1 += int((ranks_N < 1).sum())
                top5 += int((ranks_N < 5).sum())
            advance(len(chunk))
        rate = images / (time.perf_counter() - start)
    return Evaluation(images, top1, top5, crops, len(models), rate, tuple(damaged))


def _check_classes(models: Sequence[TrainedModel], source: Source) -> None:
    if not models:
        raise EvaluationError("there is no model to evaluate; name at least one")
    first = models[0].class_names
    for number, model in enumerate(models[1:], start=2):
        if model.class_names != first:
            raise EvaluationError(
                f"model {number} {_differ(model.class_names, first)} of model 1; "
                "an ensemble needs the same classes in the same order"
            )
    if len(source.class_names) != len(first):
        raise EvaluationError(
            f"the model has {len(first)} classes and the data {len(source.class_names)}; "
            "evaluate it on data of its own classes"
        )
    # Other names may be other words for the same classes; the same in another order are not.
    if set(source.class_names) == set(first) and source.class_names != first:
        raise EvaluationError(
            f"the data {_differ(source.class_names, first)} of the model: the same names in "
            "another order, so right answers would count as wrong; number the data's as the model's"
            " (those of a folder are numbered by their sorted names)"
        )


def _differ(names: Sequence[str], first: Sequence[str]) -> str:
    if len(names) != len(first):
        return f"has {len(names)} classes, not the {len(first)}"
    at = next(i for i, (a, b) in enumerate(zip(names, first, strict=True)) if a != b)
    return f"calls class {at} {names[at]!r}, not the {first[at]!r}"


def _load(
    source: Source, index: int, crops: Crops, wanted: set[Preprocessing]
) -> _Views | BadRecord:
    try:
        image, label = read_example(source, index)
        picture = decode(image)
        plans = {p: crop_plan(*picture.size, crops, p) for p in wanted}
    except ImageError as error:
        return BadRecord(index, source.describe(index), str(error))
    return _Views(label, {p: extract(picture, plan) for p, plan in plans.items()})


def _ranks(predictors: Sequence[Predictor], images: Sequence[_Views]) -> np.ndarray:
    """(N,) how many classes are likelier than the label; of equal ones the first is likelier."""
    label_N1 = np.array([[views.label] for views in images])
    sums_NK: Any = 0.0
    for predictor in predictors:
        crops_NRSSC = np.stack([views.crops[predictor.trained.preprocessing] for views in images])
        logits = predictor.logits(crops_NRSSC.reshape(-1, *crops_NRSSC.shape[2:]))
        sums_NK = sums_NK + softmax(logits.reshape(*crops_NRSSC.shape[:2], -1)).mean(axis=1)
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
