"""What a source of examples is."""

import hashlib
from typing import Literal, NamedTuple, Protocol

import numpy as np

from gnet_jax.config import UserError
from gnet_jax.data.sources.walk import LeftOut

Split = Literal["train", "val", "test"]


class DataError(UserError):
    """Data that cannot be used."""


class MissingSplitError(DataError):
    """A split that the data do not have."""


class Example(NamedTuple):
    """One labelled image, still encoded where its source has it encoded."""

    image: bytes | np.ndarray  # encoded bytes, or uint8 pixels (H, W) or (H, W, 3)
    label: int


class Source(Protocol):
    """A labelled image set with random access; safe to read from several threads."""

    class_names: tuple[str, ...]  # where there is a train split, its classes come first
    split: str  # the split that is read: where a set has no validation split, val may read test
    left_out: LeftOut  # what is there and is not read, by the reasons in `walk.REASONS`

    @property
    def labels(self) -> np.ndarray | None:
        """(N,) integers, the label of each example; None if only reading them tells."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """An example; an ImageError where its record is known to be damaged."""
        ...

    def describe(self, index: int) -> str:
        """What to call an example in a message."""
        ...

    def fingerprint(self) -> str:
        """A short hash that changes when examples, labels or their order change."""
        ...


def digest(*parts: bytes | np.ndarray) -> str:
    """A short hash of the bytes of `parts`, one after another; arrays must be contiguous."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(memoryview(part))  # pyright: ignore[reportArgumentType]
    return whole.hexdigest()[:16]
