"""Images in NumPy's .npz files: pixels, or encoded images one after another."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from gnet_jax.config.paths import as_text, typed_path
from gnet_jax.data.sources.classes import find, joined, refuse_twice
from gnet_jax.data.sources.pixels import check_shape, find_range, is_plain, to_uint8
from gnet_jax.data.sources.source import DataError, Example, MissingSplitError, Split, digest
from gnet_jax.data.sources.walk import LeftOut

# What a split may be called, the first that is found counts.
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

    PATH is one of
    - a name with {split} in it, one file a split: `cifar10_{split}.npz`;
    - a folder of one file a split: `train.npz`, or `NAME_train.npz`;
    - one file whose keys name the split: `x_train`, `y_train`, `x_test`, `y_test` as in Keras, or
      `train_images`, `train_labels`.
    The validation split is val (or valid, validation) where there is one, otherwise test.

    The arrays, by their keys:
    - `x`, `images` or `image`: pixels (N, H, W), (N, H, W, 1) or (N, H, W, 3), uint8; or other
      numbers if those of the training split tell their range (0 to 1, -1 to 1, 0 to 255, or 0 to
      65535), which a line on standard error names;
    - or `jpeg` or `encoded`: the bytes of all image files one after another, file i from
      `offsets[i]` to `offsets[i + 1]`;
    - `y`, `labels` or `label`: N integers from 0;
    - `class_names`, if the classes have names: text. Without them those of the training split are
      taken, or there are as many classes as the training labels number.
    Splits that name their classes in different orders are matched by name: all take the order of
    train, and what they have besides comes last.

    The arrays are held in memory, pixels as uint8: a compressed file cannot be mapped.

    Raises:
        MissingSplitError: if there are only other splits.
        DataError: for arrays that are missing, damaged or unfit, labels out of range, fewer than
            two classes, or a class without a training image.
    """

    def __init__(self, path: str, split: Split) -> None:
        self._given = (path, split)
        with _Part.of(path, split) as part:
            self.split, self._where = part.split, part.describe()
            self.left_out = part.left_out(typed_path(path))
            self._offsets, self._images = _images(part, path)
            self.labels = _labels(part, len(self))
            own = _class_names(part)
        if split == "train":
            known = own or _numbered(self.labels)
        else:
            try:
                with _Part.of(path, "train") as part:
                    known = _class_names(part) or _numbered(_labels(part))
            except MissingSplitError:  # data to evaluate on alone
                known = own or _numbered(self.labels)
        own = own or known
        self._check_labels(own, complete=split == "train")
        self.class_names = joined(known, own)
        self.labels = np.array(find(own, self.class_names))[self.labels]

    def _check_labels(self, names: tuple[str, ...], *, complete: bool) -> None:
        classes, where = len(names), self._where
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= classes))
        if len(wrong):
            raise DataError(
                f"image {wrong[0]} of {where} has label {self.labels[wrong[0]]}, but the classes "
                f"are 0 to {classes - 1}; mend the {len(wrong)} labels out of range"
            )
        if complete and classes < 2:
            raise DataError(f"{where} holds one class only; 2 are needed")
        present = np.unique(self.labels)
        if complete and len(present) < classes:
            first = next(i for i in range(classes) if i >= len(present) or present[i] != i)
            raise DataError(
                f"{where} has no image of class {first} ({names[first]}), and of "
                f"{classes - len(present)} of {classes} classes in all; number only classes that "
                "have images"
            )

    def __len__(self) -> int:
        return len(self._images) if self._offsets is None else len(self._offsets) - 1

    def __getitem__(self, index: int) -> Example:
        label = int(self.labels[index])
        if self._offsets is None:
            return Example(self._images[index], label)
        first, end = self._offsets[index : index + 2]
        return Example(self._images[first:end].tobytes(), label)

    def __reduce__(self):  # a worker process reads the file again, not a copy through a pipe
        return NpzSource, self._given

    def describe(self, index: int) -> str:
        """Its place in the file."""
        return f"image {index} of {self._where}"

    def fingerprint(self) -> str:
        """Hash of every pixel or byte, every label and the class names."""
        offsets = () if self._offsets is None else (self._offsets.astype("<i8"),)
        head = f"{self._images.shape} {self.class_names}".encode()
        return digest(head, self._images, *offsets, self.labels.astype("<i8"))


