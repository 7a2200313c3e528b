"""Images in NumPy's .npz files: pixels, or encoded images one after another."""

import contextlib
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gnet_jax.config.paths import as_text, typed_path
from gnet_jax.data.sources import DataError, Example, LeftOut, MissingSplitError, Split, digest
from gnet_jax.data.sources.classes import find, joined, refuse_twice
from gnet_jax.data.sources.pixels import check_shape, find_range, is_plain, to_uint8

# The names that a split may have; the first that is found counts.
SPLITS: Mapping[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation", "test"),
    "test": ("test",),
}
PIXELS = ("x", "images", "image")
ENCODED = ("jpeg", "encoded")
LABELS = ("y", "labels", "label")


class NpzSource:
    """Labelled images in .npz files; nothing in them is executed.

    PATH is a name that contains {split} (`cifar10_{split}.npz`), a folder with one file per split
    (`train.npz` or `NAME_train.npz`), or one file whose keys name the split (`x_train` as in Keras,
    or `train_images`). `SPLITS` lists the names of a split.

    The arrays, by their keys:
    - `PIXELS`: (N, H, W), (N, H, W, 1) or (N, H, W, 3). They are uint8, or other numbers if the
      training split shows their range; see `pixels.RANGES`;
    - or `ENCODED`: the bytes of all image files, file i from `offsets[i]` to `offsets[i + 1]`;
    - `LABELS`: N integers from 0;
    - `class_names`: text. The default is those of the training split, or else the numbers of the
      training labels. Splits with classes in another order are matched by name; see `find`.

    The arrays stay in memory, because a compressed file cannot be mapped.

    Raises:
        MissingSplitError: if there are only other splits.
        DataError: for missing, damaged or invalid arrays, labels out of range, fewer than two
            classes, or a class without a training image.
    """

    def __init__(self, path: str, split: Split) -> None:
        self._arguments = (path, split)
        with contextlib.ExitStack() as files:
            part = train = _open_part(path, split)
            files.enter_context(part.archive)
            if split != "train":
                with contextlib.suppress(MissingSplitError):  # data only for evaluation
                    train = _open_part(path, "train")
                    files.enter_context(train.archive)
            self.split, self._name = part.split, part.describe()
            self.left_out = part.left_out(typed_path(path))
            self._offsets, self._images = _images(part, train)
            self.labels = _labels(part, len(self))
            known = _class_names(train) or _numbered(_labels(train))
            own = _class_names(part) or known
        self._check_labels(own, train=split == "train")
        self.class_names = joined(known, own)
        self.labels = np.array(find(own, self.class_names))[self.labels]

    def _check_labels(self, names: tuple[str, ...], *, train: bool) -> None:
        classes, where = len(names), self._name
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= classes))
        if len(wrong):
            raise DataError(
                f"image {wrong[0]} of {where} has label {self.labels[wrong[0]]}, but the classes "
                f"are 0 to {classes - 1}; fix the {len(wrong)} labels out of range"
            )
        if train and classes < 2:
            raise DataError(f"{where} has {classes} class; training requires at least 2")
        missing = np.setdiff1d(np.arange(classes), self.labels)
        if train and len(missing):
            raise DataError(
                f"{where} has no image of class {missing[0]} ({names[missing[0]]}) and "
                f"{len(missing)} of {classes} classes in total; number only classes with images"
            )

    def __len__(self) -> int:
        return len(self._images) if self._offsets is None else len(self._offsets) - 1

    def __getitem__(self, index: int) -> Example:
        label = int(self.labels[index])
        if self._offsets is None:
            return Example(self._images[index], label)
        start, end = self._offsets[index : index + 2]
        return Example(self._images[start:end].tobytes(), label)

    def __reduce__(self):  # a worker process reads the file again instead of copying the arrays
        return NpzSource, self._arguments

    def describe(self, index: int) -> str:
        """Returns its index in the file."""
        return f"image {index} of {self._name}"

    def fingerprint(self) -> str:
        """Returns a hash of every pixel or byte, every label and the class names."""
        offsets = () if self._offsets is None else (self._offsets.astype("<i8"),)
        head = f"{self._images.shape} {self.class_names}".encode()
        return digest(head, self._images, *offsets, self.labels.astype("<i8"))


