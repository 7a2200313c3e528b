"""Record faults that need not end a run: corrupt images, skipped steps, dead heads."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import gnet_jax
from gnet_jax.config import json_text
from gnet_jax.data.batches import SHOWN, BadRecord, BadRecords, batch_indices
from gnet_jax.data.sources import DataError, Source
from gnet_jax.model_folder.folder import to_json
from gnet_jax.training.checkpoints.verify import named_leaves
from gnet_jax.training.hosts.start import TrainingError
from gnet_jax.training.observe.console import Reporter
from gnet_jax.training.program import Run
from gnet_jax.training.step import counts_steps
from gnet_jax.training.workdir import MetricsFile, replacing

NOTES = "notes"
MARGIN = 0.02  # a loss this close to ln(classes) is no better than guessing
LEARNS = 0.1  # a head whose loss is this far below ln(classes) has learned something

DIVERGED = (
    "lower optim.learning_rate, lengthen optim.warmup_epochs or set optim.clip_norm, and use "
    "another workdir"
)
REMEDIES = (
    "lower optim.learning_rate (0.005 instead of 0.01 has fixed a dead main head), lengthen "
    "optim.warmup_epochs, set optim.clip_norm, use model.variant batch_norm, or check the labels "
    "with gnet show-data"
)


class BadImages:
    """The corrupt images of a run, by split; they are listed in `bad_records.jsonl` in the workdir.
    Each host lists the images that it reads; the file of host 1 is `bad_records-1.jsonl`.
    """

    def __init__(self, run: Run, workdir: Path, reporter: Reporter, start_step: int) -> None:
        host = jax.process_index()
        self._file = MetricsFile(workdir / f"bad_records{f'-{host}' if host else ''}.jsonl")
        self._file.forget_after(start_step)
        self._reporter, self._limit = reporter, run.config.data.bad_limit
        self.step = start_step  # the step whose images are being read
        self.train = self._records("train", run.train, "replaced by the next good one")
        self.val = self._records("val", run.val, "left out")

    def _records(self, split: str, source: Source, what: str) -> BadRecords:
        lines = [line for line in self._file.read() if line["split"] == split]
        known = [BadRecord(line["index"], line["name"], line["reason"]) for line in lines]
        path = self._reporter.place / self._file.path.name

        def report(record: BadRecord) -> None:
            line = {"split": split, **dataclasses.asdict(record)}
            self._reporter.append(self._file, self.step, line)
            if len(records) <= SHOWN:
                self._reporter.say(f"corrupt image, {what}: {record}")
            elif len(records) == SHOWN + 1:
                self._reporter.say(f"further corrupt images are listed in {path}")

        records = BadRecords(source, self._limit, on_new=report, known=known, listed_in=path)
        return records

    def report_left_out(self, images: int) -> None:
        """Print how many validation images an evaluation skipped on all hosts, if any.
        Raises DataError if the limit allows fewer, because no host has counted those of all hosts.
        """
        if images:
            name = "bad_records*.jsonl" if jax.process_count() > 1 else self._file.path.name
            where = f"listed in {self._reporter.place / name}"
            self._reporter.say(f"corrupt images left out: {images:,}, {where}")
        if images > self.val.allowed:
            raise DataError(
                f"{images:,} validation images are corrupt, but the limit of {self._limit:.2%} "
                f"allows {self.val.allowed:,}; fix or remove them (`gnet check-data` lists all), "
                "or raise --data.bad-limit"
            )


class SkippedSteps:
    """Reads the metrics of every step, and counts the steps skipped because they are not finite.
    The skipped steps are listed in `skipped_steps.jsonl` in the workdir. A resumed run keeps the
    list up to the step from which it resumes, and counts skipped steps in a row from 0 again.
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
        """Whether one more bad step ends the run; the loop then waits for each step's metrics."""
        return self._in_a_row + 1 >= self._run.config.max_bad_steps

    def read(
        self, step: int, metrics: Any, batch: dict[str, jax.Array], state: Any
    ) -> dict[str, float]:
        """Returns the metrics of `step` as floats; the step took `batch` and returned `state`.
        After `max_bad_steps` bad steps in a row, writes a replay file and raises TrainingError.
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
            with jax.transfer_guard("allow"):  # the file needs the whole state on the host
                replay = write_replay(self._workdir, self._run, state, step, batch, values)
            where = self._reporter.place / replay.name
            hint = f"To find the first image and layer that are not finite: gnet replay {where}"
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
    The file has arrays and JSON, but no pickle: the global batch, the indices of its examples, the
    state before the step, the config and the network. `state` is the state after `step`; it differs
    from the state before only in the step counts, because the step was skipped.
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
    parts = {"batch": whole, "state": _undo_step_counts(state)}
    arrays = {name: np.asarray(value) for name, value in named_leaves(parts).items()}
    arrays["indices"] = batch_indices(len(run.train), run.config, step)
    arrays[NOTES] = np.frombuffer(json_text(notes).encode(), np.uint8)
    with replacing(file) as partial, partial.open("wb") as opened:
        np.savez(opened, **arrays)  # pyright: ignore[reportArgumentType]
    return file


def _undo_step_counts(state: Any) -> Any:
    """Returns the state before the skipped step, by reducing its step counts by one."""

    def undo(x: Any) -> Any:
        return x._replace(count=x.count - 1) if counts_steps(x) else x

    before = jax.tree.map(undo, state, is_leaf=counts_steps)
    return before.replace(step=before.step - 1)


class DeadHeadGuard:
    """Detects a main head that does not learn, from the mean loss of each head in each report.

    A head is dead if, for `patience` steps after the warm-up, every reported loss was within
    `MARGIN` of ln(classes). Equal probabilities have this loss, also with label smoothing or mixup.
    Without batch norm, an auxiliary head may learn while the main head does not: in BVLC/caffe#1598
    the main loss stayed at ln 1000 = 6.908 for 2.4 million steps.
    """

    def __init__(self, heads: Sequence[str], classes: int, *, warmup: int, patience: int) -> None:
        self._heads = tuple(heads)  # the main head first
        self._guessing = math.log(classes)
        self._warmup, self._patience = warmup, patience
        self._since: dict[str, int] = {}  # head -> step since which its loss is that of guessing
        self._reported = False

    def read(self, step: int, means: Mapping[str, float]) -> str | None:
        """Returns a message about a new problem and its fixes, or None.
        `means` has the means of `main_loss`, `aux4a_loss` and so on since the last call.
        """
        losses = {head: means[f"{head}_loss"] for head in self._heads}
        for head, loss in losses.items():
            if step <= self._warmup or abs(loss - self._guessing) > MARGIN:
                self._since.pop(head, None)
            else:
                self._since.setdefault(head, step)
        dead = [head for head, since in self._since.items() if step - since >= self._patience]
        learning = [head for head, loss in losses.items() if loss < self._guessing - LEARNS]
        main = self._heads[0]
        if main not in dead or not (learning or len(dead) == len(losses)):
            self._reported = self._reported and main in self._since
            return None
        if self._reported:
            return None
        self._reported = True
        what = f"no head has learned since step {max(self._since.values())}"
        if learning:
            what = f"the main head has not learned since step {self._since[main]}, but "
            what += f"{' and '.join(learning)} learned"
        return (
            f"{what}: the main loss is {losses[main]:.3f}, and guessing has a loss of "
            f"{self._guessing:.3f}. To fix it: {REMEDIES}"
        )


def default_patience(steps_per_epoch: float) -> int:
    """Returns the number of steps per epoch, but at least 200 and at most 10,000."""
    return round(min(max(steps_per_epoch, 200), 10_000))
