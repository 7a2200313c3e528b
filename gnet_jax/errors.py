"""Errors that users see, the rejection of unknown names, and output that cannot be written."""

import difflib
import os
from collections.abc import Iterable, Mapping
from typing import TextIO, TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """An error that the user can fix. Commands print its message without a traceback, and exit."""

    exit_code = 2  # 1 if the same command may succeed later, so that --supervise repeats it


def choose(what: str, name: str, options: Mapping[str, T]) -> T:
    """Returns `options[name]`. Raises UserError if it is missing; `what` is the field's name."""
    if name not in options:
        raise UserError(f"{what} is {name!r}; choose one of {', '.join(options)}")
    return options[name]


def suggestion(name: str, known: Iterable[str]) -> str:
    """Returns the end of an error message: the known name closest to `name`, or all names."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    if len(known) > 40:  # too many to read
        known = [*difflib.get_close_matches(name, known, 5, 0), f"and {len(known) - 5} others"]
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


def discard(stream: TextIO) -> None:
    """Discard a stream's output. Otherwise Python would fail to flush it and exit with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or the name of its class if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]
