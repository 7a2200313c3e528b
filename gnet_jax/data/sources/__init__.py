"""Open sources of labelled images. Only the module for the requested kind of source is imported."""

import hashlib
import re
import shlex
from importlib.metadata import distribution
from typing import Literal, NamedTuple, Protocol

import numpy as np

from gnet_jax.config import UserError
from gnet_jax.config.bucket import check_local
from gnet_jax.config.paths import typed_path

LeftOut = dict[str, list[str]]  # paths of the skipped files and folders, by reason
Split = Literal["train", "val", "test"]


# A source with a suffix: the source, "train=" or "holdout=" or "", the number, and "%" or "".
SUBSET = re.compile(r"(.+)#(train=|holdout=|)([0-9]+)(%?)", re.DOTALL)  # a name may have newlines


class DataError(UserError):
    """The data are missing or invalid."""


class MissingSplitError(DataError):
    """The data set does not have the requested split."""


class Example(NamedTuple):
    """One labelled image."""

    image: bytes | np.ndarray  # an encoded file, or uint8 pixels (H, W) or (H, W, 3)
    label: int


class Source(Protocol):
    """A set of labelled images with random access. Several threads may read it at the same time."""

    class_names: tuple[str, ...]  # begins with the classes of the train split, if there is one
    split: str  # the split that was opened; "val" opens "test" if there is no validation split
    left_out: LeftOut  # the skipped files and folders, by the reasons in `folder.REASONS`

    @property
    def labels(self) -> np.ndarray | None:
        """All labels, (N,) integers, or None if they are known only after reading the images."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Returns an example. Raises ImageError if the source detects that it is corrupt."""
        ...

    def describe(self, index: int) -> str:
        """Returns text that identifies an example in messages."""
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
    """The examples of a source at `places`, integers (N,). `split` names the subset in messages."""

    def __init__(self, whole: Source, places: np.ndarray, split: str) -> None:
        self._whole, self._places = whole, places
        self.class_names, self.split, self.left_out = whole.class_names, split, whole.left_out
        self.labels = None if whole.labels is None else whole.labels[places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Example:
        return self._whole[int(self._places[index])]

    def describe(self, index: int) -> str:
        """Returns the name of the example in the whole source."""
        return self._whole.describe(int(self._places[index]))

    def fingerprint(self) -> str:
        """Returns a hash of the subset; it is the source's hash if the subset has all examples."""
        whole, size = self._whole.fingerprint(), len(self)
        if size == len(self._whole):
            return whole
        if np.array_equal(self._places, spaced(len(self._whole), size)):
            return digest(f"{size} of {whole}".encode())
        return digest(whole.encode(), self._places.astype("<i8"))


def without_suffixes(spec: str) -> str:
    """Returns a data source without its suffixes, such as "#train=100"."""
    while found := SUBSET.fullmatch(spec):
        spec = found[1]
    return spec


def spaced(size: int, count: int) -> np.ndarray:
    """Returns `count` evenly spaced indices, (count,), of a sequence with `size` elements."""
    return np.arange(count) * size // count


class DigitsSource:
    """scikit-learn's 1,797 digits (8x8 pixels) in a fixed random order; 1,437 are for training."""

    class_names = tuple("0123456789")

    def __init__(self, split: Split) -> None:
        parts = {"train": slice(1437), "val": slice(1437, None)}
        if split not in parts:
            raise MissingSplitError(f"the digits have no {split} split; choose train or val")
        # sklearn.datasets also reads this file, but its import takes longer than that of gnet_jax.
        file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
        digits = np.loadtxt(str(file), delimiter=",")
        order = np.random.RandomState(0).permutation(len(digits))  # the same in all NumPy versions
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
        """Returns a name such as "digit 3 of train"."""
        return f"digit {index} of {self.split}"

    def fingerprint(self) -> str:
        """Returns a hash of every pixel and label."""
        return digest(self._images.tobytes(), self.labels.astype("<i8").tobytes())


def open_source(spec: str, split: Split) -> Source:
    """Opens the data set `spec`: "digits", "folder:PATH", "npz:PATH" or "tfds:NAME".

    The prefix may be omitted for an existing folder and for a path that ends in .npz. A suffix
    selects evenly spaced images; N may be a percentage, such as 10%, and is at most the number of
    images. "#N" selects N images of every split, and "#train=N" N training images. "#holdout=N"
    validates on N training images and trains on the others, to choose hyperparameters without the
    validation split. The last two select evenly within each class if the labels are known. If there
    is a folder whose name includes the suffix, that folder is opened. Raises MissingSplitError if
    the data have only other splits, and DataError if the kind is unknown or the data are missing or
    invalid.
    """
    subset = SUBSET.fullmatch(spec)
    if subset and not typed_path(re.sub("^(folder|npz):", "", spec)).is_dir():
        whole, part, count, percent = subset.groups()
        return _open_subset(whole, part, int(count), bool(percent), split)
    kind, _, where = spec.partition(":")
    for each in (spec, where):
        check_local("the data source", each)
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
    hint = f"; prepare it: gnet prepare {spec}" if kind in ("hf", "parquet", "wds") else ""
    known = "digits, folder:PATH, npz:PATH, tfds:NAME"
    raise DataError(f"data source {spec!r} is none of {known}{hint}")


def _open_subset(spec: str, part: str, count: int, percent: bool, split: Split) -> Source:
    """Open the source of `open_source` with a suffix: `part` is "", "train=" or "holdout="."""
    holdout = part == "holdout=" and split != "test"
    whole = open_source(spec, "train" if holdout else split)
    if part and not holdout and split != "train":
        return whole
    size, text = len(whole), f"#{part}{count}{'%' if percent else ''}"
    chosen = min(size * count // 100 if percent else count, size)
    if not 1 <= chosen <= size - holdout:
        limit = f"at least 1 of the {size} images" + (", and not all of them" if holdout else "")
        raise DataError(f"{text} in the data source selects {chosen} images; it must be {limit}")
    places = spaced(size, chosen)
    if part and whole.labels is not None:
        # Evenly spaced within the classes: images in a periodic order would all be of one class.
        places = np.sort(np.argsort(whole.labels, kind="stable")[places])
    if holdout and split == "train":
        places = np.setdiff1d(np.arange(size), places)
    return SubsetSource(whole, places, "holdout" if holdout and split == "val" else whole.split)


def with_holdout(spec: str) -> str:
    """Returns the source that validates on a tenth of the training images, quoted for a shell."""
    return shlex.quote(f"{spec}#holdout=10%")


def open_splits(spec: str) -> tuple[list[Source], dict[str, MissingSplitError]]:
    """Returns a source for each split that exists, and the error for each missing split by name."""
    sources: dict[str, Source] = {}
    errors: dict[str, MissingSplitError] = {}
    splits: tuple[Split, ...] = ("train", "val", "test")
    for split in splits:
        try:
            source = open_source(spec, split)
        except MissingSplitError as error:
            errors[split] = error
        else:
            sources.setdefault(source.split, source)  # `val` may have opened the test split
    if not sources:
        raise errors["train"]
    return list(sources.values()), errors