class _Part(NamedTuple):
    """The open file of one split."""

    file: Path
    archive: np.lib.npyio.NpzFile
    split: str
    keyed: bool  # one file holds several splits; its keys contain their names

    def key(self, *names: str) -> str | None:
        """Returns the first key of this split that has one of `names`."""
        for name in names:
            for key in (f"{name}_{self.split}", f"{self.split}_{name}") if self.keyed else (name,):
                if key in self.archive:
                    return key
        return None

    def need(self, what: str, *names: str) -> tuple[np.ndarray, str]:
        """Returns the array under `key(*names)`, and its name for messages."""
        key = self.key(*names)
        if key is None:
            raise DataError(
                f"{self.file} has no {what} of the {self.split} split: its keys are "
                f"{', '.join(self.archive)}; add one of {', '.join(names)}"
            )
        return self.array(key), f"{key} in {self.file}"

    def array(self, key: str) -> np.ndarray:
        """Returns the array under `key`, contiguous."""
        try:
            return np.ascontiguousarray(self.archive[key])
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            if "allow_pickle" in str(error):
                raise DataError(
                    f"{key} in {self.file} holds Python objects, which can run code when loaded; "
                    "save numbers, or text as np.array(names, dtype=str)"
                ) from None
            raise DataError(f"{key} in {self.file} is damaged: {error}") from error

    def left_out(self, path: Path) -> LeftOut:
        """Returns the arrays in the file, and the files in the folder `path`, of no split."""
        parts, files, read = [self], [], set[Path]()
        if self.keyed:
            found = (_keyed_part(self.file, self.archive, split) for split in SPLITS)
            parts = [part for part in found if part is not None]
        if path.is_dir():
            files = _npz_files(path)
            read = {found[0] for split in SPLITS if (found := _split_files(path, split)[1])}
        used: set[str | None] = {"class_names"}
        for part in parts:
            pixels = part.key(*PIXELS)
            used |= {pixels} if pixels else {part.key(*ENCODED), part.key("offsets")}
            used.add(part.key(*LABELS))
        left_out = {
            "other key": [f"{key} in {self.file}" for key in self.archive if key not in used],
            "other file": [str(file) for file in files if file not in read],
        }
        return {reason: names for reason, names in left_out.items() if names}

    def describe(self) -> str:
        """Returns the file's path and, if it holds several splits, the key of the images."""
        key = self.key(*PIXELS, *ENCODED)
        return f"{key} in {self.file}" if self.keyed else str(self.file)


def _open_part(path: str, split: Split) -> _Part:
    """Opens the file that holds `split`."""
    names = SPLITS[split]
    wanted = " or ".join(names)
    whole = Path(path).expanduser()
    if "{split}" in path:
        for name in names:
            file = Path(str(whole).replace("{split}", name))
            if file.is_file():
                return _Part(file, _open(file), name, keyed=False)
        raise MissingSplitError(f"no file {path} with {wanted} for {{split}}")
    if whole.is_dir():
        name, found = _split_files(whole, split)
        if len(found) > 1:
            raise DataError(
                f"{whole} holds several files of the {name} split "
                f"({', '.join(file.name for file in found)}); choose by a pattern, such as "
                f"npz:{whole / found[0].name.replace(name, '{split}')}"
            )
        if not found:
            raise MissingSplitError(f"{whole} holds no .npz file whose name ends in {wanted}")
        return _Part(found[0], _open(found[0]), name, keyed=False)
    if not whole.is_file():
        raise DataError(f"{whole} not found; name a file, a folder or a {{split}}.npz")
    archive = _open(whole)
    part = _keyed_part(whole, archive, split)
    if part is not None:
        return part
    archive.close()
    keys = ", ".join(archive.files)
    if not set(archive.files).isdisjoint((*PIXELS, *ENCODED)):
        raise DataError(
            f"{whole} holds a single split (its keys are {keys}); name one file per split, such as "
            f"npz:{whole.parent}/{{split}}.npz, or their folder"
        )
    raise MissingSplitError(f"{whole} has no images of {wanted}; its keys are {keys}")