class _Part(NamedTuple):
    """The open file of one split."""

    file: Path
    archive: np.lib.npyio.NpzFile
    split: str
    keyed: bool  # one file of several splits, told by its keys

    @classmethod
    def of(cls, path: str, split: Split) -> Self:
        """The part of the data in `path` that holds `split`."""
        names = SPLITS[split]
        wanted = " or ".join(names)
        whole = Path(path).expanduser()
        # What exists is no pattern: a file or a folder may be named {split}.
        there = next(each for each in (whole, *whole.parents) if each.exists())
        pattern = str(whole.relative_to(there))
        if "{split}" in pattern:
            files = {name: there / pattern.replace("{split}", name) for name in names}
            for name, file in files.items():
                if file.is_file():
                    return cls(file, _opened(file), name, keyed=False)
            raise MissingSplitError(f"there is no file {path} with {wanted} for {{split}}")
        if whole.is_dir():
            for name in names:
                found = [file for file in _npz_files(whole) if _is_of(file, name)]
                if len(found) > 1:
                    raise DataError(
                        f"{whole} holds several files of the {name} split "
                        f"({', '.join(file.name for file in found)}); name them by a pattern, "
                        f"such as npz:{whole / found[0].name.replace(name, '{split}')}"
                    )
                if found:
                    return cls(found[0], _opened(found[0]), name, keyed=False)
            raise MissingSplitError(f"{whole} holds no .npz file whose name ends in {wanted}")
        if not whole.is_file():
            raise DataError(f"there is no file {whole}; name a file, a folder or a {{split}}.npz")
        archive = _opened(whole)
        for name in names:
            part = cls(whole, archive, name, keyed=True)
            if part.key(*PIXELS, *ENCODED):
                return part
        keys = ", ".join(archive)
        archive.close()
        if any(key in (*PIXELS, *ENCODED) for key in keys.split(", ")):
            raise DataError(
                f"{whole} holds one split only (its keys are {keys}); name one file for each, such "
                f"as npz:{whole.parent}/{{split}}.npz, or their folder"
            )
        raise MissingSplitError(f"{whole} has no images of {wanted}; its keys are {keys}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.archive.close()

    def key(self, *names: str) -> str | None:
        """The first of `names` that the file has for this split."""
        for name in names:
            for key in (f"{name}_{self.split}", f"{self.split}_{name}") if self.keyed else (name,):
                if key in self.archive:
                    return key
        return None

    def array(self, key: str) -> np.ndarray:
        """The array under `key`, contiguous."""
        try:
            return np.ascontiguousarray(self.archive[key])
        except ValueError as error:
            if "allow_pickle" not in str(error):
                raise DataError(f"{key} in {self.file} is damaged: {error}") from error
            raise DataError(
                f"{key} in {self.file} holds Python objects, and to read those can run code; save "
                "numbers, or text as np.array(names, dtype=str)"
            ) from None
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{key} in {self.file} is damaged: {error}") from error

    def need(self, what: str, *names: str) -> str:
        """As `key`, but an error where there is none."""
        key = self.key(*names)
        if key is None:
            raise DataError(
                f"{self.file} has no {what} of the {self.split} split: its keys are "
                f"{', '.join(self.archive)}; wanted is one of {', '.join(names)}"
            )
        return key

    def keys(self) -> set[str | None]:
        """The keys that are read for this split."""
        pixels = self.key(*PIXELS)
        images = {pixels} if pixels else {self.key(*ENCODED), self.key("offsets")}
        return {*images, self.key(*LABELS), "class_names"}

    def left_out(self, path: Path) -> LeftOut:
        """The arrays in the file, and the files in the folder `path`, that no split reads."""
        parts, files = [self], _npz_files(path) if path.is_dir() else []
        if self.keyed:
            first = [(self._replace(split=name) for name in names) for names in SPLITS.values()]
            found = [next((p for p in each if p.key(*PIXELS, *ENCODED)), None) for each in first]
            parts = [part for part in found if part is not None]
        used = set[str | None]().union(*(part.keys() for part in parts))
        read = {
            next((file for name in names for file in files if _is_of(file, name)), None)
            for names in SPLITS.values()
        }
        left_out = {
            "other key": [f"{key} in {self.file}" for key in self.archive if key not in used],
            "other file": [str(file) for file in files if file not in read],
        }
        return {reason: names for reason, names in left_out.items() if names}

    def describe(self) -> str:
        """The file, and in a file of several splits the key of the images."""
        key = self.key(*PIXELS, *ENCODED)
        return f"{key} in {self.file}" if self.keyed else str(self.file)


def _opened(file: Path) -> np.lib.npyio.NpzFile:
    if not zipfile.is_zipfile(file):
        raise DataError(f"{file} is no .npz file, or is cut short; make it again with np.savez")
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} cannot be read: {error}") from error


