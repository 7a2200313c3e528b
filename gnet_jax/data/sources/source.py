"""The interface of a source of examples."""

import hashlib
from typing import Literal, NamedTuple, Protocol

import numpy as np

from gnet_jax.config import UserError
from gnet_jax.data.sources.walk import LeftOut

Split = Literal["train", "val", "test"]


class DataError(UserError):
    """Data that cannot be used."""


class MissingSplitError(DataError):
    """The data do not have the split."""


class Example(NamedTuple):
    """One labelled image."""

    image: bytes | np.ndarray  # an encoded file, or uint8 pixels (H, W) or (H, W, 3)
    label: int


class Source(Protocol):
    """A labelled image set with random access that several threads may read."""

    class_names: tuple[str, ...]  # the classes of the train split, if there is one, come first
    split: str  # the split that is read: "val" reads "test" in a set without a validation split
    left_out: LeftOut  # the entries that are not read, by the reasons in `walk.REASONS`

    @property
    def labels(self) -> np.ndarray | None:
        """(N,) integers, or None if the labels are known only after reading the records."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Returns an example; raises an ImageError if its record is known to be damaged."""
        ...

    def describe(self, index: int) -> str:
        """Returns the name of an example for messages."""
        ...

    def fingerprint(self) -> str:
        """Returns a short hash that changes when examples, labels or their order change."""
        ...


def digest(*parts: bytes | np.ndarray) -> str:
    """Returns a short hash of the concatenated bytes of `parts`; arrays must be contiguous."""
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(memoryview(part))  # pyright: ignore[reportArgumentType]
    return sha256.hexdigest()[:16]


class SubsetSource:
    """`count` examples of a source, evenly spaced so that sorted classes all take part.

    Raises:
        DataError: if `count` is below 1.
    """

    def __init__(self, whole: Source, count: int) -> None:
        if count < 1:
            raise DataError(f"a subset needs at least 1 image, not {count}; change the #{count}")
        self._whole = whole
        self._indices = range(min(count, len(whole)))
        self.class_names, self.split, self.left_out = whole.class_names, whole.split, whole.left_out
        places = np.arange(len(self)) * len(whole) // len(self)
        self.labels = None if whole.labels is None else whole.labels[places]

    def __len__(self) -> int:
        return len(self._indices)

    def _place(self, index: int) -> int:
        return self._indices[index] * len(self._whole) // len(self)

    def __getitem__(self, index: int) -> Example:
        return self._whole[self._place(index)]

    def describe(self, index: int) -> str:
        """Returns the name of the example in the whole source."""
        return self._whole.describe(self._place(index))

    def fingerprint(self) -> str:
        """Returns the whole source's fingerprint if nothing is left out, otherwise another."""
        whole = self._whole.fingerprint()
        if len(self) == len(self._whole):
            return whole
        return digest(f"{len(self)} of {whole}".encode())
