"""What a source of examples is."""

import hashlib
from typing import Literal, NamedTuple, Protocol

import numpy as np

from gnet_jax.config import UserError

Split = Literal["train", "val", "test"]


class DataError(UserError):
    """Data that cannot be used."""


class Example(NamedTuple):
    """One labelled image, still encoded where its source has it encoded."""

    image: bytes | np.ndarray  # encoded bytes, or uint8 pixels (H, W) or (H, W, 3)
    label: int


class Source(Protocol):
    """A labelled image set with random access; safe to read from several threads."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def describe(self, index: int) -> str:
        """What to call an example in a message."""
        ...

    def fingerprint(self) -> str:
        """A short hash that changes when examples, labels or their order change."""
        ...


def digest(*parts: bytes) -> str:
    """A short hash of `parts`, one after another."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()[:16]
