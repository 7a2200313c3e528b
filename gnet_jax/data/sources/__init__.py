"""Where examples come from: `open_source` imports only the kind of source that is named."""

import hashlib
import re
from importlib.metadata import distribution
from typing import Literal, NamedTuple, Protocol

import numpy as np

from gnet_jax.config import UserError
from gnet_jax.config.paths import typed_path

LeftOut = dict[str, list[str]]  # paths of the entries that are not read, by reason
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
    left_out: LeftOut  # the entries that are not read, by the reasons in `folder.REASONS`

    @property
    def labels(self) -> np.ndarray | None:
        """(N,) integers, or None if the labels are known only after reading the records."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Returns an example; raises an ImageError if its record is known to be corrupt."""
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
    """`count` examples of a source, evenly spaced so that sorted classes all take part."""

    def __init__(self, whole: Source, count: int) -> None:
        if count < 1:
            raise DataError(f"a subset needs at least 1 image, not {count}; change the #{count}")
        self._whole = whole
        count = min(count, len(whole))
        self._places = np.arange(count) * len(whole) // count
        self.class_names, self.split, self.left_out = whole.class_names, whole.split, whole.left_out
        self.labels = None if whole.labels is None else whole.labels[self._places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Example:
        return self._whole[int(self._places[index])]

    def describe(self, index: int) -> str:
        """Returns the name of the example in the whole source."""
        return self._whole.describe(int(self._places[index]))

    def fingerprint(self) -> str:
        """Returns the whole source's fingerprint if nothing is left out, otherwise another."""
        whole = self._whole.fingerprint()
        if len(self) == len(self._whole):
            return whole
        return digest(f"{len(self)} of {whole}".encode())


class DigitsSource:
    """scikit-learn's 1,797 scans of 8x8 pixels, in a fixed shuffle: 1,437 to train."""

    class_names = tuple("0123456789")

    def __init__(self, split: Split) -> None:
        parts = {"train": slice(1437), "val": slice(1437, None)}
        if split not in parts:
            raise MissingSplitError(f"the digits have no {split} split; choose train or val")
        # sklearn.datasets reads this file too, but takes longer to import than this whole project.
        file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
        digits = np.loadtxt(str(file), delimiter=",")
        order = np.random.RandomState(0).permutation(len(digits))  # its stream is frozen
        chosen = digits[order[parts[split]]]
        self.split = split
        self.left_out: LeftOut = {}
        self._images = np.round(chosen[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
        self.labels = chosen[:, 64].astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return Example(self._images[index], int(self.labels[index]))

    def describe(self, index: int) -> str:
        """Returns its index in the split."""
        return f"digit {index} of {self.split}"

    def fingerprint(self) -> str:
        """Returns a hash of every pixel and label."""
        return digest(self._images.tobytes(), self.labels.astype("<i8").tobytes())


def open_source(spec: str, split: Split) -> Source:
    """Returns the source that `spec` names: "digits", "folder:PATH", "npz:PATH" or "tfds:NAME".

    The kind may be omitted for an existing folder and for a path that ends in .npz. "#N" after
    any of them selects N evenly spaced images of the split, or all if there are fewer. Raises
    MissingSplitError if the data have only other splits, and DataError for an unknown kind and for
    missing or invalid data.
    """
    whole, count = split_count(spec)
    if count is not None:
        return SubsetSource(open_source(whole, split), count)
    kind, _, where = spec.partition(":")
    if kind == "digits" and not where:
        return DigitsSource(split)
    if kind == "tfds" and where:
        from gnet_jax.data.sources.tfds import TfdsSource

        return TfdsSource(where, split)
    if kind not in ("folder", "npz") or not where:
        guess = "npz" if spec.lower().endswith(".npz") else ""
        kind, where = "folder" if spec and typed_path(spec).is_dir() else guess, spec
    if kind == "folder":
        from gnet_jax.data.sources.folder import FolderSource

        return FolderSource(typed_path(where), split)
    if kind == "npz":
        from gnet_jax.data.sources.npz import NpzSource

        return NpzSource(where, split)
    raise DataError(f"data source {spec!r} is none of: digits, folder:PATH, npz:PATH, tfds:NAME")


def split_count(spec: str) -> tuple[str, int | None]:
    """Splits "SOURCE#N" into the source and N, which is None if there is no count.

    If a folder called "set#2" exists, the "#2" of "folder:set#2" belongs to its name.
    """
    parts = re.fullmatch(r"(.+)#([0-9]+)", spec, re.DOTALL)  # a name may contain a newline
    path = re.sub("^(folder|npz):", "", spec)
    if parts is None or typed_path(path).is_dir():
        return spec, None
    return parts[1], int(parts[2])
