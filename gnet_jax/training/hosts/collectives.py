"""What the hosts of a run tell each other, and what they do together; all of them must call it."""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from gnet_jax.config import UserError

Value = TypeVar("Value")


def gather(text: str) -> list[str]:
    """The `text` of every host, in the order of the hosts; all of them must call this."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([own.size], np.int32)).ravel()
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
    padded[: own.size] = own
    rows = multihost_utils.process_allgather(padded)
    return [
        row[:size].tobytes().decode("utf-8", "surrogateescape")
        for row, size in zip(rows, sizes, strict=True)
    ]


def together(action: Callable[[], Value]) -> Value:
    """What `action` gives on this host, once it has succeeded on every one; all must call this.

    Raises:
        UserError: what `action` raised here, or else the first host that it failed on, and why:
            a mistake that one host meets ends all of them, and at once.
    """
    try:
        value, mistake = action(), None
    except UserError as error:
        value, mistake = None, error
    told = gather("" if mistake is None else str(mistake) or type(mistake).__name__)
    if mistake is not None:
        raise mistake
    for host, text in enumerate(told):
        if text:
            raise UserError(f"host {host} stopped: {text}")
    return value  # pyright: ignore[reportReturnType]
