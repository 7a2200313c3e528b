"""The compiled steps of a run."""

from collections.abc import Callable
from typing import Any

import jax

from gnet_jax.training.run import Run
from gnet_jax.training.sharding import compile_eval_step, compile_train_step


class Programs:
    """A run's training, evaluation and diagnosing step, each compiled at its first use.

    Runs that differ in nothing but their seed and workdir may share one: neither is in the
    programs.
    """

    def __init__(self) -> None:
        self._train: jax.stages.Compiled | None = None
        self._eval: Callable[..., Any] | None = None
        self._diagnose: Callable[..., Any] | None = None

    def train_step(self, run: Run) -> jax.stages.Compiled:
        """`(state, batch) -> (state, metrics)`; the state passed in is donated."""
        if self._train is None:
            state, batch = run.abstract_state(), run.abstract_batch()
            self._train = compile_train_step(run.mesh, run.train_step(), state, batch)
        return self._train

    def diagnose_step(self, run: Run) -> Callable[..., Any]:
        """`(state, batch) -> diagnostics`; it compiles at its first call."""
        if self._diagnose is None:
            self._diagnose = compile_eval_step(run.mesh, run.diagnose_step())
        return self._diagnose

    def eval_step(self, run: Run) -> Callable[..., Any]:
        """`(state, batch) -> sums`; it compiles at its first call."""
        if self._eval is None:
            self._eval = compile_eval_step(run.mesh, run.eval_step())
        return self._eval
