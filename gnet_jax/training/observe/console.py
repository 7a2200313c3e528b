"""What a person sees of a run, and what is logged: terminal, metrics.jsonl, TensorBoard."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import histogram_raw, scalar

from gnet_jax.training.observe.goodput import Stopwatch, goodput, total_seconds
from gnet_jax.training.workdir import RECORD_FILE, MetricsFile, read_starts, write_starts

_messages: Any = event_pb2  # its classes come into being on import, unseen by type checkers


class Board:
    """Scalars and histograms in the folder `folder`.

    tensorboardX's own `SummaryWriter` writes in a thread, which a full disk ends; its queue then
    blocks the run. Points of earlier event files from `purge_step` on are hidden; of this writer's
    own, where it has to begin another file, none that were written.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        self._folder = folder
        self._purge_step = purge_step
        self._writer: EventsWriter | None = None

    def add(
        self,
        step: int,
        values: Mapping[str, float],
        histograms: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> None:
        """Add one point to the curve of each value.

        Args:
            step: of the point.
            values: by name.
            histograms: (counts (N,), edges (N + 1,)) by name.

        Raises:
            OSError: if they cannot be written; the next call begins another file.
        """
        try:
            if self._writer is None:
                self._writer = self._begun()
            summaries = [scalar(name, value) for name, value in values.items()]
            summaries += [_histogram(name, *each) for name, each in (histograms or {}).items()]
            for summary in summaries:
                self._writer.write_event(
                    _messages.Event(step=step, wall_time=time.time(), summary=summary)
                )
            self._writer.flush()
            self._purge_step = step + 1
        except OSError:
            with contextlib.suppress(OSError):  # it tries once more what has just failed
                self.close()
            self._writer = None
            raise

    def _begun(self) -> EventsWriter:
        self._folder.mkdir(parents=True, exist_ok=True)
        writer = EventsWriter(str(self._folder / "events"), f".{time.time_ns()}")
        start = _messages.SessionLog(status=_messages.SessionLog.START)
        writer.write_event(_messages.Event(step=self._purge_step, session_log=start))
        return writer

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()


def _histogram(name: str, counts: np.ndarray, edges: np.ndarray) -> Any:
    middles = (edges[1:] + edges[:-1]) / 2
    return histogram_raw(
        name,
        min=float(edges[0]),
        max=float(edges[-1]),
        num=int(counts.sum()),
        sum=float(counts @ middles),
        sum_squares=float(counts @ middles**2),
        bucket_limits=edges[1:].tolist(),
        bucket_counts=counts.tolist(),
    )


def duration(seconds: float) -> str:
    """Seconds in the units a person would use: "8 s", "3 min 20 s", "2 h 5 min", "11 d 4 h"."""
    seconds = round(seconds)
    for unit, small, size, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // part} {small}"
    return f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"


def goodput_line(seconds: Mapping[str, float]) -> str:
    """The goodput and what the time went into, in one line; what took under half a second is not.

    `seconds` are those of `total_seconds`.
    """
    parts = [f"{kind} {duration(value)}" for kind, value in seconds.items() if value >= 0.5]
    return f"goodput {goodput(seconds):.1%}: {', '.join(parts) or 'less than a second'}"


class LastingConsole(Console):
    """Standard output; training goes on if its reader leaves (`| head`) or its disk is full."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(highlight=False, emoji=False, quiet=quiet)

    def say(self, text: str) -> None:
        """Print a text as it is."""
        self.print(text, markup=False, soft_wrap=True)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, or warn on standard error that the output ends here."""
        try:
            super().print(*objects, **options)
        except OSError as error:
            self.on_broken_pipe()
            try:
                said = f"warning: no more is printed, because {error.strerror}; training goes on"
                print(said, file=sys.stderr, flush=True)
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Reporter:
    """The live line on a terminal (plain lines where output is piped), and the two logs.

    `enabled=False` on every process but the first: then nothing is printed or written.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        start_step: int,
        total_steps: int,
        enabled: bool = True,
        watch: Stopwatch | None = None,
    ) -> None:
        self._workdir, self._enabled = workdir, enabled
        self.watch = Stopwatch() if watch is None else watch
        self._console = LastingConsole(quiet=not enabled)
        self._live: Live | None = None
        self._total = total_steps
        self._metrics = MetricsFile(workdir / "metrics.jsonl") if enabled else None
        self._unwritten: list[tuple[int, dict[str, float]]] = []
        self._board = None
        if enabled:
            MetricsFile(workdir / "metrics.jsonl").forget_after(start_step)
            # Points that an earlier, killed process logged after the resumed step are purged.
            self._board = Board(workdir / "tensorboard", purge_step=start_step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._clear()
        if self._board is not None:
            with contextlib.suppress(OSError):  # a full disk, of which `_log` has told
                self._board.close()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._clear()
        self._console.say(text)

    def account(self, step: int) -> dict[str, float]:
        """Record what this start's time went into; returns the seconds by kind over all starts."""
        starts = read_starts(self._workdir) if self._enabled else []
        starts[-1:] = [{**(starts[-1] if starts else {"step": 0}), **self.watch.record(step)}]
        if self._enabled:
            try:
                write_starts(self._workdir, starts)
            except OSError as error:
                self.say(f"warning: {RECORD_FILE} could not be written ({error.strerror})")
        return total_seconds(starts)

    def training(
        self, step: int, values: dict[str, float], eta: float, *, evaluations: bool
    ) -> None:
        """Log the mean metrics since the last report, and show them as one line.

        `eta` is in seconds; `evaluations` tells whether it includes them.
        """
        self._log(step, values | {"perf/goodput": goodput(self.account(step))})
        heads = [name[len("train/") : -len("_top1")] for name in values if name.endswith("_top1")]
        heads.sort(key=lambda head: head != "main")  # the main head first
        shown = " | ".join(
            f"{head} {values[f'train/{head}_loss']:.3f} {values[f'train/{head}_top1']:.1%}"
            for head in heads
        )
        line = (
            f"step {step}/{self._total} | training: loss {values['train/loss']:.3f} | {shown} | "
            f"lr {values['train/learning_rate']:.2g} | "
            f"{values['perf/images_per_sec']:.0f} images/s | ETA {duration(eta)}"
            + ("" if evaluations else " without evaluations")
        )
        if not self._console.is_terminal:
            self._console.say(line)
            return
        if self._live is None:
            self._live = Live(console=self._console, transient=True, auto_refresh=False)
            self._live.start()
        self._live.update(Text(line), refresh=True)

    def evaluation(self, step: int, values: dict[str, float], best: bool) -> None:
        """Log the results of an evaluation, and print them."""
        self._log(step, values)
        self.say(
            f"step {step}/{self._total} | validation: top-1 {values['val/top1']:.2%}, "
            f"top-5 {values['val/top5']:.2%}, loss {values['val/loss']:.3f} "
            f"({values['val/count']:.0f} images)" + (" | best so far" if best else "")
        )

    def keep(self, file: MetricsFile, step: int, values: Mapping[str, Any]) -> None:
        """Add a line to another log; on a full disk say instead that it is not there."""
        try:
            file.append(step, values)
        except OSError as error:
            self.say(f"warning: {file.path} lacks a line of step {step} ({error.strerror})")

    def _log(self, step: int, values: dict[str, float]) -> None:
        """Write what is new, and what a full disk has kept from being written."""
        if self._metrics is None or self._board is None:
            return
        self._unwritten.append((step, values))
        try:
            while self._unwritten:
                self._metrics.append(*self._unwritten[0])
                del self._unwritten[0]
            self._board.add(step, values)
        except OSError as error:
            self.say(f"warning: step {step} could not be logged ({error.strerror or error})")

    def _clear(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class Meter:
    """Means of per-step metrics since the last reading, and the time they took."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, float] = {}
        self._good = 0
        self._steps = 0
        self._since = time.perf_counter()
        self._paused = 0.0

    def add(self, metrics: dict[str, float]) -> None:
        """Take in the metrics of one step; of one that was `skipped`, the time alone counts."""
        skipped = metrics.get("skipped", 0.0)
        for name, value in metrics.items():
            if name != "skipped":
                self._sums[name] = self._sums.get(name, 0.0) + (0.0 if skipped else float(value))
        self._good += not skipped
        self._steps += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of what is no step: evaluation, saving, diagnosing."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began

    def read(self) -> tuple[dict[str, float], float]:
        """The means, and seconds a step; then begin anew. NaN where no step was taken in."""
        means = {name: total / (self._good or math.nan) for name, total in self._sums.items()}
        seconds = (time.perf_counter() - self._since - self._paused) / (self._steps or math.nan)
        self._reset()
        return means, seconds
