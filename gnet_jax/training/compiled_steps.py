"""The compiled steps of a run."""

from collections.abc import Callable
from typing import Any

import jax

from gnet_jax.training.hosts.stop import abstract_flag, voting_eval_step, voting_train_step
from gnet_jax.training.program import Run
from gnet_jax.training.sharding import AXIS, compile_eval_step, compile_train_step


class CompiledSteps:
    """A run's training, evaluation and diagnosing step, each compiled at its first use.

    Training and evaluation also take this host's `stop` (`Vote.flag`), and return the largest of
    all hosts. Runs that differ only in their seed and workdir may share one instance, because
    neither is part of a compiled program.
    """

    def __init__(self) -> None:
        self._train: jax.stages.Compiled | None = None
        self._eval: Callable[..., Any] | None = None
        self._diagnose: Callable[..., Any] | None = None

    def train_step(self, run: Run) -> jax.stages.Compiled:
        """`(state, batch, stop) -> (state, metrics, stop)`; the state passed in is donated."""
        if self._train is None:
            step = voting_train_step(run.train_step(), AXIS if run.canonical else None)
            self._train = compile_train_step(
                run.mesh,
                step,
                run.abstract_state(),
                run.abstract_batch(),
                abstract_flag(run.mesh),
                manual=run.canonical,
            )
        return self._train

    def diagnose_step(self, run: Run) -> Callable[..., Any]:
        """`(state, batch) -> diagnostics`; it compiles at its first call."""
        if self._diagnose is None:
            self._diagnose = compile_eval_step(run.mesh, run.diagnose_step())
        return self._diagnose

    def eval_step(self, run: Run) -> Callable[..., Any]:
        """`(state, batch, stop) -> (sums, stop)`; it compiles at its first call."""
        if self._eval is None:
            step = voting_eval_step(run.eval_step())
            self._eval = compile_eval_step(run.mesh, step, inputs=2)
        return self._eval
