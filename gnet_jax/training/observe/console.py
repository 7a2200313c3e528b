"""Print and log metrics (terminal, metrics.jsonl, TensorBoard) and how a run spent its time."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import histogram_raw, scalar

from gnet_jax.config.bucket import Place
from gnet_jax.errors import discard
from gnet_jax.training.hosts.log import LOG
from gnet_jax.training.observe.track import Track
from gnet_jax.training.workdir import RECORD_FILE, MetricsFile, read_starts, write_json

_messages: Any = event_pb2  # its classes are created on import, which type checkers cannot see

KINDS = (
    *("training", "compiling", "waiting for data", "saving"),
    *("evaluating", "diagnosing", "starting"),
)
LOST = "lost to restarts"  # spent after the checkpoint from which a later start resumed
KEPT_SAVES = 20


class Stopwatch:
    """Measures how many seconds a run spends on each of `KINDS` since it was last started.
    Loading data and saving count only while they delay the loop. All remaining time counts as
    training.
    """

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._spent = dict.fromkeys(KINDS, 0.0)
        self._saves: dict[int, float] = {}
        self.committed = 0  # the newest checkpoint that this start has saved

    @contextlib.contextmanager
    def spent(self, kind: str) -> Iterator[None]:
        before = time.perf_counter()
        try:
            yield
        finally:
            self._spent[kind] += time.perf_counter() - before

    def saved(self, step: int) -> None:
        """Record the time at which the save of `step` starts."""
        self._saves[step] = time.perf_counter() - self._began

    def record(self, step: int) -> dict[str, Any]:
        """Returns the steps and times to record in `run.json`; `step` is the last finished step."""
        total = time.perf_counter() - self._began
        seconds = self._spent | {"training": total - sum(self._spent.values())}
        saves = sorted(self._saves.items())[-KEPT_SAVES:]
        return {
            "reached": step,
            "newest_checkpoint": self.committed,
            "seconds": {kind: round(value, 6) for kind, value in seconds.items()},
            "seconds_at_save": {str(step): round(at, 6) for step, at in saves},
        }


def total_seconds(starts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the seconds of each kind, and of `LOST`, summed over `starts`, read from run.json.
    `LOST` is the time after a checkpoint from which the run resumed: this work was repeated.
    """
    sums = dict.fromkeys((*KINDS, LOST), 0.0)
    for number, start in enumerate(starts):
        if "seconds" not in start:
            continue
        # Another version may have counted other kinds.
        seconds = {kind: start["seconds"].get(kind, 0.0) for kind in KINDS}
        lost = 0.0
        later = [each["step"] for each in starts[number + 1 :]]
        if later:
            saves = start["seconds_at_save"].items()
            kept = max((at for step, at in saves if int(step) <= min(later)), default=0.0)
            lost = sum(seconds.values()) - kept
        for kind in KINDS:  # training first, because most of the lost time was training
            taken = min(seconds[kind], lost)
            lost -= taken
            sums[LOST] += taken
            sums[kind] += seconds[kind] - taken
    return sums


def goodput(seconds: Mapping[str, float]) -> float:
    """Returns the fraction of all `seconds` that was training; NaN if no time was recorded."""
    return seconds["training"] / (sum(seconds.values()) or math.nan)


def goodput_line(seconds: Mapping[str, float]) -> str:
    """Returns a line with the goodput, and the kinds of time that took at least half a second."""
    parts = [f"{kind} {duration(value)}" for kind, value in seconds.items() if value >= 0.5]
    return f"goodput {goodput(seconds):.1%}: {', '.join(parts) or 'less than a second'}"


def duration(seconds: float) -> str:
    """Returns seconds in readable units: "8 s", "3 min 20 s", "2 h 5 min", "11 d 4 h"."""
    seconds = round(seconds)
    units = (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1))
    for unit, small, size, part in units:
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // part} {small}"
    return f"{seconds} s"


