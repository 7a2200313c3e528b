"""What the commands share: streams, exit codes, and checks of their output files."""

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gnet_jax.errors import UserError

# `gnet --version` imports this module, so it imports libraries where they are used.
if TYPE_CHECKING:
    from rich.console import Console

FIGURES = (".png", ".svg", ".pdf")
PHOTOS = (".png", ".jpg", ".jpeg", ".webp")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def console(*, stderr: bool = False) -> "Console":
    """Returns a console on standard output or error, 160 columns wide if not a terminal."""
    from rich.console import Console

    class OurConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # for reader_may_leave; rich would exit with 1

    if stderr:
        return OurConsole(stderr=True)
    return OurConsole(highlight=False, width=None if sys.stdout.isatty() else 160)


def set_up_process() -> None:
    """Open closed standard streams, escape what they cannot encode, set a missing HOME."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # Otherwise the next opened file would get this number, and receive library output.
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, "w" if number else "r"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for names of files that are not text
    if not os.path.isabs(os.path.expanduser("~")):
        from gnet_jax.config.paths import temporary_home

        # Libraries look for settings and caches there, and some raise without it.
        os.environ["HOME"] = str(temporary_home())
        print_error(f"HOME is not set and the user is unknown: using {os.environ['HOME']}")


def print_error(text: str) -> None:
    """Print a line on standard error; it is lost if nobody reads it or the disk is full."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Exit with code 0 if nobody reads the output any more (`| head`); 2 if a disk is full."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and error.errno not in DISK_FULL:
            raise
        # Python would flush again at its end, and exit with 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(0) from None
        raise UserError(f"the output is incomplete: {error.strerror}; free some space") from error


def leave_at_once(message: str) -> NoReturn:
    """Print a message on standard error and end the process with code 130, as after Ctrl-C."""
    print_error(message)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(128 + signal.SIGINT)  # a normal exit can crash while threads of XLA compile


def check_picture(out: Path, kinds: tuple[str, ...] = FIGURES) -> None:
    """Raise a UserError if no picture can be written to `out`, before any long work."""
    if not out.absolute().parent.is_dir():
        raise UserError(f"cannot write {out}: folder {out.absolute().parent} not found")
    if out.suffix.lower() not in kinds:
        raise UserError(f"cannot write {out}: use one of {', '.join(kinds)}, not {out.suffix!r}")


def check_not_input(out: Path, inputs: Iterable[str | Path]) -> None:
    """Raise a UserError if writing to `out` would replace an input, or a file in one."""
    places = (out.resolve(), *out.resolve().parents) if os.path.exists(out) else ()
    for each in inputs:
        if os.path.exists(each) and Path(each).resolve() in places:
            raise UserError(f"{out} is an input and would be overwritten; name another file")


def say_not_read(left_out: Mapping[str, list[str]]) -> None:
    """Print the number of files that were not read, by reason, on standard error."""
    from gnet_jax.data.sources.folder import counted

    if left_out:
        print(f"not read: {counted(left_out)}", file=sys.stderr)


def several(metavar: str) -> Any:
    """Returns tyro's settings for positional arguments of which at least one is required."""
    from tyro.conf import arg

    return arg(metavar=metavar, help_behavior_hint="(one or more)")


def json_line(value: object) -> str:
    """Returns `value` as one line of JSON."""
    from gnet_jax.config import json_text

    return json_text(value, ensure_ascii=False)
