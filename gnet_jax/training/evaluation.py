"""Evaluation during training: the whole validation set, every example counted once."""

import math
from collections.abc import Callable
from typing import Any

import jax

from gnet_jax.data import eval_batches
from gnet_jax.training.damage import Damage
from gnet_jax.training.guard import TrainingError
from gnet_jax.training.run import Run
from gnet_jax.training.sharding import compile_eval_step, put_batches
from gnet_jax.training.step import TrainState


class Evaluator:
    """Counts the whole validation set, every example once; compiles at its first call."""

    def __init__(self, run: Run, damage: Damage) -> None:
        self._run, self._damage = run, damage
        self._step: Callable[..., Any] = compile_eval_step(run.mesh, run.eval_step())

    def __call__(self, state: TrainState) -> dict[str, float]:
        """`val/count`, `val/top1`, `val/top5` (shares of 1) and `val/loss` for `state`.

        Damaged images are left out of all of them.
        """
        run, d = self._run, self._run.config.data
        batches = eval_batches(
            run.val,
            batch_size=run.eval_batch_size,
            preprocessing=d.preprocessing,
            threads=d.threads,
            host=jax.process_index(),
            hosts=jax.process_count(),
            bad=self._damage.val,
        )
        sums: dict[str, float] = {}
        for batch in put_batches(batches, run.mesh, run.eval_batch_size):
            for name, value in jax.device_get(self._step(state, batch)).items():
                sums[name] = sums.get(name, 0) + value.item()
        count = sums.pop("count")
        self._damage.say_left_out(len(run.val) - int(count))
        values = {f"val/{name}": total / count for name, total in sums.items()}
        if not math.isfinite(values["val/loss"]):
            raise TrainingError(f"the validation loss is {values['val/loss']}")
        return values | {"val/count": count}