class Board:
    """Writes scalars and histograms for TensorBoard into a folder.
    tensorboardX's `SummaryWriter` is not used: a full disk ends its thread, and then the run
    blocks on its full queue. From step `purge_step` on, TensorBoard hides the points in the files
    that a killed process left.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        self._folder, self._purge_step = folder, purge_step
        self._writer: EventsWriter | None = None

    def add(
        self,
        step: int,
        values: Mapping[str, float],
        histograms: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> None:
        """Add a point to the curve of each value, and the histograms of this step.
        A histogram is a pair of counts (N,) and edges (N + 1,). Raises OSError if the file is not
        writable.
        """
        summaries = [scalar(name, value) for name, value in values.items()]
        summaries += [_histogram(name, *each) for name, each in (histograms or {}).items()]
        events = [_messages.Event(step=step, wall_time=time.time(), summary=s) for s in summaries]
        try:
            if self._writer is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._writer = EventsWriter(str(self._folder / "events"), f".{time.time_ns()}")
                start = _messages.SessionLog(status=_messages.SessionLog.START)
                events.insert(0, _messages.Event(step=self._purge_step, session_log=start))
            for event in events:
                self._writer.write_event(event)
            self._writer.flush()
            self._purge_step = step + 1
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; the next `add` opens a new one. Ignores errors: `add` has raised them."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None


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


class SafeConsole(Console):
    """Prints to standard output. Training continues if that fails (`| head`, or a full disk)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, emoji=False, **options)
        self._shown: Live | None = None

    def say(self, text: str) -> None:
        """Print text without interpreting markup, and add it to the host's log if there is one."""
        self.erase()
        LOG.info(text)
        self.print(text, markup=False, soft_wrap=True)

    def show(self, text: str) -> None:
        """Show a line on a terminal until the next `show`, `say` or `erase`."""
        if self._shown is None:
            self._shown = Live(console=self, transient=True, auto_refresh=False)
            self._shown.start()
        self._shown.update(Text(text), refresh=True)

    def erase(self) -> None:
        """Erase the line of `show`."""
        if self._shown is not None:
            self._shown.stop()
            self._shown = None

    def print(self, *objects: Any, **options: Any) -> None:
        """Print. If that fails, warn once on standard error and discard further output."""
        try:
            super().print(*objects, **options)
        except OSError as error:
            self.on_broken_pipe()
            try:
                warning = f"warning: output stops here ({error.strerror}); training continues"
                print(warning, file=sys.stderr, flush=True)
            except OSError:
                discard(sys.stderr)

    def on_broken_pipe(self) -> None:
        """Discard further output; rich calls this if the reader of the output has exited."""
        self.quiet = True
        discard(sys.stdout)


