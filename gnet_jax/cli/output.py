"""How the commands print."""

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from tyro.conf import arg

from gnet_jax.config import UserError, json_text
from gnet_jax.config.paths import temporary_home

FIGURES = (".png", ".svg", ".pdf")
PHOTOS = (".png", ".jpg", ".jpeg", ".webp")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # for reader_may_leave; rich would exit with 1


def console(*, stderr: bool = False) -> Console:
    """Standard output or error; wide enough for a table if output is not a terminal."""
    if stderr:
        return _Console(stderr=True)
    return _Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def set_up_process() -> None:
    """Make up for what a process may lack: open streams, their encoding, and a home folder."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # The file that is opened next would have its number, and what libraries print.
            os.set_inheritable(_null(number), True)
            setattr(sys, name, open(number, "w" if number else "r"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Bytes of a file's name that the terminal cannot show are printed escaped.
            stream.reconfigure(errors="backslashreplace")
    if not os.path.isabs(os.path.expanduser("~")):
        # Libraries look for their settings and caches in the home, and some raise without one.
        os.environ["HOME"] = str(temporary_home())
        print_error(
            f"no home folder: HOME is not set, and user {os.getuid()} is unknown; using "
            f"{os.environ['HOME']}"
        )


def _null(number: int) -> int:
    """The null device as the descriptor `number`, which is closed."""
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    return number


def print_error(text: str) -> None:
    """Print a line on standard error; lost if nobody reads it or the disk is full."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Exit with code 0 if nobody reads the output any more (`| head`).

    Raises:
        UserError: if a disk is full.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        left, full = isinstance(error, BrokenPipeError), error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not left and not full:
            raise
        # Python would flush once more at its end, and exit with 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if left:
            raise SystemExit(0) from None
        raise UserError(f"not all is written: {error.strerror}; make room for it") from error


def leave_at_once(said: str) -> NoReturn:
    """End the process at a Ctrl-C, with a last line on standard error and code 130.

    XLA may be compiling in threads of its own, among which Python's way out would crash.
    """
    print_error(said)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
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


def check_not_input(out: Path, inputs: Iterable[str | Path]) -> None:
    """Refuse to write over a file that the command reads: an input, or a file in one.

    Raises:
        UserError: naming it.
    """
    if not os.path.exists(out):
        return
    places = (out.resolve(), *out.resolve().parents)
    for each in inputs:
        if os.path.exists(each) and Path(each).resolve() in places:
            raise UserError(f"{out} is an input, and would be lost; name another file")


def say_not_read(left_out: Mapping[str, list[str]]) -> None:
    """Count on standard error what was not read of the data, if anything."""
    from gnet_jax.data.sources.walk import counted

    if left_out:
        print(f"not read: {counted(left_out)}", file=sys.stderr)


def several(metavar: str) -> Any:
    """What tyro is told of positional arguments of which there is at least one."""
    return arg(metavar=metavar, help_behavior_hint="(one or more)")


def json_line(value: object) -> str:
    """`value` as one line of JSON."""
    return json_text(value, ensure_ascii=False)
