"""Evaluation during training: the whole validation set, every example counted once."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gnet_jax.data.batches import eval_batches
from gnet_jax.training.hosts.agree import TrainingError, run_on_all_hosts
from gnet_jax.training.hosts.stop import EvalBatches, Vote
from gnet_jax.training.observe.faults import DIVERGED, BadImages
from gnet_jax.training.program import Run
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
    """Returns `val/count`, `val/top1`, `val/top5` (shares of 1) and `val/loss` of `state`.

    `eval_step` is the compiled `(state, batch, stop) -> (sums, stop)`. Leaves out damaged images.
    Returns an empty dict if a signal to any host ends it early.

    Raises:
        TrainingError: if the loss is not finite; on every host.
    """
    program, d = run.program, run.config.data
    bad_images.step = step
    share = program.eval_batch_size // jax.process_count()
    empty = {
        name: np.zeros((share, *x.shape[1:]), x.dtype)
        for name, x in program.abstract_batch().items()
    }
    batches = eval_batches(
        run.val,
        batch_size=program.eval_batch_size,
        preprocessing=d.preprocessing,
        threads=d.threads,
        host=jax.process_index(),
        hosts=jax.process_count(),
        bad=bad_images.val,
    )
    local = EvalBatches(batches, empty)
    sums: dict[str, float] = {}
    for batch in put_batches(local, program.mesh, program.eval_batch_size):
        found, stop = jax.device_get(eval_step(state, batch, vote.flag(local.fault)))
        if vote.stops_evaluation(stop):
            run_on_all_hosts(local.raise_fault)
            return {}
        for name, value in found.items():
            sums[name] = sums.get(name, 0) + value.item()
    count = sums.pop("count")
    bad_images.report_left_out(len(run.val) - int(count))
    values = {f"val/{name}": total / count for name, total in sums.items()}
    if not math.isfinite(values["val/loss"]):
        raise TrainingError(
            f"step {step}: the validation loss is {values['val/loss']}; {DIVERGED}. The steps "
            "after the latest checkpoint are not saved"
        )
    return values | {"val/count": count}
