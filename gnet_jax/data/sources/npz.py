"""Read images from NumPy's .npz files, which contain pixels or concatenated encoded images."""

import contextlib
import functools
import math
import multiprocessing
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gnet_jax.config.paths import as_text, typed_path
from gnet_jax.data.sources import DataError, Example, LeftOut, MissingSplitError, Split, digest
from gnet_jax.data.sources.classes import find, joined, refuse_twice

# The names that a split can have in a key or file name. The first name that is found is used.
SPLITS: Mapping[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation", "test"),
    "test": ("test",),
}
PIXELS = ("x", "images", "image")
ENCODED = ("jpeg", "encoded")
LABELS = ("y", "labels", "label")
RANGES = ((0, 1), (-1, 1), (0, 255), (0, 65535))  # the possible (black, white) of pixel values


class NpzSource:
    """Labelled images in .npz files. No code in the files is executed.

    `path` is a name that contains {split} (`cifar10_{split}.npz`), a folder with `train.npz` and so
    on, or one file whose keys contain the split (`x_train` as in Keras, or `train_images`).

    The images are one array. If its name is in `PIXELS`, its shape is (N, H, W), (N, H, W, 1) or
    (N, H, W, 3), and its values have one of the `RANGES`. If its name is in `ENCODED`, it has the
    bytes of N image files: file i is `offsets[i]` to `offsets[i + 1]`. The labels are N integers
    >= 0; their array's name is in `LABELS`. The train split defines the range and default classes.
    """

    def __init__(self, path: str, split: Split) -> None:
        self._arguments = (path, split)
        self.left_out: LeftOut = {}
        with contextlib.ExitStack() as files:
            part = train = _open_part(path, split)
            files.enter_context(part.archive)
            if split != "train":
                with contextlib.suppress(MissingSplitError):  # there may be no train split
                    train = _open_part(path, "train")
                    files.enter_context(train.archive)
            self.split, self._name = part.split, part.describe()
            self._offsets, self._images = _images(part, train)
            self.labels = _labels(part, len(self))
            known = _class_names(train)
            if known is None:  # "0" to the largest label, but at most as many names as images
                labels = _labels(train)
                known = tuple(map(str, range(min(labels.max(initial=-1), len(labels)) + 1)))
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
        missing = np.setdiff1d(np.arange(classes), self.labels)
        if train and (classes < 2 or len(missing)):
            raise DataError(
                f"{where} has {classes} class(es), {len(missing)} without an image "
                f"({', '.join(names[i] for i in missing[:5])}); training requires at least 2 "
                "classes, each with images; renumber the labels to leave no class empty"
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
        """Returns a name such as "image 3 of data.npz"."""
        return f"image {index} of {self._name}"

    def fingerprint(self) -> str:
        """Returns a hash of the images (pixels or bytes), the labels and the class names."""
        offsets = () if self._offsets is None else (self._offsets.astype("<i8"),)
        head = f"{self._images.shape} {self.class_names}".encode()
        return digest(head, self._images, *offsets, self.labels.astype("<i8"))


class _Part(NamedTuple):
    """One split in an open .npz file."""

    file: Path
    archive: np.lib.npyio.NpzFile
    split: str
    keyed: bool  # whether the keys contain the name of the split, because the file has several

    def key(self, *names: str) -> str | None:
        """Returns the key of the first of `names` that is in the file for this split, or None."""
        for name in names:
            for key in (f"{name}_{self.split}", f"{self.split}_{name}") if self.keyed else (name,):
                if key in self.archive:
                    return key
        return None

    def need(self, what: str, *names: str) -> tuple[np.ndarray, str]:
        """Returns the array of `key(*names)`, and text for messages. DataError if it is missing."""
        key = self.key(*names)
        if key is None:
            raise DataError(
                f"{self.file} has no {what} of the {self.split} split: its keys are "
                f"{', '.join(self.archive)}; add one of {', '.join(names)}"
            )
        return self.array(key), f"{key} in {self.file}"

    def array(self, key: str) -> np.ndarray:
        """Loads the array that is stored under `key`, and makes it contiguous."""
        try:
            return np.ascontiguousarray(self.archive[key])
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            if "allow_pickle" in str(error):
                raise DataError(
                    f"{key} in {self.file} has Python objects, which can run code when loaded; "
                    "save numbers, or text as np.array(names, dtype=str)"
                ) from None
            raise DataError(f"{key} in {self.file} is corrupt: {error}") from error

    def describe(self) -> str:
        """Returns the file's path, preceded by the images' key if the file has several splits."""
        key = self.key(*PIXELS, *ENCODED)
        return f"{key} in {self.file}" if self.keyed else str(self.file)


def _open_part(path: str, split: Split) -> _Part:
    names = SPLITS[split]
    wanted = " or ".join(names)
    whole = typed_path(path)
    if whole.is_dir():
        whole /= "{split}.npz"
    if "{split}" in str(whole):
        for name in names:
            file = Path(str(whole).replace("{split}", name))
            if file.is_file():
                return _Part(file, _open(file), name, keyed=False)
        raise MissingSplitError(f"{whole} not found; tried {wanted} for {{split}}")
    if not whole.is_file():
        raise DataError(f"{whole} not found; give a file, a folder, or a name with {{split}}")
    archive = _open(whole)
    parts = (_Part(whole, archive, name, keyed=True) for name in names)
    part = next((part for part in parts if part.key(*PIXELS, *ENCODED)), None)
    if part is None:
        archive.close()
        raise MissingSplitError(
            f"{whole} has no images of {wanted}; its keys are {', '.join(archive.files)}. Use "
            f"keys such as x_train, or one file per split: npz:{whole.parent}/{{split}}.npz"
        )
    return part


def _open(file: Path) -> np.lib.npyio.NpzFile:
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile):
        if zipfile.is_zipfile(file):
            return np.load(file, allow_pickle=False)
    raise DataError(f"{file} is not an .npz file or is truncated; save it again with np.savez")


