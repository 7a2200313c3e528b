"""How the commands print."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from tyro.conf import arg

from gnet_jax.config import UserError, json_text

FIGURES = (".png", ".svg", ".pdf")
PHOTOS = (".png", ".jpg", ".jpeg", ".webp")


def console() -> Console:
    """Standard output; wide enough for a table where it is no terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def print_any_name() -> None:
    """Let every file name be printed: bytes that are no text of the terminal's come escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Ends the program, as one that is done, where what it prints is no longer read (`| head`)."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def leave_at_once(said: str) -> NoReturn:
    """End the process at a Ctrl-C, with a last line on standard error and code 130.

    XLA may be compiling in threads of its own, among which Python's way out would crash.
    """
    print(said, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + signal.SIGINT)


def check_picture(out: Path, kinds: tuple[str, ...] = FIGURES) -> None:
    """Refuse a file that no picture can be written to, before anything is read or computed.

    Raises:
        UserError: naming what is wrong with it.
    """
    if not out.absolute().parent.is_dir():
        raise UserError(f"there is no folder {out.absolute().parent} to draw {out.name} into")
    if out.suffix.lower() not in kinds:
        suffix = out.suffix or "no suffix"
        raise UserError(
            f"cannot write {out}: {suffix} is no kind of picture; use one of {', '.join(kinds)}"
        )


def say_not_read(left_out: Mapping[str, list[str]]) -> None:
    """Count on standard error what was not read of the data, if anything."""
    from gnet_jax.data.sources.walk import counted  # here because it brings JAX

    if left_out:
        print(f"not read: {counted(left_out)}", file=sys.stderr)


def several(metavar: str) -> Any:
    """What tyro is told of positional arguments of which there is at least one."""
    return arg(metavar=metavar, help_behavior_hint="(one or more)")


def json_line(value: object) -> str:
    """`value` as one line of JSON."""
    return json_text(value, ensure_ascii=False)
