"""Steps that the compiled guard skipped because they were not finite: logged, counted, limited."""

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
from gnet_jax.data.batches import batch_indices
from gnet_jax.model_folder.folder import to_json
from gnet_jax.training.checkpoints.verify import named_leaves
from gnet_jax.training.hosts.agree import TrainingError
from gnet_jax.training.observe.console import Reporter
from gnet_jax.training.observe.dead_heads import DIVERGED
from gnet_jax.training.program import Run
from gnet_jax.training.workdir import MetricsFile

NOTES = "notes"


class SkippedSteps:
    """Reads every step's metrics; `count` is the number of skipped steps.

    They are listed in `skipped_steps.jsonl` of the workdir. A resumed run keeps those listed up to
    the step from which it resumes; the number in a row starts at 0.
    """

    def __init__(self, run: Run, workdir: Path, reporter: Reporter, start_step: int) -> None:
        self._run, self._workdir, self._reporter = run, workdir, reporter
        self._file = MetricsFile(workdir / "skipped_steps.jsonl")
        self._main = jax.process_index() == 0
        if self._main:
            self._file.forget_after(start_step)
        self.count = sum(line["step"] <= start_step for line in self._file.read())
        self._in_a_row = 0

    @property
    def near_limit(self) -> bool:
        """Whether one more bad step is too many, so it must be read before another starts."""
        return self._in_a_row + 1 >= self._run.config.max_bad_steps

    def read(
        self, step: int, metrics: Any, batch: dict[str, jax.Array], state: Any
    ) -> dict[str, float]:
        """Returns the metrics of `step`, which saw `batch` and returned `state`, on the host.

        Raises:
            TrainingError: at the last bad step in a row that the config allows, after writing a
                replay file, which requires the state.
        """
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not values["skipped"]:
            self._in_a_row = 0
            return values
        self._in_a_row += 1
        self.count += 1
        loss, norm, limit = values["loss"], values["grad_norm"], self._run.config.max_bad_steps
        what = f"step {step}: the loss is {loss} and the gradient's norm {norm}"
        if math.isfinite(loss) and math.isfinite(norm):
            what += ", but the parameters would no longer be finite"
        if self._main:
            indices = batch_indices(len(self._run.train), self._run.config, step).tolist()
            line = {"loss": repr(loss), "grad_norm": repr(norm), "indices": indices}
            self._reporter.append(self._file, step, line)
        if self._in_a_row < limit:
            self._reporter.say(
                f"warning: {what}; the step is skipped and the state unchanged "
                f"({self._in_a_row} in a row, {limit} stop the run)"
            )
            return values
        try:
            replay = write_replay(self._workdir, self._run, state, step, batch, values)
            hint = f"To find the image and layer where it starts: gnet replay {replay}"
        except OSError as error:
            hint = f"No replay file could be written ({error.strerror or error})"
        raise TrainingError(
            f"{what}, {self._in_a_row} in a row; {DIVERGED}. These steps are not saved. {hint}"
        )


def write_replay(
    workdir: Path,
    run: Run,
    state: Any,
    step: int,
    batch: dict[str, jax.Array],
    metrics: dict[str, float],
) -> Path:
    """Write `replay-STEP.npz` into `workdir`, and return its path. All hosts must call this.

    It holds arrays and JSON, no pickle: the global batch, the indices of its examples, the state
    before the step, the config and the network.

    Args:
        workdir: the run's.
        run: its config, network and data.
        state: after `step`, which was skipped: equal to the one before, except for step counts.
        step: the one to replay, counted from 1.
        batch: that the step saw.
        metrics: that it returned.
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
        "architecture": to_json(run.program.model.arch),
        "steps_per_epoch": run.program.steps_per_epoch,
        "total_steps": run.program.total_steps,
        "loaded": [] if run.program.takeover is None else list(run.program.takeover.loaded),
    }
    leaves = named_leaves(_undo_step_counts(state))
    arrays = {f"batch/{name}": np.asarray(value) for name, value in whole.items()}
    arrays |= {f"state/{name}": np.asarray(value) for name, value in leaves.items()}
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


def _undo_step_counts(state: Any) -> Any:
    """Returns the state with its step counts reduced by the step that was skipped."""

    def is_count(x: Any) -> bool:
        return isinstance(x, optax.ScaleByScheduleState)

    before = jax.tree.map(
        lambda x: x._replace(count=x.count - 1) if is_count(x) else x, state, is_leaf=is_count
    )
    return before.replace(step=before.step - 1)
