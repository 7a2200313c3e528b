"""How far a long job over many things has come, on standard error."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Generator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import Task as RichTask
from rich.text import Text

QUIET_SECONDS = 30  # between two lines where standard error is no terminal


@contextlib.contextmanager
def progress_line(
    what: str, unit: str, total: int, done: int = 0, wanted: bool = True
) -> Generator[Callable[..., None], None, None]:
    """A function to call, from any thread, for each thing that is done, or with their number.

    A terminal shows a line with things done of all, rate and time left, which goes at the end;
    elsewhere, such as in a log, a line is written every half a minute.

    Args:
        what: is done, such as "writing train".
        unit: what is counted, such as "images".
        total: how many there are.
        done: how many of them were done before.
        wanted: False shows nothing.
    """
    console = Console(stderr=True)
    if not wanted:
        yield lambda number=1: None
        return
    if not console.is_terminal:
        yield _Lines(what, unit, total, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda number=1: bar.advance(task, number)


class _Rate(TextColumn):
    """Things a second, without those that were done before."""

    def __init__(self, unit: str) -> None:
        super().__init__("")
        self._unit = unit

    def render(self, task: RichTask) -> Text:
        return Text(f"{task.speed or 0:,.0f} {self._unit}/s")


class _Lines:
    """Counts, and writes a line now and then."""

    def __init__(self, what: str, unit: str, total: int, done: int) -> None:
        self._what, self._unit, self._total = what, unit, total
        self._before = self._done = done
        self._began = self._told = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, number: int = 1) -> None:
        with self._lock:
            self._done += number
            now = time.monotonic()
            if now - self._told < QUIET_SECONDS:
                return
            self._told = now
            rate = (self._done - self._before) / (now - self._began)
            left = (self._total - self._done) / rate / 60
            print(
                f"{self._what}: {self._done:,} of {self._total:,} {self._unit}, "
                f"{rate:,.1f} a second, {left:,.1f} min left",
                file=sys.stderr,
                flush=True,
            )
