"""Remove the metadata of image files, because unusual metadata makes Pillow reject some images.

The EXIF orientation is the only metadata that is used.
"""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from gnet_jax.config import UserError

ORIENTATION = 0x0112  # tag number in TIFF and EXIF
# For the number of each integer type of TIFF, its format character in the module `struct`.
TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I"}
REMEDY = "save it with 8 bits per channel, as grey or RGB"


class ImageError(UserError):
    """Bytes or pixels cannot be read as an image."""


class Bare(NamedTuple):
    """An image file without its metadata."""

    image: bytes
    orientation: int = 0  # EXIF orientation, 1 to 8; 0 if the file has none; 1 is upright
    bits: int = 16  # number of bits per channel; used only for images with more than 8
    inverted: bool = False  # whether 0 means white
    described: str = ""  # pixel format of a TIFF, in words, for messages


class Directory(NamedTuple):
    """The first directory (list of tags) of a TIFF file or an EXIF block."""

    order: str  # byte order, as "<" or ">" for the module `struct`
    start: int  # position of the directory in the file
    entries: dict[int, bytes]  # the 12 bytes of each entry by tag, in the order of the file
    complete: bool  # False if the file ends before the last entry

    def values(self, image: bytes, tag: int) -> tuple[int, ...]:
        """Returns the values of `tag`, or () if they are missing, invalid or not integers."""
        entry = self.entries.get(tag, bytes(12))
        _, kind, count, place = struct.unpack(f"{self.order}HHII", entry)
        if kind not in TYPES or not 0 < count <= len(image):
            return ()
        form = f"{self.order}{count}{TYPES[kind]}"
        size = struct.calcsize(form)
        data = entry[8 : 8 + size] if size <= 4 else image[place : place + size]
        return struct.unpack(form, data) if len(data) == size else ()

    def orientation(self, image: bytes) -> int:
        value = next(iter(self.values(image, ORIENTATION)), 0)
        return value if 1 <= value <= 8 else 0