def _images(part: _Part, train: _Part) -> tuple[np.ndarray | None, np.ndarray]:
    """Returns None and uint8 pixels (N, H, W[, 3]). If encoded: offsets (N + 1,) and bytes."""
    images, where = part.need("images", *PIXELS, *ENCODED)
    if part.key(*PIXELS) is not None:
        images = _check_shape(images, where)
        if not _is_plain(images):
            images = _to_uint8(images, _training_range(part, train, images), where)
        return None, images
    if images.dtype != np.uint8 or images.ndim != 1:
        raise DataError(
            f"{where} is {images.dtype} of shape {images.shape}, but must be (N,) uint8"
        )
    offsets, where = part.need("offsets", "offsets")
    integers = offsets.ndim == 1 and offsets.dtype.kind in "iu" and len(offsets) > 1
    ends = (0, len(images))
    if not integers or (offsets[0], offsets[-1]) != ends or (offsets[1:] < offsets[:-1]).any():
        raise DataError(
            f"{where} is {offsets.dtype} of shape {offsets.shape}; N images require N + 1 "
            f"increasing integers from 0 to {len(images)}, the number of bytes"
        )
    return offsets.astype(np.int64), images


def _training_range(part: _Part, train: _Part, images: np.ndarray) -> tuple[int, int]:
    """Returns the range of the training split's pixels: one of `RANGES`, as (black, white)."""
    where = part.describe()
    if train is not part and train.key(*PIXELS) is not None:
        own, where_own = images, where
        images, where = train.need("images", *PIXELS)
        # Without this check, floats from 0 to 1 could be read as dark pixels of the range 0 to 255.
        if (images.dtype.kind == "f") != (own.dtype.kind == "f"):
            raise DataError(
                f"{where_own} has {own.dtype} pixels, but {where} has {images.dtype} pixels; save "
                "both as uint8 from 0 to 255"
            )
        if _is_plain(images):
            return 0, 255
    low, high = _extremes(images, where)
    found = _range(low, high)
    if found is None:
        raise DataError(
            f"{where} is {images.dtype} from {low:.6g} to {high:.6g}; the values of black and "
            "white are unknown (not 0 to 1, -1 to 1, 0 to 255 or 0 to 65535). Save every split as "
            f"np.interp(x, ({low:.6g}, {high:.6g}), (0, 255)).round().astype(np.uint8), with the "
            f"values of black and white instead of {low:.6g} and {high:.6g}"
        )
    return found


def _labels(part: _Part, count: int | None = None) -> np.ndarray:
    """Loads the labels, (N,) int64. Raises DataError if `count` is given and N differs."""
    labels, where = part.need("labels", *LABELS)
    if labels.dtype.kind not in "iu" or (labels.ndim, labels.shape[1:]) not in ((1, ()), (2, (1,))):
        raise DataError(
            f"{where} is {labels.dtype} of shape {labels.shape}, but must be integers of shape "
            "(N,); convert floats with y.astype(np.int64), one-hot rows with y.argmax(axis=1), and "
            "text with class_names, y = np.unique(y, return_inverse=True)"
        )
    if count is not None and len(labels) != count:
        raise DataError(f"{where} has {len(labels)} labels for {count} images")
    return labels.reshape(-1).astype(np.int64)


