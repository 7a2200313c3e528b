"""Command-line arguments to pictures: files, folders, URLs and standard input.

Everything is lazy, and what cannot be had is an item like any other: it carries its name and the
reason, and the rest goes on.
"""

import http.client
import os
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from PIL import Image

from gnet_jax.config import UserError
from gnet_jax.data.decode import MAX_PIXELS, ImageError, decode
from gnet_jax.data.sources.walk import LeftOut, walk

MAX_DOWNLOAD = 32 * 2**20  # bytes, of a URL or standard input
MAX_FILE = 4 * MAX_PIXELS  # bytes; the largest picture that is decoded, stored without compression
CHUNK = 2**16
TIMEOUT = 20.0  # seconds without a byte from a server
DEADLINE = 120.0  # seconds for a whole download
USER_AGENT = "gnet-jax (image classification; python-urllib)"  # some servers refuse urllib's own


class InputError(UserError):
    """An argument that gives no image."""


class Found(NamedTuple):
    """One image that an argument named, still encoded, or why there is none."""

    name: str  # the argument, or the path of a file in a folder
    image: bytes | InputError


class Picture(NamedTuple):
    """One decoded picture, or why there is none."""

    name: str
    picture: Image.Image | UserError


def expand(arguments: Iterable[str], left_out: LeftOut | None = None) -> Iterator[Found]:
    """The images that `arguments` name, in their order, each read when it is asked for.

    A folder gives every image file in it and below it, as `walk` does; of what format it is, its
    content tells. "-" is standard input, http:// and https:// are fetched, unless there is a file
    or a folder of that name.

    Args:
        left_out: receives what is in the folders and is no image file.
    """
    left_out = {} if left_out is None else left_out
    for argument in arguments:
        if argument == "-":
            both = InputError("means standard input, but is also a file; say ./- or /dev/stdin")
            exists = os.path.lexists(argument)
            yield Found(argument, both if exists else _read(sys.stdin.buffer, MAX_DOWNLOAD))
        elif os.path.isdir(argument):
            yield from _folder(argument, left_out)
        elif not os.path.lexists(argument) and _is_url(argument):
            yield Found(argument, _fetched(argument))
        else:
            yield Found(argument, _file(argument))


def _is_url(argument: str) -> bool:
    return argument.lower().startswith(("http://", "https://"))


def pictures(arguments: Iterable[str], left_out: LeftOut | None = None) -> Iterator[Picture]:
    """`expand`, decoded."""
    for name, image in expand(arguments, left_out):
        if isinstance(image, InputError):
            yield Picture(name, image)
            continue
        try:
            yield Picture(name, decode(image))
        except ImageError as error:
            yield Picture(name, error)


def _folder(root: str, left_out: LeftOut) -> Iterator[Found]:
    own: LeftOut = {}
    unreadable: list[OSError] = []
    empty = True
    for path in walk(root, own, unreadable.append):
        empty = False
        yield Found(path, _file(path))
    for error in unreadable:
        yield Found(str(error.filename), InputError(f"cannot be read: {error.strerror}"))
    for path in own.pop("broken link", []):
        yield Found(path, InputError("is a broken link"))
        empty = False
    if empty and not unreadable:
        yield Found(root, InputError("the folder holds no images"))
    for reason, paths in own.items():
        left_out.setdefault(reason, []).extend(paths)


def _file(path: str) -> bytes | InputError:
    try:
        with open(path, "rb") as file:
            return _read(file, MAX_FILE)
    except FileNotFoundError:
        return InputError("there is no such file or folder")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return InputError(f"cannot be read: {getattr(error, 'strerror', None) or error}")


def _read(stream: BinaryIO, limit: int) -> bytes | InputError:
    image = stream.read(limit + 1)
    return image if len(image) <= limit else _too_large(limit)


def _too_large(limit: int) -> InputError:
    return InputError(f"is larger than {limit // 2**20} MB, the most that is read")


def _fetched(url: str) -> bytes | InputError:
    """What the server sends, whatever it calls it: the decoder judges by content."""
    deadline = time.monotonic() + DEADLINE
    image = bytearray()
    try:
        request = urllib.request.Request(_quoted(url), headers={"User-Agent": USER_AGENT})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            while chunk := response.read1(CHUNK):  # read() would wait for a slow drip to the end
                image += chunk
                if len(image) > MAX_DOWNLOAD:
                    return _too_large(MAX_DOWNLOAD)
                if time.monotonic() > deadline:
                    return InputError(f"took longer than {DEADLINE:.0f} s to download")
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a bad URL
        return InputError(f"cannot be downloaded: {error}")
    return bytes(image)


def _quoted(url: str) -> str:
    """`url` as it is typed or copied, in the ASCII that a server expects, as browsers send it.

    Raises:
        ValueError: for a host that cannot be a name.
    """
    parts = urllib.parse.urlsplit(url.strip())
    host = parts.netloc
    if not host.isascii():
        host = host.encode("idna").decode()
    # What is quoted already stays, hence the percent sign.
    path, query = (
        urllib.parse.quote(part, safe="%/:=&?~+!$,;'@()*[]", errors="surrogateescape")
        for part in (parts.path, parts.query)
    )
    return urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))
