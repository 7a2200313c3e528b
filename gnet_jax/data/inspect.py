"""What one example is: its bytes, its size, whether it can be decoded, and what is odd about it."""

import hashlib
import io
import threading
import warnings
import zlib
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
from PIL import Image

from gnet_jax.data.decode import ImageError, decode, known_formats, opening
from gnet_jax.data.sources import Source
from gnet_jax.data.sources.walk import SUFFIXES

SMALL_SIDE = 32  # pixels: below it an image is called small
LONG_ASPECT = 4  # longer side / shorter side: above it an image is called narrow
_QUIET = threading.Lock()  # catch_warnings changes the filters of all threads


class Facts(NamedTuple):
    """What was found out about an example."""

    label: int | None  # None where it cannot be read
    length: int  # bytes
    crc32: int
    sha256: bytes  # of its bytes, cut to 16
    size: tuple[int, int] | None  # (width, height), upright; None where it cannot be decoded
    bad: str | None  # why it cannot be used
    odd: tuple[tuple[str, str], ...]  # kinds of oddity, and of each what it is in this image


def inspect(source: Source, index: int) -> Facts:
    """Read and decode the example `index` of `source`; nothing about it is an error here."""
    try:
        image, label = source[index]
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        return Facts(None, 0, 0, b"", None, reason, ())
    except ImageError as error:  # a record that its source knows to be damaged
        return Facts(None, 0, 0, b"", None, str(error), ())
    if isinstance(image, bytes):
        data, shape = image, b""
    else:
        data, shape = image.tobytes(), str(image.shape).encode()
    identity = hashlib.sha256(shape + data).digest()[:16]
    known = label, len(data), zlib.crc32(data), identity
    try:
        size = decode(image).size
    except ImageError as error:
        return Facts(*known, None, str(error), ())
    odd = [*_odd_sizes(*size)]
    if isinstance(image, np.ndarray):
        odd += [("grey", "")] if image.ndim == 2 else []
    else:
        odd += _odd_encoding(image, source.describe(index))
    return Facts(*known, size, None, tuple(odd))


def _odd_sizes(width: int, height: int) -> list[tuple[str, str]]:
    short, long = sorted((width, height))
    found = []
    if short < SMALL_SIDE:
        found.append((f"a side below {SMALL_SIDE} pixels", f"{width}x{height}"))
    if long > LONG_ASPECT * short:
        found.append((f"longer than {LONG_ASPECT} : 1", f"{width}x{height}"))
    return found


def _odd_encoding(image: bytes, name: str) -> list[tuple[str, str]]:
    """Of an image that can be decoded."""
    found = []
    with opening(image) as (picture, _, orientation, tiff):
        expected = SUFFIXES.get(PurePath(name).suffix.lower())
        if expected is not None and picture.format != expected:
            found.append(("a format other than its suffix says", str(picture.format)))
        mode = picture.mode
        if mode == "CMYK":
            found.append(("CMYK", ""))
        if mode in ("1", "L", "LA", "I") or mode.startswith("I;16"):
            found.append(("grey", ""))
        if mode in ("P", "PA"):
            found.append(("palette", ""))
        if mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            found.append(("transparent", ""))
        # Of 16-bit colour Pillow tells in the raw mode alone.
        raw = str(picture.tile[0].args) if picture.tile else ""
        bits = tiff.bits if tiff else 16
        if bits > 8 and (mode == "I" or mode.startswith("I;16") or ";16" in raw):
            found.append((f"{bits} bit", ""))
    found += _pictures(image)
    if orientation != 1:
        found.append(("turned by EXIF", ""))
    return found


def _pictures(image: bytes) -> list[tuple[str, str]]:
    """How many there are, which metadata tell."""
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's, of metadata that it cannot read
        try:
            opened = Image.open(io.BytesIO(image), formats=known_formats())
        except Exception as error:  # Pillow lets out whatever odd metadata make its parsers raise
            return [("metadata that cannot be read", str(error))]
        try:
            with opened:
                pictures = getattr(opened, "n_frames", 1)
        except Exception as error:  # and what a cut file does
            return [("several pictures, the later ones damaged", str(error))]
    return [("several pictures", str(pictures))] if pictures > 1 else []
