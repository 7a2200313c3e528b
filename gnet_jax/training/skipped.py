"""Steps that the compiled guard skipped, for they were not finite: told, counted, limited."""

import math
from pathlib import Path
from typing import Any

import jax

from gnet_jax.data import batch_indices
from gnet_jax.training.guard import DIVERGED, TrainingError
from gnet_jax.training.record import MetricsFile
from gnet_jax.training.replay import write_replay
from gnet_jax.training.report import Reporter
from gnet_jax.training.run import Run


class SkippedSteps:
    """Reads every step's metrics on the host; `count` is that of the skipped ones.

    They are listed in `skipped_steps.jsonl` of the workdir. A run that goes on knows those up to
    the step that it starts from; how many came in a row is counted anew.
    """

    def __init__(self, run: Run, workdir: Path, reporter: Reporter, start_step: int) -> None:
        self._run, self._workdir, self._reporter = run, workdir, reporter
        self._file = MetricsFile(workdir / "skipped_steps.jsonl")
        self._main = jax.process_index() == 0
        if self._main and self._file.path.is_file():
            self._file.forget_after(start_step)
        self.count = sum(line["step"] <= start_step for line in self._file.read())
        self._row = 0

    @property
    def on_the_brink(self) -> bool:
        """Whether one more bad step is too many: it must be read before another is begun."""
        return self._row + 1 >= self._run.config.max_bad_steps

    def read(
        self, step: int, metrics: Any, batch: dict[str, jax.Array], state: Any
    ) -> dict[str, float]:
        """The metrics of `step` on the host.

        Args:
            step: they are of.
            metrics: of the compiled step.
            batch: that it was given.
            state: that it gave, if it is `on_the_brink`; else it is not looked at.

        Raises:
            TrainingError: at the last bad step in a row that the config allows, after writing a
                replay file; where that cannot be written, it says why.
        """
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not values["skipped"]:
            self._row = 0
            return values
        self._row += 1
        self.count += 1
        limit = self._run.config.max_bad_steps
        what = (
            f"step {step}: the loss is {values['loss']} and the gradient's norm "
            f"{values['grad_norm']}"
        )
        if all(map(math.isfinite, (values["loss"], values["grad_norm"]))):
            what += ", but the parameters would no longer be finite"
        if self._main:
            bad = {name: repr(values[name]) for name in ("loss", "grad_norm")}
            indices = batch_indices(len(self._run.train), self._run.config, step)
            self._reporter.keep(self._file, step, bad | {"indices": indices.tolist()})
        if self._row < limit:
            self._reporter.say(
                f"warning: {what}; it is skipped, and the state stays as it was "
                f"({self._row} in a row, {limit} stop the run)"
            )
            return values
        try:
            replay = write_replay(self._workdir, self._run, state, step, batch, values)
            hint = f"To see which image and layer it begins in: gnet replay {replay}"
        except OSError as error:
            hint = f"There is no replay file, for it could not be written ({_reason(error)})"
        raise TrainingError(
            f"{what}, {self._row} in a row; {DIVERGED}. Nothing of these steps was saved. {hint}"
        )


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