class Reporter(contextlib.AbstractContextManager["Reporter"]):
    """Prints metrics, as one live line on a terminal, and logs them (metrics.jsonl, TensorBoard).
    `track` gets the same metrics, and first those of earlier starts that it does not have. `place`
    is the workdir in messages, if `workdir` is a copy of it.
    With `enabled=False`, as on every process except the first, messages go only to the host's log.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        start_step: int,
        total_steps: int,
        enabled: bool = True,
        watch: Stopwatch | None = None,
        track: Track | None = None,
        place: Place | None = None,
    ) -> None:
        self.place = place or workdir
        self._workdir, self._enabled, self._total = workdir, enabled, total_steps
        self.watch = watch or Stopwatch()
        self._console = SafeConsole(quiet=not enabled)
        self._metrics = MetricsFile(workdir / "metrics.jsonl")
        self._unwritten: list[tuple[int, dict[str, float]]] = []  # because the disk was full
        self._board = Board(workdir / "tensorboard", purge_step=start_step + 1)
        if enabled:
            self._metrics.forget_after(start_step)
        self._track = track
        if track is not None:
            track.tell = self.say
            for line in self._metrics.read():
                track.log(line.pop("step"), line)

    def __exit__(self, *_: object) -> None:
        self._console.erase()
        self._board.close()

    def say(self, text: str) -> None:
        self._console.say(text)

    def account(self, step: int) -> dict[str, float]:
        """Write the times since this start to run.json; returns all starts' seconds by kind."""
        starts = read_starts(self._workdir) if self._enabled else []
        start = starts[-1] if starts else {"step": 0}
        starts[-1:] = [{**start, **self.watch.record(step), "total_steps": self._total}]
        if self._enabled:
            try:
                write_json(self._workdir / RECORD_FILE, {"starts": starts})
            except OSError as error:
                self.say(f"warning: {RECORD_FILE} could not be written ({error.strerror})")
        return total_seconds(starts)

    def training(
        self, step: int, values: dict[str, float], eta: float, *, evaluations: bool
    ) -> None:
        """Log the mean metrics since the last report, and show them as one line.
        `eta` is the remaining time in seconds; `evaluations` is whether it includes evaluations.
        """
        self._log(step, values | {"perf/goodput": goodput(self.account(step))})
        heads = [name[len("train/") : -len("_top1")] for name in values if name.endswith("_top1")]
        heads.sort(key=lambda head: head != "main")
        shown = " | ".join(
            f"{head} {values[f'train/{head}_loss']:.3f} {values[f'train/{head}_top1']:.1%}"
            for head in heads
        )
        units = {"perf/mfu": "MFU {:.1%}", "perf/memory_gb": "{:.1f} GB"}  # if they are known
        chip = "".join(
            f" | {u.format(values[name])}" for name, u in units.items() if name in values
        )
        line = (
            f"step {step}/{self._total} | training: loss {values['train/loss']:.3f} | {shown} | "
            f"lr {values['train/learning_rate']:.2g} | {values['perf/images_per_sec']:.0f} images/s"
            f"{chip} | ETA {duration(eta)}{'' if evaluations else ' without evaluations'}"
        )
        if not self._console.is_terminal:
            self._console.say(line)
            return
        LOG.info(line)
        self._console.show(line)

    def evaluation(self, step: int, values: dict[str, float], best: bool) -> None:
        self._log(step, values)
        top5 = f"top-5 {values['val/top5']:.2%}, " if "val/top5" in values else ""
        count, end = values["val/count"], " | best so far" if best else ""
        self.say(
            f"step {step}/{self._total} | validation: top-1 {values['val/top1']:.2%}, "
            f"{top5}loss {values['val/loss']:.3f} ({count:.0f} images){end}"
        )

    def append(self, file: MetricsFile, step: int, values: Mapping[str, Any]) -> None:
        """Append a line to `file`, a separate log; if the disk is full, only print a warning."""
        try:
            file.append(step, values)
        except OSError as error:
            self.say(f"warning: cannot add step {step} to {file.path} ({error.strerror})")

    def _log(self, step: int, values: dict[str, float]) -> None:
        """Log `values`; first log earlier values that could not be written to a full disk."""
        if not self._enabled:
            return
        if self._track is not None:
            self._track.log(step, values)
        self._unwritten.append((step, values))
        try:
            while self._unwritten:
                self._metrics.append(*self._unwritten[0])
                del self._unwritten[0]
            self._board.add(step, values)
        except OSError as error:
            self.say(f"warning: step {step} could not be logged ({error.strerror or error})")


class Meter:
    """Computes the means of the metrics since the last `read`, and the time per step."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._good = self.steps = 0  # `steps` includes the skipped ones
        self._since = time.perf_counter()

    def add(self, metrics: dict[str, float]) -> None:
        """Add the metrics of one step; a `skipped` step counts only for the time per step."""
        skipped = metrics.get("skipped", 0.0)
        for name, value in metrics.items():
            if name != "skipped":
                self._sums[name] = self._sums.get(name, 0.0) + (0.0 if skipped else float(value))
        self._good += not skipped
        self.steps += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the body, which evaluates, saves or diagnoses, from the time per step."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def read(self) -> tuple[dict[str, float], float]:
        """Returns the means and the seconds per step (NaN without a step), and resets both."""
        means = {name: total / (self._good or math.nan) for name, total in self._sums.items()}
        seconds = (time.perf_counter() - self._since) / (self.steps or math.nan)
        self.__init__()
        return means, seconds