def _npz_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() == ".npz")


def _is_of(file: Path, split: str) -> bool:
    """Whether the file's name is the split's, or ends in it after a sign."""
    return file.stem == split or file.stem.endswith(tuple(f"{sign}{split}" for sign in "_-."))


def _images(part: _Part, path: str) -> tuple[np.ndarray | None, np.ndarray]:
    """None and uint8 pixels (N, H, W) or (N, H, W, 3); or offsets (N + 1,) and bytes."""
    key = part.need("images", *PIXELS, *ENCODED)
    images, where = part.array(key), f"{key} in {part.file}"
    if part.key(*PIXELS) is not None:
        images = check_shape(images, where)
        if is_plain(images):
            return None, images
        return None, to_uint8(images, _training_range(part, path, images), where)
    if images.dtype != np.uint8:
        raise DataError(f"{where} is {images.dtype}; it must be uint8")
    if images.ndim != 1:
        raise DataError(
            f"{where} has the shape {images.shape}; encoded images are one row of bytes"
        )
    key = part.need("offsets", "offsets")
    offsets, where = part.array(key), f"{key} in {part.file}"
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


def _training_range(part: _Part, path: str, images: np.ndarray) -> tuple[int, int]:
    """The values of black and white: every split is converted as the training split is.

    Only data to evaluate on alone, without a training split, tell their own.
    """
    if part.split != "train":
        try:
            with _Part.of(path, "train") as train:
                key = train.key(*PIXELS)
                if key is not None:
                    pixels = train.array(key)
                    # Integers tell their range, and so do floats, but a dark float split fits 255.
                    if (pixels.dtype.kind == "f") != (images.dtype.kind == "f"):
                        raise DataError(
                            f"{part.describe()} holds {images.dtype} pixels, but {key} in "
                            f"{train.file} {pixels.dtype}; save both as uint8 from 0 to 255"
                        )
                    if is_plain(pixels):
                        return 0, 255
                    return find_range(pixels, f"{key} in {train.file}")
        except MissingSplitError:
            pass
    return find_range(images, part.describe())


def _labels(part: _Part, count: int | None = None) -> np.ndarray:
    """(N,) int64; `count`, where given, is what N must be."""
    key = part.need("labels", *LABELS)
    labels, where = part.array(key), f"{key} in {part.file}"
    if labels.dtype.kind not in "iu" or (labels.ndim, labels.shape[1:]) not in ((1, ()), (2, (1,))):
        remedy = "of one-hot rows take y.argmax(axis=1)"
        if labels.ndim == 1 and labels.dtype.kind in "US":
            remedy = (
                "of text take names, y = np.unique(y, return_inverse=True), and save the names as "
                "class_names"
            )
        elif labels.ndim == 1:
            remedy = "take y.astype(np.int64)"
        raise DataError(
            f"{where} is {labels.dtype} of shape {labels.shape}; it must be integers of shape "
            f"(N,); {remedy}"
        )
    if count is not None and len(labels) != count:
        raise DataError(f"{where} holds {len(labels)} labels for {count} images; they must agree")
    return labels.reshape(-1).astype(np.int64)


def _class_names(part: _Part) -> tuple[str, ...] | None:
    if "class_names" not in part.archive:
        return None
    names = part.array("class_names")
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise DataError(
            f"class_names in {part.file} is {names.dtype} of shape {names.shape}; it must be one "
            "row of text"
        )
    try:
        texts = [name.decode() if isinstance(name, bytes) else name for name in names.tolist()]
    except UnicodeDecodeError as error:
        raise DataError(f"class_names in {part.file} is not UTF-8: {error}") from error
    texts = list(map(as_text, texts))
    refuse_twice(texts, f"class_names in {part.file}")
    return tuple(texts)


def _numbered(labels: np.ndarray) -> tuple[str, ...]:
    """As many as the labels number; an absurd label is left to the check of the labels."""
    return tuple(map(str, range(min(int(labels.max(initial=-1)) + 1, len(labels) + 1))))
