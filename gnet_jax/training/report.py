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

from rich.console import Console
from rich.live import Live
from rich.text import Text

from gnet_jax.training.board import Board
from gnet_jax.training.goodput import Stopwatch, goodput, total_seconds
from gnet_jax.training.record import RECORD_FILE, MetricsFile, read_starts, write_starts


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
