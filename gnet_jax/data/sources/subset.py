"""A part of a source: fewer images, for experiments that have no time for all of them."""

import numpy as np

from gnet_jax.data.sources.source import DataError, Example, Source, digest


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
