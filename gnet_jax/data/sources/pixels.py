"""Arrays of pictures as people store them: which are uint8 pixels, and which can be made so."""

import functools
import math
import multiprocessing
import sys

import numpy as np

from gnet_jax.data.sources.source import DataError

RANGES = ((0, 1), (-1, 1), (0, 255), (0, 65535))  # black and white, as they are stored
CHUNK = 2**24  # pixels that are converted at once, so that no second large array is needed


def check_shape(images: np.ndarray, where: str) -> np.ndarray:
    """`images` as (N, H, W) or (N, H, W, 3).

    Raises:
        DataError: for any other shape, with the code that makes it one of those if that is known.
    """
    shape = images.shape
    if len(shape) == 4 and shape[3] == 1:
        return check_shape(images[..., 0], where)
    narrow = len(shape) == 3 and shape[2] in (3, 4)  # rather one picture than many of width 3
    if len(shape) not in (3, 4) or shape[3:] not in ((), (3,)) or narrow:
        remedy = _remedy(shape)
        raise DataError(
            f"{where} has the shape {shape}; it must be (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
            + (f"; {remedy}" if remedy else "")
        )
    if not images.size:
        raise DataError(f"{where} holds no pixels: its shape is {shape}")
    return images


def _remedy(shape: tuple[int, ...]) -> str:
    if len(shape) == 4:
        known = {
            shape[3] == 4: "drop the transparency by x[..., :3]",
            shape[3] == 2: "keep the grey channel by x[..., 0]",
            shape[2] == 3: "images go first: np.moveaxis(x, -1, 0)",
            shape[1] == 4: "channels go last, without transparency: x[:, :3].transpose(0, 2, 3, 1)",
            shape[1] == 2: "keep the grey channel by x[:, 0]",
            shape[1] in (1, 3): "channels go last: x.transpose(0, 2, 3, 1)",
        }
        return known.get(True, "")
    if len(shape) == 3:
        return "if it is one picture: x[None]"
    if len(shape) == 2:
        for channels in (1, 3):
            side = math.isqrt(shape[1] // channels)
            if channels * side**2 == shape[1]:
                if channels == 1:
                    return f"unfold the rows by x.reshape(-1, {side}, {side})"
                return (
                    "unfold the rows, of channels one after another by "
                    f"x.reshape(-1, 3, {side}, {side}).transpose(0, 2, 3, 1), of pixels one after "
                    f"another by x.reshape(-1, {side}, {side}, 3)"
                )
    return ""


def is_plain(images: np.ndarray) -> bool:
    """Whether these are pixels of 0 to 255 beyond doubt: uint8, and not only 0 and 1."""
    return images.dtype == np.uint8 and images.max() > 1


def find_range(images: np.ndarray, where: str) -> tuple[int, int]:
    """The values of black and white, one of `RANGES`, that the pixels of a split tell.

    Raises:
        DataError: if they are not finite numbers, are all the same, or could be of several ranges.
    """
    low, high = _extremes(images, where)
    found = _range(low, high)
    if found is None:
        raise DataError(
            f"{where} is {images.dtype} from {low:.6g} to {high:.6g}, so that the values of black "
            "and white are not known (not 0 to 1, -1 to 1, 0 to 255 or 0 to 65535); save every "
            f"split as np.interp(x, ({low:.6g}, {high:.6g}), (0, 255)).round().astype(np.uint8), "
            f"with what black and white are for {low:.6g} and {high:.6g}"
        )
    return found


def to_uint8(images: np.ndarray, black_white: tuple[int, int], where: str) -> np.ndarray:
    """The pixels from 0 to 255; a line says on standard error what was assumed.

    Args:
        images: finite numbers.
        black_white: that the training split tells.
        where: names the array.

    Raises:
        DataError: if this split does not have that range.
    """
    low, high = _extremes(images, where)
    black, white = black_white
    step = (white - black) / 255
    own = _range(low, high)
    if low <= black - step / 2 or high >= white + step / 2 or own not in (black_white, None):
        raise DataError(
            f"{where} is {images.dtype} from {low:.6g} to {high:.6g}, but the training split has "
            f"values from {black} to {white}; save all splits alike, as uint8 from 0 to 255"
        )
    _say(f"{where}: {images.dtype} pixels are read with {black} as black and {white} as white")
    pixels = np.empty(images.shape, np.uint8)
    count = max(1, CHUNK // images[0].size)
    dtype = np.float64 if images.dtype.itemsize > 2 else np.float32
    for first in range(0, len(images), count):
        part = images[first : first + count].astype(dtype)
        pixels[first : first + count] = np.rint((part - black) / step)
    return pixels


def _range(low: float, high: float) -> tuple[int, int] | None:
    """The one of `RANGES` that values from `low` to `high` fit and reach the bright end of."""
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
        odd = [i for i, image in enumerate(images) if not np.isfinite(image).all()]
        raise DataError(
            f"{where} has pixels that are not finite in {len(odd)} of {len(images)} images, first "
            f"in image {odd[0]}; leave those out: keep = np.isfinite(x).reshape(len(x), -1)"
            ".all(axis=1); x, y = x[keep], y[keep]"
        )
    if low == high:
        raise DataError(
            f"every pixel of {where} is {low:.6g}; save the pictures again, floats from 0 to 1 as "
            "(x * 255).round().astype(np.uint8)"
        )
    return low, high


@functools.cache  # a command opens its data more than once
def _say(line: str) -> None:
    if multiprocessing.parent_process() is None:  # workers open them again
        print(line, file=sys.stderr)
