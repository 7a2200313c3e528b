"""The base class of errors that users see, and `choose`, which rejects unknown names."""

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """A mistake of the user. Commands print its message without a traceback, and exit with 2."""


def choose(what: str, name: str, options: Mapping[str, T]) -> T:
    """Returns `options[name]`. Raises UserError if it is missing; `what` is the field's name."""
    if name not in options:
        raise UserError(f"{what} is {name!r}; choose one of {', '.join(options)}")
    return options[name]
