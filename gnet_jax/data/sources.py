"""Where examples come from, behind one interface."""

import hashlib
import itertools
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

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


class DigitsSource:
    """scikit-learn's digits: 1,797 scans of 8x8 pixels, 1,437 to train and 360 to validate.

    The split is a fixed shuffle, so that both parts hold every writer.
    """

    def __init__(self, split: Split) -> None:
        from sklearn.datasets import load_digits

        if split == "test":
            raise DataError("the digits have no test split; take train or val")
        digits: Any = load_digits()
        order = np.random.RandomState(0).permutation(len(digits.target))  # its stream is frozen
        chosen = order[:1437] if split == "train" else order[1437:]
        self.class_names = tuple(str(name) for name in digits.target_names)
        self._images = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
        self._labels = digits.target[chosen]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        return Example(self._images[index], int(self._labels[index]))

    def describe(self, index: int) -> str:
        """Its place in the split."""
        return f"digit {index}"

    def fingerprint(self) -> str:
        """Hash of every pixel and label."""
        return _digest(self._images.tobytes(), self._labels.astype("<i8").tobytes())


class FolderSource:
    """A folder `train/CLASS/*`, `val/CLASS/*` (and, to evaluate, `test/CLASS/*`) of image files.

    Classes are in alphabetical order.

    Raises:
        DataError: for a missing split, fewer than two classes, or an empty class.
    """

    SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})

    def __init__(self, root: Path, split: Split) -> None:
        folder = root / split
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}; images are looked for in {split}/CLASS/")
        self.class_names = tuple(
            sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
        )
        if len(self.class_names) < 2:
            raise DataError(f"{folder} holds {len(self.class_names)} class folders; 2 are needed")
        self._files: list[tuple[Path, int]] = []
        for label, name in enumerate(self.class_names):
            files = sorted(filter(self._is_image, (folder / name).iterdir()))
            if not files:
                raise DataError(f"the class folder {folder / name} holds no image files")
            self._files += [(path, label) for path in files]

    def _is_image(self, path: Path) -> bool:
        hidden = path.name.startswith(".")  # such as the ._1.jpg that macOS leaves behind
        return path.suffix.lower() in self.SUFFIXES and not hidden and path.is_file()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        path, label = self._files[index]
        return Example(path.read_bytes(), label)

    def describe(self, index: int) -> str:
        """Its path."""
        return str(self._files[index][0])

    def fingerprint(self) -> str:
        """Hash of every file's class, name and length in bytes."""
        lines = (
            f"{path.parent.name}/{path.name} {path.stat().st_size}\n" for path, _ in self._files
        )
        return _digest(*(line.encode() for line in lines))


class TfdsSource:
    """A prepared TensorFlow Datasets image classification set in array_record files.

    It is read by random access without TensorFlow; images stay encoded. The validation split is
    "validation" where the set has one, otherwise "test".

    Raises:
        DataError: if the set is not prepared, is not classification, or has no such split.
    """

    def __init__(self, name: str, split: Split) -> None:
        import tensorflow_datasets as tfds

        try:
            data_dir = os.environ.get("TFDS_DATA_DIR")  # tfds itself reads it at import alone
            builder: Any = tfds.builder(name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError as error:
            raise DataError(f"tensorflow-datasets knows no data set named {name!r}") from error
        if not builder.is_prepared():
            raise DataError(
                f"{name} is not prepared in {builder.data_dir}; run `tfds build {name} "
                "--file_format=array_record`, or set TFDS_DATA_DIR to where it is"
            )
        splits = sorted(builder.info.splits)
        wanted = ("validation", "test") if split == "val" else (split,)
        chosen = next((s for s in wanted if s in splits), None)
        if chosen is None:
            raise DataError(f"{name} has no split {' or '.join(wanted)}; it has {splits}")
        features = builder.info.features
        if features is None or not {"image", "label"} <= set(features):
            raise DataError(f"{name} is no image classification set: its features are {features}")
        decoders = {"image": tfds.decode.SkipDecoding()}
        self._examples = builder.as_data_source(split=chosen, decoders=decoders)
        self._info = builder.info.splits[chosen]
        if len(self._examples) != self._info.num_examples:
            raise DataError(
                f"{name}/{chosen} has {len(self._examples)} examples on disk, but its metadata "
                f"say {self._info.num_examples}; prepare it again"
            )
        self.class_names = tuple(features["label"].names)
        self._identity = f"{builder.info.full_name} {chosen} {self._info.shard_lengths}"

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        example = self._examples[index]
        return Example(example["image"], int(example["label"]))

    def describe(self, index: int) -> str:
        """Its place in the split."""
        return f"example {index} of {self._identity}"

    def fingerprint(self) -> str:
        """Hash of the set's name and version, the split, its shards, and its first 100 examples."""
        first = (self[i] for i in range(min(100, len(self))))
        parts = ((np.asarray(e.image).tobytes(), bytes([e.label & 255])) for e in first)
        return _digest(self._identity.encode(), *itertools.chain.from_iterable(parts))


def open_source(spec: str, split: Split) -> Source:
    """The source that `spec` names: "digits", "folder:PATH" (or just the path) or "tfds:NAME".

    Raises:
        DataError: for an unknown kind, or data that is missing or unfit.
    """
    kind, _, where = spec.partition(":")
    if kind == "digits" and not where:
        return DigitsSource(split)
    if kind == "folder" and where:
        return FolderSource(Path(where).expanduser(), split)
    if kind == "tfds" and where:
        return TfdsSource(where, split)
    if spec and Path(spec).expanduser().is_dir():
        return FolderSource(Path(spec).expanduser(), split)
    raise DataError(f"data source {spec!r} is none of: digits, folder:PATH, tfds:NAME")


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
