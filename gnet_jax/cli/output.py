"""Functions that all commands use: output streams, exit codes, and checks of output files."""

import contextlib
import errno
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gnet_jax.errors import UserError, discard

# `gnet --version` imports this module, so functions import libraries only when they run.
if TYPE_CHECKING:
    from rich.console import Console

FIGURES = (".png", ".svg", ".pdf")
PHOTOS = (".png", ".jpg", ".jpeg", ".webp")


def console(*, stderr: bool = False) -> "Console":
    """Returns a rich console. On standard output that is not a terminal, it has 160 columns."""
    from rich.console import Console

    class OurConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # reader_may_leave handles it; rich would exit with 1

    if stderr:
        return OurConsole(stderr=True)
    return OurConsole(highlight=False, width=None if sys.stdout.isatty() else 160)


def set_up_process() -> None:
    """Escape characters that standard output or error cannot encode. Set HOME if it is missing.

    Pillow's warnings about corrupt images are not shown; the errors name the images.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    if not os.path.isabs(os.path.expanduser("~")):
        from gnet_jax.config.paths import temporary_home

        # Libraries look for settings and caches in HOME, and some raise an error without it.
        os.environ["HOME"] = str(temporary_home())
        print_error(f"no home folder is known for this user; HOME is set to {os.environ['HOME']}")


def print_no_access(prog: str, error: OSError) -> int:
    """Print the file that this user may not access, or whose path is too long for any file.

    Returns the exit code for wrong input. Raises any other error, or one that names no file, again.
    """
    from gnet_jax.config.paths import as_text

    too_long = error.errno == errno.ENAMETOOLONG
    if error.filename is None or not (too_long or isinstance(error, PermissionError)):
        raise error
    name, reason = as_text(str(error.filename)), error.strerror
    if too_long:
        listed = any(map(str.isspace, str(error.filename)))  # the quoted output of a command
        fix = "; give each file separately" if listed else ""
        name, reason = f"{name[:80]}...", f"the path is too long{fix}"
    print_error(f"{prog}: error: cannot access {name}: {reason}")
    return UserError.exit_code


def print_error(text: str) -> None:
    """Print a line on standard error. Ignores errors of writing, such as a closed pipe."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Exit with code 0 if the reader of the output has closed the pipe (`| head`)."""
    try:
        try:
            yield
        finally:
            print(end="", flush=True)
    except BrokenPipeError:
        discard(sys.stdout)
        raise SystemExit(0) from None


def leave_at_once(message: str) -> NoReturn:
    """Print a message on standard error, and end the process with code 130, the code for Ctrl-C."""
    print_error(message)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(128 + signal.SIGINT)  # a normal exit can crash while threads of XLA compile


def check_picture(out: Path, kinds: tuple[str, ...] = FIGURES) -> None:
    """Raise a UserError if the folder of `out` does not exist or its suffix is not in `kinds`."""
    if not out.absolute().parent.is_dir():
        raise UserError(f"cannot write {out}: folder {out.absolute().parent} not found")
    if out.suffix.lower() not in kinds:
        raise UserError(f"cannot write {out}: use one of {', '.join(kinds)}, not {out.suffix!r}")


def check_at_least(option: str, value: int, least: int = 1) -> None:
    """Raise a UserError if the option `--option` is below `least`, or has over 32 bits."""
    if value < least:
        raise UserError(f"--{option} is {value}; it must be at least {least}")
    if value >= 2**32:
        raise UserError(f"--{option} is {value}; it must be at most {2**32 - 1}")


def check_not_input(out: Path, inputs: Iterable[str | Path], *, new: bool = False) -> None:
    """Raise a UserError if `out` exists (or is `new`) and is one of `inputs`, or is inside one."""
    places = (out.resolve(), *out.resolve().parents) if new or os.path.exists(out) else ()
    for each in inputs:
        if os.path.exists(each) and Path(each).resolve() in places:
            raise UserError(f"{out} is an input or inside one; choose another file")


def data_files(data: Iterable[str]) -> list[Path]:
    """Returns the files and folders from which images or splits of data sets may be read."""
    from gnet_jax.config.paths import typed_path
    from gnet_jax.data.sources import without_suffixes

    paths = [re.sub(r"^(folder|npz):", "", each) for each in data]
    paths += [without_suffixes(path) for path in paths]  # both may exist
    return [typed_path(p.replace("{split}", s)) for p in paths for s in ("train", "val", "test")]


def say_not_read(left_out: Mapping[str, list[str]]) -> None:
    """Print how many files were skipped for each reason, given the files of each reason."""
    if left_out:
        from gnet_jax.data.sources.folder import counted

        print(f"skipped files: {counted(left_out)}", file=sys.stderr)


def several(metavar: str, help: str | None = None) -> Any:
    """Returns tyro's settings for a positional argument with one or more values."""
    from tyro.conf import arg

    return arg(metavar=metavar, help=help, help_behavior_hint="(one or more)")