def directory(image: bytes) -> Directory | None:
    """Returns the first directory of a TIFF file or an EXIF block, or None if there is none."""
    order = {b"II": "<", b"MM": ">"}.get(image[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", image, 4)
        (count,) = struct.unpack_from(f"{order}H", image, start)
    except struct.error:
        return None
    first, end = start + 2, start + 2 + 12 * count
    whole = [image[place : place + 12] for place in range(first, min(end, len(image) - 11), 12)]
    entries = {struct.unpack_from(f"{order}H", entry)[0]: entry for entry in whole}
    return Directory(order, start, entries, end <= len(image))


def exif_orientation(block: bytes) -> int:
    """Returns the orientation (1 to 8) in an EXIF block, or 0 if the block has none."""
    block = re.sub(rb"^(Exif\0\0)+", b"", block)
    found = directory(block)
    return found.orientation(block) if found else 0


def bare(image: bytes) -> Bare:
    """Returns the file `image`. If it is a JPEG, PNG or AVIF, its metadata is removed."""
    if image[4:8] == b"ftyp":
        # Rename the EXIF items, because libavif skips unknown types. The orientation is elsewhere.
        return Bare(re.sub(rb"(infe[\2\3]...(?:..)?....)Exif", rb"\1skip", image, flags=re.DOTALL))
    if image.startswith(b"\xff\xd8\xff"):
        pieces = _jpeg_metadata(image)
    elif image.startswith(b"\x89PNG\r\n\x1a\n"):
        pieces = _png_metadata(image)
    else:
        return Bare(image)
    kept, orientation, previous = [], 0, 0
    for start, end, exif in pieces:
        kept.append(image[previous:start])
        previous = end
        orientation = orientation or exif_orientation(exif)
    return Bare(b"".join([*kept, image[previous:]]), orientation)


_Piece = tuple[int, int, bytes]  # start and end of a piece of metadata; its EXIF block, or empty


def _jpeg_metadata(image: bytes) -> Iterator[_Piece]:
    """Yields a JPEG's comments and APP segments, except APP0 and APP14, which define colours."""
    place = 2
    while place + 4 <= len(image) and image[place] == 0xFF:
        marker = image[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        end = place + 2 + int.from_bytes(image[place + 2 : place + 4], "big")
        if marker < 0xC0 or 0xD0 <= marker <= 0xDA or end < place + 4:
            return
        if (0xE1 <= marker <= 0xEF and marker != 0xEE) or marker == 0xFE:
            body = image[place + 4 : end]
            yield place, end, body if body.startswith(b"Exif\0") else b""
        place = end


def _png_metadata(image: bytes) -> Iterator[_Piece]:
    """Yields the chunks of a PNG, except the critical chunks and the transparency."""
    place = 8
    while place + 12 <= len(image):
        length = int.from_bytes(image[place : place + 4], "big")
        name, end = image[place + 4 : place + 8], place + 12 + length
        if not name.isalpha() or end > len(image):
            return
        if not name[:1].isupper() and name != b"tRNS":  # critical chunks begin with upper case
            yield place, end, image[place + 8 : end - 4] if name == b"eXIf" else b""
        place = end


BITS, COMPRESSION, PHOTOMETRIC, CHANNELS, PLANAR = 258, 259, 262, 277, 284
PALETTE, INKS, SAMPLE_FORMAT, SUBSAMPLING = 320, 332, 339, 530
# The tags that define how the pixels are stored. All other tags are metadata.
NEEDED = {
    *(256, 257, BITS, COMPRESSION, PHOTOMETRIC, 266, 273, CHANNELS, 278, 279, PLANAR, 292, 293),
    *(317, PALETTE, 322, 323, 324, 325, 338, SAMPLE_FORMAT, 347, SUBSAMPLING, 531),
    *(512, 513, 514, 515, 517, 518, 519, 520, 521),
}
_LOW_KINDS = "grey (white is 0)|grey|RGB|palette|a mask|CMYK|YCbCr||CIE Lab|ICC Lab|ITU Lab"
KINDS = dict(enumerate(_LOW_KINDS.split("|"))) | {32803: "raw sensor data", 34892: "linear raw"}
FORMATS = {2: "signed", 3: "floating-point", 4: "undefined", 5: "complex", 6: "complex"}
MAX_CHANNELS = 6  # Pillow logs an error for a TIFF with more channels


def read_tiff(image: bytes) -> Bare:
    """Returns the first page of a TIFF without metadata. `Bare.inverted` says if 0 means white.

    Raises ImageError if the range or the meaning of the pixel values is unknown, or if Pillow would
    decode them wrongly.
    """
    found = directory(image)
    if image[2:4] in (b"+\0", b"\0+"):
        raise ImageError(f"a BigTIFF file, which is not supported; {REMEDY}")
    if found is None or not found.complete:
        raise ImageError("a corrupt image: the directory of the TIFF is truncated")
    for tag in NEEDED & found.entries.keys():
        if not found.values(image, tag):
            raise ImageError(f"a corrupt image: tag {tag} of the TIFF has no value")

    def value(tag: int, default: int) -> int:
        return next(iter(found.values(image, tag)), default)

    bits, kind = found.values(image, BITS) or (1,), value(PHOTOMETRIC, -1)
    if kind < 0:
        raise ImageError(f"a TIFF without a photometric interpretation; {REMEDY}")
    sample_format = next((n for n in found.values(image, SAMPLE_FORMAT) if n != 1), 1)
    sign = f"{FORMATS.get(sample_format, 'unknown')} " if sample_format != 1 else ""
    described = f"a TIFF with {max(bits)}-bit {sign}samples of {KINDS.get(kind, f'kind {kind}')}"
    channels, raw = value(CHANNELS, 1), value(COMPRESSION, 1) == 1
    reasons = {
        " of unknown range": sample_format != 1,
        f" in {channels} channels": channels > MAX_CHANNELS,
        "": len(set(bits)) > 1 or max(bits) > 16 or kind not in (0, 1, 2, 3, 5, 6, 8),
        " with an 8-bit palette": 0 < max(found.values(image, PALETTE), default=0) < 256,
        " with other inks": kind == 5 and value(INKS, 1) != 1,
        ", subsampled and not compressed": (
            kind == 6 and raw and found.values(image, SUBSAMPLING) != (1, 1)
        ),
        " in planes, not compressed": raw and value(PLANAR, 1) == 2 and max(bits) > 8,
    }
    for reason, applies in reasons.items():
        if applies:
            raise ImageError(f"{described}{reason}, which is not supported; {REMEDY}")
    rewritten = _rewrite(image, found)
    return Bare(rewritten, found.orientation(image), max(bits), kind == 0, described)


def _rewrite(image: bytes, found: Directory) -> bytes:
    """Returns the first page with only the tags in NEEDED. "0 is white" becomes "0 is black"."""
    entries = {tag: entry for tag, entry in found.entries.items() if tag in NEEDED}
    if found.values(image, PHOTOMETRIC) == (0,):
        entries[PHOTOMETRIC] = struct.pack(f"{found.order}HHIHxx", PHOTOMETRIC, 3, 1, 1)
    cut = struct.pack(f"{found.order}H", len(entries)) + b"".join(entries.values()) + bytes(4)
    return image[: found.start] + cut + image[found.start + len(cut) :]
