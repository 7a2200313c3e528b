"""Evaluation during training: the whole validation set, every example counted once."""

import math

import jax
import numpy as np

from gnet_jax.data import eval_batches
from gnet_jax.training.compiled_steps import CompiledSteps
from gnet_jax.training.hosts.agree import TrainingError, run_on_all_hosts
from gnet_jax.training.hosts.stop import EvalBatches, Vote
from gnet_jax.training.observe.bad_images import BadImages
from gnet_jax.training.observe.dead_heads import DIVERGED
from gnet_jax.training.program import Run
from gnet_jax.training.sharding import put_batches
from gnet_jax.training.step import TrainState


class Evaluator:
    """Counts the whole validation set, every example once; compiles at its first call."""

    def __init__(
        self, run: Run, compiled: CompiledSteps, bad_images: BadImages, vote: Vote
    ) -> None:
        self._run, self._bad_images, self._vote = run, bad_images, vote
        self._step = compiled.eval_step(run)

    def __call__(self, step: int, state: TrainState) -> dict[str, float]:
        """`val/count`, `val/top1`, `val/top5` (shares of 1) and `val/loss` for `state`.

        Damaged images are left out of all of them. Empty where a signal to any host cut it short.

        Raises:
            TrainingError: if that loss is not finite, on every host.
        """
        run, d, vote = self._run, self._run.config.data, self._vote
        self._bad_images.step = step
        share = run.eval_batch_size // jax.process_count()
        empty = {
            name: np.zeros((share, *x.shape[1:]), x.dtype)
            for name, x in run.abstract_batch().items()
        }
        batches = eval_batches(
            run.val,
            batch_size=run.eval_batch_size,
            preprocessing=d.preprocessing,
            threads=d.threads,
            host=jax.process_index(),
            hosts=jax.process_count(),
            bad=self._bad_images.val,
        )
        batches = EvalBatches(batches, empty)
        sums: dict[str, float] = {}
        for batch in put_batches(batches, run.mesh, run.eval_batch_size):
            found, stop = jax.device_get(self._step(state, batch, vote.flag(batches.fault)))
            if vote.stops_evaluation(stop):
                run_on_all_hosts(batches.raise_fault)
                return {}
            for name, value in found.items():
                sums[name] = sums.get(name, 0) + value.item()
        count = sums.pop("count")
        self._bad_images.report_left_out(len(run.val) - int(count))
        values = {f"val/{name}": total / count for name, total in sums.items()}
        if not math.isfinite(values["val/loss"]):
            raise TrainingError(
                f"step {step}: the validation loss is {values['val/loss']}; {DIVERGED}. What "
                "was trained after the newest checkpoint is not saved"
            )
        return values | {"val/count": count}
