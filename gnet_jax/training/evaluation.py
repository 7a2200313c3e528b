"""Evaluate a run on its validation images, and say when an evaluation is due."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from gnet_jax.data.batches import eval_batches
from gnet_jax.training.hosts.start import TrainingError, run_on_all_hosts
from gnet_jax.training.hosts.stop import EvalBatches, Vote
from gnet_jax.training.observe.faults import DIVERGED, BadImages
from gnet_jax.training.program import Program, Run
from gnet_jax.training.sharding import put_batches
from gnet_jax.training.step import TrainState


def evaluate(
    run: Run,
    eval_step: Callable[..., Any],
    step: int,
    state: TrainState,
    *,
    bad_images: BadImages,
    vote: Vote,
) -> dict[str, float]:
    """Returns the image count `val/count`, the fractions `val/top1` and `val/top5`, and `val/loss`.
    With at most five classes, there is no `val/top5`. Every example of the validation set counts
    once, except corrupt images. Returns an empty dict if a signal to any host ends the evaluation.
    Raises a TrainingError if the loss is not finite, a DataError if too many images are corrupt.
    """
    program, data, hosts = run.program, run.config.data, jax.process_count()
    bad_images.step = step
    size = program.eval_batch_size
    empty = {
        name: np.zeros((size // hosts, *x.shape[1:]), x.dtype)
        for name, x in program.abstract_batch().items()
    }
    place: dict[str, Any] = {"host": jax.process_index(), "hosts": hosts, "threads": data.threads}
    options = {"batch_size": size, "preprocessing": data.preprocessing, "bad": bad_images.val}
    local = eval_batches(run.val, **options, **place)
    local = EvalBatches(local, empty, count=math.ceil(len(run.val) / size))
    sums: dict[str, float] = {}
    batches = put_batches(local, program.mesh, size)
    results = (eval_step(state, batch, vote.flag(local.fault)) for batch in batches)
    for found, stop in _fetch_behind(results):
        if vote.stops_evaluation(stop):
            run_on_all_hosts(local.raise_fault)
            return {}
        sums = {name: sums.get(name, 0) + value.item() for name, value in found.items()}
    count = sums.pop("count")
    if program.model.arch.num_classes <= 5:
        del sums["top5"]  # it would be 100 %
    bad_images.report_left_out(len(run.val) - int(count))
    values = {f"val/{name}": total / count for name, total in sums.items()}
    if not math.isfinite(values["val/loss"]):
        problem = f"step {step}: the validation loss is {values['val/loss']}; {DIVERGED}"
        raise TrainingError(f"{problem}. The steps after the latest checkpoint are not saved")
    return values | {"val/count": count}


def _fetch_behind(results: Iterable[Any]) -> Iterator[Any]:
    """Yield results on the host. Each is fetched after the next one has been dispatched."""
    for result, _ in itertools.pairwise(itertools.chain(results, [None])):
        yield jax.device_get(result)


def evaluation_due(program: Program, step: int) -> bool:
    """Returns whether `step` is followed by an evaluation; the last step always is."""
    return _evaluations_until(program, step) > _evaluations_until(program, step - 1)


def evaluations_left(program: Program, step: int) -> int:
    """Returns the number of evaluations from `step` on, including one that follows this step."""
    return _evaluations_until(program, program.total_steps) - _evaluations_until(program, step - 1)


def _evaluations_until(program: Program, step: int) -> int:
    interval = program.config.eval_every_epochs * program.steps_per_epoch
    last = step == program.total_steps
    return math.floor((step - last) / interval) + last
