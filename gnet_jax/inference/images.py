"""Reads the images that a user names: files, folders, URLs, or - for standard input."""

import http.client
import io
import os
import string
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from gnet_jax.config import UserError
from gnet_jax.config.paths import did_you_mean
from gnet_jax.data.decode import MAX_PIXELS, decode

MAX_DOWNLOAD = 32 * 2**20  # bytes; the limit for a URL or standard input
MAX_FILE = 4 * MAX_PIXELS  # bytes; the size of the largest supported image without compression
TIMEOUT = 20.0  # seconds to wait for the next bytes from a server
USER_AGENT = "gnet-jax (image classification; python-urllib)"  # some servers refuse the default one

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray


class Picture(NamedTuple):
    """One decoded picture, or the error if it cannot be read."""

    name: str  # the argument, or the path of the file if the argument is a folder
    picture: Image.Image | UserError


def pictures(
    arguments: Iterable[str], left_out: dict[str, list[str]] | None = None
) -> Iterator[Picture]:
    """Yields the pictures that `arguments` name. Each is read when the caller asks for it.

    An argument is a file, a folder, "-" for standard input, or an HTTP(S) URL (unless a file has
    that name). A folder means all images in it and its subfolders, in the order of `walk`; its
    other files are added to `left_out`, by reason.
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
    """Returns one upright RGB picture.

    `image` is a path, a URL, "-" (standard input), a PIL image, or an array of uint8 pixels,
    (H, W, 3) or (H, W). Raises UserError, naming the image, if it cannot be read.
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


def _folder(root: str, left_out: dict[str, list[str]]) -> Iterator[Picture]:
    from gnet_jax.data.sources.folder import walk

    own: dict[str, list[str]] = {}
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
        yield Picture(path, UserError(reason))
    for reason, paths in own.items():
        left_out.setdefault(reason, []).extend(paths)


def _read(name: str) -> bytes:
    """Returns the bytes of a file, a URL or standard input; raises UserError."""
    limit = MAX_DOWNLOAD
    if name == "-":
        image = sys.stdin.buffer.read(limit + 1)
    elif not os.path.lexists(name) and name.lower().startswith(("http://", "https://")):
        image = _download(name)
    else:
        limit = MAX_FILE
        try:
            with open(name, "rb") as file:
                image = file.read(limit + 1)
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror}{did_you_mean(name)}") from error
    if len(image) > limit:
        raise UserError(f"is larger than the limit of {limit // 2**20} MB")
    return image


def _download(url: str) -> bytes:
    try:
        # Quote spaces and non-ASCII letters, but nothing that is already quoted.
        quoted = urllib.parse.quote(url.strip(), safe=string.punctuation)
        request = urllib.request.Request(quoted, headers={"User-Agent": USER_AGENT})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return response.read(MAX_DOWNLOAD + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: invalid URL
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # otherwise the connection stays open
        raise UserError(f"cannot be downloaded: {error}") from error