def _keyed_part(file: Path, archive: np.lib.npyio.NpzFile, split: Split) -> _Part | None:
    parts = (_Part(file, archive, name, keyed=True) for name in SPLITS[split])
    return next((part for part in parts if part.key(*PIXELS, *ENCODED)), None)


def _split_files(folder: Path, split: Split) -> tuple[str, list[Path]]:
    """Returns the first name of `split` that files in `folder` end in, and these files."""
    for name in SPLITS[split]:
        ends = tuple(f"{sign}{name}" for sign in "_-.")
        files = [f for f in _npz_files(folder) if f.stem == name or f.stem.endswith(ends)]
        if files:
            return name, files
    return "", []


def _npz_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() == ".npz")


def _open(file: Path) -> np.lib.npyio.NpzFile:
    if not zipfile.is_zipfile(file):
        raise DataError(f"{file} is not an .npz file or is cut short; save it again with np.savez")
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {file}: {error}") from error


def _images(part: _Part, train: _Part) -> tuple[np.ndarray | None, np.ndarray]:
    """Returns (None, uint8 pixels (N, H, W) or (N, H, W, 3)) or (offsets (N + 1,), bytes)."""
    images, where = part.need("images", *PIXELS, *ENCODED)
    if part.key(*PIXELS) is not None:
        images = check_shape(images, where)
        if is_plain(images):
            return None, images
        return None, to_uint8(images, _training_range(part, train, images), where)
    if images.dtype != np.uint8 or images.ndim != 1:
        raise DataError(
            f"{where} is {images.dtype} of shape {images.shape}, but must be (N,) uint8"
        )
    offsets, where = part.need("offsets", "offsets")
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 2:
        raise DataError(
            f"{where} is {offsets.dtype} of shape {offsets.shape}; N images need N + 1 integers"
        )
    offsets = offsets.astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != len(images) or (np.diff(offsets) < 0).any():
        raise DataError(
            f"{where} goes from {offsets[0]} to {offsets[-1]}; it must rise from 0 to "
            f"{len(images)}, the number of bytes"
        )
    return offsets, images


def _training_range(part: _Part, train: _Part, images: np.ndarray) -> tuple[int, int]:
    """Returns the values of black and white in the training split, which hold for every split."""
    if train is part or train.key(*PIXELS) is None:
        return find_range(images, part.describe())
    pixels, where = train.need("images", *PIXELS)
    # A dark split of floats would also fit 0 to 255.
    if (pixels.dtype.kind == "f") != (images.dtype.kind == "f"):
        raise DataError(
            f"{part.describe()} holds {images.dtype} pixels, but {where} {pixels.dtype}; save both "
            "as uint8 from 0 to 255"
        )
    return (0, 255) if is_plain(pixels) else find_range(pixels, where)


def _labels(part: _Part, count: int | None = None) -> np.ndarray:
    """Returns the labels, (N,) int64; `count`, if given, is the required N."""
    labels, where = part.need("labels", *LABELS)
    if labels.dtype.kind not in "iu" or (labels.ndim, labels.shape[1:]) not in ((1, ()), (2, (1,))):
        raise DataError(
            f"{where} is {labels.dtype} of shape {labels.shape}, but must be integers of shape "
            "(N,); convert floats by y.astype(np.int64), one-hot rows by y.argmax(axis=1), and "
            "text by class_names, y = np.unique(y, return_inverse=True)"
        )
    if count is not None and len(labels) != count:
        raise DataError(f"{where} holds {len(labels)} labels for {count} images")
    return labels.reshape(-1).astype(np.int64)


def _class_names(part: _Part) -> tuple[str, ...] | None:
    if "class_names" not in part.archive:
        return None
    where = f"class_names in {part.file}"
    names = part.array("class_names")
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise DataError(f"{where} is {names.dtype} of shape {names.shape}, but must be (K,) text")
    try:
        texts = [name.decode() if isinstance(name, bytes) else name for name in names.tolist()]
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8: {error}") from error
    texts = tuple(map(as_text, texts))
    refuse_twice(texts, where)
    return texts


def _numbered(labels: np.ndarray) -> tuple[str, ...]:
    """Returns the numbers up to the largest label, at most N + 1: an absurd label is an error."""
    return tuple(map(str, range(min(int(labels.max(initial=-1)) + 1, len(labels) + 1))))
