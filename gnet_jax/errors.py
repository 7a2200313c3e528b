"""The errors that users see, and how an unknown choice is refused."""

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """A mistake that one sentence explains; commands print it and exit with code 2."""


class WeightsError(UserError):
    """A file of weights is missing, corrupt or does not fit."""


def choose(what: str, name: str, options: Mapping[str, T]) -> T:
    """Returns `options[name]`, or raises a UserError with the field `what` and the choices."""
    if name not in options:
        raise UserError(f"{what} is {name!r}; choose one of {', '.join(options)}")
    return options[name]
