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


class SubsetSource:
    """`count` images of a source, evenly spaced over it, so that sorted classes all take part.

    Raises:
        DataError: for a count below 1.
    """

    def __init__(self, whole: Source, count: int) -> None:
        if count < 1:
            raise DataError(f"a subset of {count} images is none; name at least 1 after the #")
        self._whole, self._count = whole, min(count, len(whole))
        self.class_names, self.split = whole.class_names, whole.split
        self.left_out = whole.left_out
        places = np.arange(self._count) * len(whole) // self._count
        self.labels = None if whole.labels is None else whole.labels[places]

    def __len__(self) -> int:
        return self._count

    def _place(self, index: int) -> int:
        """The index in the whole of the subset's `index`; negative ones count from the end."""
        return range(self._count)[index] * len(self._whole) // self._count

    def __getitem__(self, index: int) -> Example:
        return self._whole[self._place(index)]

    def describe(self, index: int) -> str:
        """What the whole calls the example."""
        return self._whole.describe(self._place(index))

    def fingerprint(self) -> str:
        """The whole's where nothing is left out, otherwise a hash of it and of the count."""
        whole = self._whole.fingerprint()
        if self._count == len(self._whole):
            return whole
        return digest(f"{self._count} of {whole}".encode())
