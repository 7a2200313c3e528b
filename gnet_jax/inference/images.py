"""Opens the images that a user gives: files, folders, URLs, data sets, arrays, PIL images.

All entries that take images from users use this module, so all accept and refuse the same.
"""

import http.client
import io
import os
import re
import string
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile

from gnet_jax.config import UserError
from gnet_jax.config.paths import did_you_mean
from gnet_jax.data.batches import read_example
from gnet_jax.data.decode import MAX_PIXELS, TURNS, ImageError, decode, image_format
from gnet_jax.data.metadata import ORIENTATION
from gnet_jax.data.sources import Source, Split, open_source

MAX_DOWNLOAD = 32 * 2**20  # bytes; the limit for a URL or standard input
MAX_FILE = 4 * MAX_PIXELS  # bytes; the size of the largest supported image without compression
TIMEOUT = 20.0  # seconds to wait for the next bytes from a server
USER_AGENT = "gnet-jax (image classification; python-urllib)"  # some servers refuse the default one

ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
DATA_SET = re.compile(r"digits(#[^/]*)?|(folder|npz|tfds):.+", re.DOTALL)


class Picture(NamedTuple):
    """One decoded picture, or the error if it cannot be read."""

    name: str  # path or URL; for other images, text such as "images[2]"
    picture: Image.Image | UserError
    label: int | None = None  # its class, if it is from a data set

    def opened(self) -> Image.Image:
        """Returns the picture. Raises the error, with the name of the image."""
        if isinstance(self.picture, UserError):
            raise UserError(f"{self.name}: {self.picture}") from self.picture
        return self.picture


class Pictures(Sequence[Picture]):
    """The pictures that a user names. Each is read when it is asked for.

    `images` is an image or a list of them. Each is what `open_picture` takes, a folder, or the name
    of a data set, of which `split` is read. A folder means all images in it and its subfolders, in
    the order of `walk`. The skipped files are in `left_out`, by reason. `several` is
    False for a single image. `class_names` are those of the data set if `images` is only one.
    """

    def __init__(self, images: ImageLike | Sequence[ImageLike], *, split: Split = "val") -> None:
        self.several = isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4
        self.class_names: tuple[str, ...] | None = None
        self._openers: list[Callable[[], Picture]] = []
        given: Any = images if self.several else [images]
        self.left_out: dict[str, list[str]] = {}
        for number, image in enumerate(given):
            path = os.fspath(image) if isinstance(image, str | os.PathLike) else ""
            if DATA_SET.fullmatch(path) and not os.path.lexists(path):
                source = open_source(path, split)
                self._openers += [partial(_example, source, i) for i in range(len(source))]
                _add(source.left_out, self.left_out)
                self.class_names = source.class_names if len(given) == 1 else None
            elif path != "-" and os.path.isdir(path):
                if path == "digits":
                    print(
                        "reading the folder digits, not the data set digits; digits#100% is that",
                        file=sys.stderr,
                    )
                self._openers += _folder(path, self.left_out)
            else:
                name = path or (f"images[{number}]" if self.several else "the image")
                self._openers.append(partial(_picture, name, image))
                continue
            self.several = True

    def __len__(self) -> int:
        return len(self._openers)

    def __getitem__(self, index: int) -> Picture:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._openers[index]()


def open_picture(image: ImageLike) -> Image.Image:
    """Returns one upright RGB picture.

    `image` is the path or URL of a file (an existing file wins), "-" (standard input), the bytes of
    a file, a PIL image, or an array of uint8 pixels, (H, W, 3) or (H, W). Raises UserError, with
    the path or URL, if the image cannot be read.
    """
    named = isinstance(image, str | os.PathLike)
    return _picture(os.fspath(image) if named else "the image", image).opened()


def _picture(name: str, image: ImageLike) -> Picture:
    try:
        return Picture(name, _decoded(image))
    except UserError as error:
        return Picture(name, error)


def _decoded(image: ImageLike) -> Image.Image:
    if isinstance(image, Image.Image):
        file = _unread_file(image)
        return _upright(image) if image_format(file) is None else decode(file)
    if isinstance(image, str | os.PathLike):
        return decode(_read(os.fspath(image)))
    if isinstance(image, bytes):
        return decode(image)
    if not hasattr(image, "__array__"):
        raise ImageError(
            f"not an image but a {type(image).__name__}; give a path, a URL, the bytes of a file, "
            "a PIL image, an array of uint8 pixels, or a list of these"
        )
    return decode(np.asarray(image))


def _unread_file(image: Image.Image) -> bytes:
    """Returns the bytes of the file of a PIL image that is opened but not yet loaded, or b"".

    `decode` knows more about the file than the PIL image does, such as how many bits it uses.
    """
    if not isinstance(image, ImageFile.ImageFile) or image.fp is None:  # load() sets it to None
        return b""
    if image.tell() or image.decoderconfig:  # a later frame, or a draft of another size or mode
        return b""
    try:
        position = image.fp.tell()
        image.fp.seek(0)
        file = image.fp.read()
        image.fp.seek(position)  # the PIL image remains usable
    except (OSError, ValueError) as error:  # ValueError: the file is closed
        raise ImageError(f"a PIL image whose file cannot be read: {error}") from error
    return file


def _upright(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise ImageError(
            f"a PIL image of mode {image.mode}, whose black and white are unknown; scale its "
            "values to 0 ... 255 and convert it to mode L"
        )
    try:
        # ImageOps.exif_transpose also rewrites the other EXIF tags, and fails if one is malformed.
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
        upright = image.copy() if turn is None else image.transpose(turn)
        if upright.mode in ("RGB", "CMYK", "YCbCr", "LAB", "HSV"):
            return upright.convert("RGB")
        if upright.mode in ("La", "RGBa"):  # TIFF has no premultiplied colours
            upright = upright.convert(upright.mode.upper())
        encoded = io.BytesIO()
        upright.save(encoded, "TIFF")  # `decode` converts alpha, palettes and 16-bit pixels
    except (OSError, SyntaxError, ValueError) as error:  # an opened file is decoded only now
        raise ImageError(f"a corrupt image: {error}") from error
    return decode(encoded.getvalue())


def _example(source: Source, index: int) -> Picture:
    try:
        image, label = read_example(source, index)
        return Picture(source.describe(index), decode(image), label)
    except ImageError as error:
        return Picture(source.describe(index), error)


def _folder(root: str, left_out: dict[str, list[str]]) -> Iterator[Callable[[], Picture]]:
    from gnet_jax.data.sources.folder import walk

    own: dict[str, list[str]] = {}
    unreadable: list[OSError] = []
    empty = True
    for path in walk(root, own, unreadable.append):
        empty = False
        yield partial(_picture, path, path)
    reasons = {str(error.filename): f"cannot be read: {error.strerror}" for error in unreadable}
    reasons |= dict.fromkeys(own.pop("broken link", []), "is a broken link")
    if empty and not reasons:
        odd = len(own.get("unsupported format", []))
        fix = f"; convert its files of unsupported formats ({odd}) to JPEG" if odd else ""
        reasons[root] = f"the folder contains no images{fix}"
    for path, reason in reasons.items():
        yield partial(Picture, path, UserError(reason))
    _add(own, left_out)


def _add(found: Mapping[str, list[str]], left_out: dict[str, list[str]]) -> None:
    for reason, paths in found.items():
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
        except ValueError as error:  # a NUL or a character that file names cannot have
            raise UserError(f"cannot be read: the path is invalid ({error})") from error
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
