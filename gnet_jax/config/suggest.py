"""What to answer to a name that is not known."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from gnet_jax.config.fields import UserError

T = TypeVar("T")


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of an error: the name of `known` that was meant, or else all that there are."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


def choose(what: str, name: str, options: Mapping[str, T]) -> T:
    """Returns `options[name]`; no option is the default.

    Args:
        what: the field that holds `name`, for the message.
        name: the choice.
        options: what each known choice stands for.

    Raises:
        UserError: naming the field, its value and the known choices.
    """
    if name not in options:
        raise UserError(f"{what} is {name!r}; choose one of {', '.join(options)}")
    return options[name]
