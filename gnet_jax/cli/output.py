"""How the commands print."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from gnet_jax.config import UserError

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


def json_line(value: object) -> str:
    """`value` as one line of JSON."""
    return json.dumps(value, ensure_ascii=False)