def _class_names(part: _Part) -> tuple[str, ...] | None:
    if "class_names" not in part.archive:
        return None
    where, names = f"class_names in {part.file}", part.array("class_names")
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise DataError(f"{where} is {names.dtype} of shape {names.shape}, but must be (K,) text")
    if names.dtype.kind == "S":
        names = np.array([name.decode(errors="surrogateescape") for name in names.tolist()])
    texts = tuple(map(as_text, names.tolist()))
    refuse_twice(texts, where)
    return texts


def _check_shape(images: np.ndarray, where: str) -> np.ndarray:
    """Returns `images` as (N, H, W) or (N, H, W, 3). Raises DataError for any other shape."""
    shape = images.shape
    if len(shape) == 4 and shape[3] == 1:
        return _check_shape(images[..., 0], where)
    single = len(shape) == 3 and shape[2] in (3, 4)  # probably one RGB image, not N of width 3
    if len(shape) not in (3, 4) or shape[3:] not in ((), (3,)) or single:
        raise DataError(
            f"{where} has the shape {shape}; it must be (N, H, W), (N, H, W, 1) or (N, H, W, 3). "
            "x[..., :3] drops the transparency, x.transpose(0, 2, 3, 1) moves the channels to the "
            "end, x[None] adds the axis N to a single image, x.reshape(-1, H, W) unflattens grey "
            "images, and x.reshape(-1, 3, H, W).transpose(0, 2, 3, 1) unflattens RGB images"
        )
    if not images.size:
        raise DataError(f"{where} has no pixels: its shape is {shape}")
    return images


def _is_plain(images: np.ndarray) -> bool:
    """Returns whether 0 is black and 255 white: pixels are uint8, and some are greater than 1."""
    return images.dtype == np.uint8 and images.max() > 1


def _to_uint8(images: np.ndarray, black_white: tuple[int, int], where: str) -> np.ndarray:
    """Converts pixels to uint8, and prints `black_white`, the values that mean black and white."""
    low, high = _extremes(images, where)
    black, white = black_white
    step = (white - black) / 255
    own = _range(low, high)
    if low <= black - step / 2 or high >= white + step / 2 or own not in (black_white, None):
        raise DataError(
            f"{where} is {images.dtype} from {low:.6g} to {high:.6g}, but the training split has "
            f"values from {black} to {white}; save all splits as uint8 from 0 to 255"
        )
    _print_once(f"{where}: {images.dtype} pixels are read with {black} as black, {white} as white")
    pixels = np.empty(images.shape, np.uint8)
    dtype = np.float64 if images.dtype.itemsize > 2 else np.float32
    for index, image in enumerate(images):  # one at a time, to save memory
        pixels[index] = np.rint((image.astype(dtype) - black) / step)
    return pixels


def _range(low: float, high: float) -> tuple[int, int] | None:
    """Returns the first range in `RANGES` that pixels from `low` to `high` fit, or None.

    `high` must be in the range's upper half. For -1 to 1: `high` above 0.5, and `low` below -0.5.
    """
    for black, white in RANGES:
        step, middle = (white - black) / 255, (black + white) / 2
        fits = low > black - step / 2 and high < white + step / 2
        reached = high > (middle + white) / 2 if black < 0 else high > middle
        if fits and reached and (black == 0 or low < (middle + black) / 2):
            return black, white
    return None


def _extremes(images: np.ndarray, where: str) -> tuple[float, float]:
    if images.dtype.kind not in "biuf":
        raise DataError(f"{where} is {images.dtype}; pixels must be uint8 from 0 to 255")
    low, high = float(images.min()), float(images.max())
    if not math.isfinite(low) or not math.isfinite(high):
        bad = [i for i, image in enumerate(images) if not np.isfinite(image).all()]
        raise DataError(
            f"{where} has pixels that are not finite in {len(bad)} of {len(images)} images, first "
            f"in image {bad[0]}; remove these images: keep = np.isfinite(x).reshape(len(x), -1)"
            ".all(axis=1); x, y = x[keep], y[keep]"
        )
    if low == high:
        raise DataError(f"every pixel of {where} is {low:.6g}; save uint8 pixels from 0 to 255")
    return low, high


@functools.cache  # a command may open its data several times
def _print_once(line: str) -> None:
    if multiprocessing.parent_process() is None:  # worker processes do not repeat it
        print(line, file=sys.stderr)
