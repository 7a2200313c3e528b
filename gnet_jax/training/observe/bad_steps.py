"""Steps that the compiled guard skipped, for they were not finite: told, counted, limited."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

import gnet_jax
from gnet_jax.config import json_text
from gnet_jax.data import batch_indices
from gnet_jax.training.checkpoints.storage import named_leaves
from gnet_jax.training.observe.console import Reporter
from gnet_jax.training.observe.dead_heads import DIVERGED, TrainingError
from gnet_jax.training.program import Run
from gnet_jax.training.workdir import MetricsFile

NOTES = "notes"


def write_replay(
    workdir: Path,
    run: Run,
    state: Any,
    step: int,
    batch: dict[str, jax.Array],
    metrics: dict[str, float],
) -> Path:
    """Write `replay-STEP.npz` into `workdir`, and return its path.

    It holds arrays and JSON alone, no pickle: the global batch as the hosts shipped it, the places
    of its examples in the data, the state in front of the step, the config and the network.

    Args:
        workdir: the run's.
        run: its config, network and data.
        state: after `step`, which was skipped: all but the counts of steps is as before it.
        step: the one to run again; 1 is the first.
        batch: that it was given; of several hosts each must call this.
        metrics: that it gave.

    Raises:
        OSError: on the first host, if it cannot be written, as on a full disk; nothing is left.
    """
    file = workdir / f"replay-{step}.npz"
    whole = multihost_utils.process_allgather(batch, tiled=True)
    if jax.process_index():
        return file
    notes = {
        "version": gnet_jax.__version__,
        "step": step,
        "metrics": {name: repr(value) for name, value in metrics.items()},
        "config": dataclasses.asdict(run.config),
        "architecture": _as_json(run.program.model.arch),
        "steps_per_epoch": run.program.steps_per_epoch,
        "total_steps": run.program.total_steps,
        "loaded": [] if run.program.takeover is None else list(run.program.takeover.loaded),
    }
    arrays = {f"batch/{name}": np.asarray(value) for name, value in whole.items()}
    arrays |= {f"state/{name}": np.asarray(x) for name, x in named_leaves(_before(state)).items()}
    arrays["indices"] = batch_indices(len(run.train), run.config, step)
    arrays[NOTES] = np.frombuffer(json_text(notes).encode(), np.uint8)
    partial = file.with_suffix(".partial")
    try:
        with partial.open("wb") as opened:
            np.savez(opened, **arrays)  # pyright: ignore[reportArgumentType]
        partial.replace(file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return file


def _as_json(arch: Any) -> dict[str, Any]:
    fields = {field.name: getattr(arch, field.name) for field in dataclasses.fields(arch)}
    return fields | {"widths": {name: each._asdict() for name, each in arch.widths.items()}}


def _before(state: Any) -> Any:
    """The state with its counts of steps put back by the one that was skipped."""

    def counts_steps(x: Any) -> bool:
        return isinstance(x, optax.ScaleByScheduleState)

    back = jax.tree.map(
        lambda x: x._replace(count=x.count - 1) if counts_steps(x) else x,
        state,
        is_leaf=counts_steps,
    )
    return back.replace(step=back.step - 1)


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
