"""Images that a user names, read one by one: files, folders, URLs and standard input."""

import http.client
import io
import os
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from gnet_jax.config import UserError
from gnet_jax.data.decode import MAX_PIXELS, decode

MAX_DOWNLOAD = 32 * 2**20  # bytes, of a URL or standard input
MAX_FILE = 4 * MAX_PIXELS  # bytes; the largest picture that is decoded, stored without compression
CHUNK = 2**16
TIMEOUT = 20.0  # seconds without a byte from a server
DEADLINE = 120.0  # seconds for a whole download
USER_AGENT = "gnet-jax (image classification; python-urllib)"  # some servers refuse urllib's own

LeftOut = dict[str, list[str]]  # paths of the entries that are not read, by reason
ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray


class InputError(UserError):
    """An argument that gives no image."""


class Picture(NamedTuple):
    """One decoded picture, or the reason why there is none."""

    name: str  # the argument, or the path of a file in a folder
    picture: Image.Image | UserError


def pictures(arguments: Iterable[str], left_out: LeftOut | None = None) -> Iterator[Picture]:
    """Yields the pictures that `arguments` name, or why there is none, reading each when asked for.
    "-" is standard input, and http:// and https:// are downloaded, unless a file or folder has that
    name. A folder gives the image files in it and below it, as `walk` does; `left_out` receives its
    other entries.
    """
    for name in arguments:
        if name != "-" and os.path.isdir(name):
            yield from _folder(name, {} if left_out is None else left_out)
        else:
            yield _picture(name)


def _picture(name: str) -> Picture:
    try:
        return Picture(name, decode(_read(name)))
    except UserError as error:
        return Picture(name, error)


def open_picture(image: ImageLike) -> Image.Image:
    """Returns one upright RGB picture of a path, a URL, "-", a PIL image, or uint8 pixels (H, W, 3)
    or (H, W). Raises UserError naming what cannot be read.
    """
    if isinstance(image, np.ndarray):
        return decode(image)
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("RGB", "CMYK", "YCbCr", "LAB", "HSV"):
            return upright.convert("RGB")
        encoded = io.BytesIO()
        upright.save(encoded, "TIFF")  # decode handles alpha, palettes and 16 bits
        return decode(encoded.getvalue())
    name, picture = _picture(os.fspath(image))
    if isinstance(picture, UserError):
        raise UserError(f"{name}: {picture}")
    return picture


def _folder(root: str, left_out: LeftOut) -> Iterator[Picture]:
    from gnet_jax.data.sources.folder import walk

    own: LeftOut = {}
    unreadable: list[OSError] = []
    empty = True
    for path in walk(root, own, unreadable.append):
        empty = False
        yield _picture(path)
    reasons = {str(error.filename): f"cannot be read: {error.strerror}" for error in unreadable}
    reasons |= dict.fromkeys(own.pop("broken link", []), "is a broken link")
    if empty and not reasons:
        reasons[root] = "the folder contains no images"
    for path, reason in reasons.items():
        yield Picture(path, InputError(reason))
    for reason, paths in own.items():
        left_out.setdefault(reason, []).extend(paths)


def _read(name: str) -> bytes:
    """Returns the bytes of a file, a URL or standard input; raises InputError."""
    limit, exists = MAX_DOWNLOAD, os.path.lexists(name)
    if name == "-":
        if exists:
            raise InputError("is standard input and also a file; write ./- or /dev/stdin")
        image = sys.stdin.buffer.read(limit + 1)
    elif not exists and name.lower().startswith(("http://", "https://")):
        image = _download(name)
    else:
        limit = MAX_FILE
        try:
            with open(name, "rb") as file:
                image = file.read(limit + 1)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot be read: {reason}") from error
    if len(image) > limit:
        raise InputError(f"is larger than the limit of {limit // 2**20} MB")
    return image


def _download(url: str) -> bytes:
    deadline = time.monotonic() + DEADLINE
    image = bytearray()
    try:
        request = urllib.request.Request(_quoted(url), headers={"User-Agent": USER_AGENT})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            while chunk := response.read1(CHUNK):  # read() would wait until a slow server ends
                image += chunk
                if len(image) > MAX_DOWNLOAD or time.monotonic() > deadline:
                    break
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a bad URL
        raise InputError(f"cannot be downloaded: {error}") from error
    if time.monotonic() > deadline:
        raise InputError(f"took longer than {DEADLINE:.0f} s to download")
    return bytes(image)


def _quoted(url: str) -> str:
    """Returns `url` in the ASCII form that browsers send; raises ValueError for a bad host."""
    parts = urllib.parse.urlsplit(url.strip())
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    # The percent sign is safe because parts of the URL may be quoted already.
    path, query = (
        urllib.parse.quote(part, safe="%/:=&?~+!$,;'@()*[]", errors="surrogateescape")
        for part in (parts.path, parts.query)
    )
    return urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))
