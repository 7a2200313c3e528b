"""Reads images that a user names, one by one, from files, folders, URLs and standard input."""

import http.client
import io
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from gnet_jax.config import UserError
from gnet_jax.data.decode import MAX_PIXELS, decode

MAX_DOWNLOAD = 32 * 2**20  # bytes; the limit for a URL or standard input
MAX_FILE = 4 * MAX_PIXELS  # bytes; the size of the largest supported image without compression
CHUNK = 2**16
TIMEOUT = 20.0  # seconds without a byte from a server
DEADLINE = 120.0  # seconds for a whole download
USER_AGENT = "gnet-jax (image classification; python-urllib)"  # some servers refuse the default one

LeftOut = dict[str, list[str]]  # the paths of entries that are skipped, by reason
ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray


class InputError(UserError):
    """An argument does not name a readable image."""


class Picture(NamedTuple):
    """One decoded picture, or the error if it cannot be read."""

    name: str  # the argument, or the path of the file if the argument is a folder
    picture: Image.Image | UserError


def pictures(arguments: Iterable[str], left_out: LeftOut | None = None) -> Iterator[Picture]:
    """Yields the pictures that `arguments` name, or errors. Each is read when the caller asks for
    it. An argument is a file, a folder, "-" for standard input, or a URL with http:// or https://,
    which is downloaded unless a file or folder has that name. From a folder and its subfolders, all
    image files are read, in the order of `walk`; other entries are added to `left_out`.
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
    """Returns one upright RGB picture from a path, a URL, "-" (standard input), a PIL image, or an
    array of uint8 pixels, (H, W, 3) or (H, W). Raises UserError naming an unreadable image.
    """
    if isinstance(image, np.ndarray):
        return decode(image)
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("RGB", "CMYK", "YCbCr", "LAB", "HSV"):
            return upright.convert("RGB")
        encoded = io.BytesIO()
        upright.save(encoded, "TIFF")  # `decode` converts alpha, palettes and 16-bit pixels
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
            raise InputError("is both standard input and a file; use /dev/stdin or ./-")
        image = sys.stdin.buffer.read(limit + 1)
    elif not exists and name.lower().startswith(("http://", "https://")):
        image = _download(name)
    else:
        limit = MAX_FILE
        try:
            with open(name, "rb") as file:
                image = file.read(limit + 1)
        except (OSError, ValueError) as error:  # ValueError: the name contains a NUL character
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
            while chunk := response.read1(CHUNK):  # read() would wait for all of it
                image += chunk
                if len(image) > MAX_DOWNLOAD or time.monotonic() > deadline:
                    break
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: invalid URL
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection open
        raise InputError(f"cannot be downloaded: {error}") from error
    if time.monotonic() > deadline:
        raise InputError(f"took longer than {DEADLINE:.0f} s to download")
    return bytes(image)


def _quoted(url: str) -> str:
    """Returns `url` in the ASCII form that browsers send. Raises ValueError if it is invalid."""
    parts = urllib.parse.urlsplit(url.strip())
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    # Do not quote the percent sign, because parts of the URL may be quoted already.
    path, query = (
        urllib.parse.quote(part, safe="%/:=&?~+!$,;'@()*[]", errors="surrogateescape")
        for part in (parts.path, parts.query)
    )
    return urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))
