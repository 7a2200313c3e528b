"""Show the progress of a long job on standard error."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Generator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 30  # seconds between progress lines if standard error is not a terminal


@contextlib.contextmanager
def progress_line(
    what: str, unit: str, total: int, done: int = 0, wanted: bool = True, warm_up: bool = False
) -> Generator[Callable[..., None], None, None]:
    """Yields a function `advance(number=1)`, which any thread may call to count finished items.

    A terminal shows a progress bar until the job ends; otherwise, a line is printed every 30
    seconds. Nothing is shown if `wanted` is false. `what` and `unit` are words such as "writing
    train" and "images". `done` is the number of items that an earlier call has finished. With
    `warm_up`, the rate begins after the first call of `advance`, whose items include compilation.
    """
    console = Console(stderr=True)
    text, rate = TextColumn("{task.description}"), TextColumn("{task.fields[rate]}")
    columns = (text, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    shown = wanted and console.is_terminal
    lock, count = threading.Lock(), done
    start = printed = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task(what, total=total, completed=done, rate="")

        def advance(number: int = 1) -> None:
            nonlocal count, printed, start, done, warm_up
            with lock:
                now = time.monotonic()
                if warm_up:
                    start, done, warm_up = now, done + number, False
                count += number
                rate = (count - done) / max(now - start, 1e-9)
                bar.update(task, completed=count, rate=f"{rate:,.0f} {unit}/s")
                if wanted and not shown and rate and now - printed >= LINE_SECONDS:
                    printed = now
                    print(
                        f"{what}: {count:,} of {total:,} {unit}, {rate:,.1f} {unit}/s, "
                        f"{(total - count) / rate / 60:,.1f} min left",
                        file=sys.stderr,
                        flush=True,
                    )

        yield advance
