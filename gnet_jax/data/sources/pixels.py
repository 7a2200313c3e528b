"""Arrays of pictures as people store them, and their conversion to uint8."""

import functools
import math
import multiprocessing
import sys

import numpy as np

from gnet_jax.data.sources import DataError

RANGES = ((0, 1), (-1, 1), (0, 255), (0, 65535))  # the stored values of black and white
CHUNK = 2**24  # pixels converted at once, so that there is no second large array


def check_shape(images: np.ndarray, where: str) -> np.ndarray:
    """Returns `images` as (N, H, W) or (N, H, W, 3).

    Raises:
        DataError: for any other shape, with the code that converts it if that is known.
    """
    shape = images.shape
    if len(shape) == 4 and shape[3] == 1:
        return check_shape(images[..., 0], where)
    single = len(shape) == 3 and shape[2] in (3, 4)  # one picture rather than many of width 3
    if len(shape) not in (3, 4) or shape[3:] not in ((), (3,)) or single:
        fix = _fix_shape(shape)
        raise DataError(
            f"{where} has the shape {shape}; it must be (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
            + (f"; {fix}" if fix else "")
        )
    if not images.size:
        raise DataError(f"{where} holds no pixels: its shape is {shape}")
    return images


def _fix_shape(shape: tuple[int, ...]) -> str:
    if len(shape) == 4 and shape[3] == 4:
        return "drop the transparency by x[..., :3]"
    if len(shape) == 4 and shape[1] in (1, 3):
        return "move the channels to the end by x.transpose(0, 2, 3, 1)"
    if len(shape) == 3:
        return "if it is one picture, pass x[None]"
    if len(shape) == 2:
        grey, colour = math.isqrt(shape[1]), math.isqrt(shape[1] // 3)
        if grey**2 == shape[1]:
            return f"unfold the rows by x.reshape(-1, {grey}, {grey})"
        if 3 * colour**2 == shape[1]:
            return (
                "unfold the rows by "
                f"x.reshape(-1, 3, {colour}, {colour}).transpose(0, 2, 3, 1) if they list one "
                f"channel after another, else by x.reshape(-1, {colour}, {colour}, 3)"
            )
    return ""


def is_plain(images: np.ndarray) -> bool:
    """Whether the pixels surely range from 0 to 255: uint8, and not only 0 and 1."""
    return images.dtype == np.uint8 and images.max() > 1


def find_range(images: np.ndarray, where: str) -> tuple[int, int]:
    """Returns the values of black and white, one of `RANGES`, that the pixels of a split show.

    Raises:
        DataError: if they are not finite numbers, are all the same, or fit no range or several.
    """
    low, high = _extremes(images, where)
    found = _range(low, high)
    if found is None:
        raise DataError(
            f"{where} is {images.dtype} from {low:.6g} to {high:.6g}; the values of black and "
            "white are unknown (not 0 to 1, -1 to 1, 0 to 255 or 0 to 65535). Save every split as "
            f"np.interp(x, ({low:.6g}, {high:.6g}), (0, 255)).round().astype(np.uint8), with the "
            f"values of black and white in place of {low:.6g} and {high:.6g}"
        )
    return found


def to_uint8(images: np.ndarray, black_white: tuple[int, int], where: str) -> np.ndarray:
    """Returns the pixels from 0 to 255; prints the assumed range once.

    Raises:
        DataError: if the pixels do not fit `black_white`, the range of the training split.
    """
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
    count = max(1, CHUNK // images[0].size)
    dtype = np.float64 if images.dtype.itemsize > 2 else np.float32
    for start in range(0, len(images), count):
        part = images[start : start + count].astype(dtype)
        pixels[start : start + count] = np.rint((part - black) / step)
    return pixels


def _range(low: float, high: float) -> tuple[int, int] | None:
    """Returns the range that the values fit and whose bright half (and dark half) they reach."""
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
            f"in image {bad[0]}; remove them: keep = np.isfinite(x).reshape(len(x), -1)"
            ".all(axis=1); x, y = x[keep], y[keep]"
        )
    if low == high:
        raise DataError(
            f"every pixel of {where} is {low:.6g}; save the pictures again, floats from 0 to 1 as "
            "(x * 255).round().astype(np.uint8)"
        )
    return low, high


@functools.cache  # a command may open its data several times
def _print_once(line: str) -> None:
    if multiprocessing.parent_process() is None:  # worker processes open the data again
        print(line, file=sys.stderr)
