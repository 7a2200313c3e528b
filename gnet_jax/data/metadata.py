"""Remove the metadata of image files, because unusual metadata makes Pillow reject some images.

Only the orientation is read from the metadata.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from PIL import ImageFile

from gnet_jax.data.decode import REMEDY, ImageError

ORIENTATION, XMP = 0x0112, 0x02BC  # tag numbers in TIFF and EXIF
# The format character of the module `struct` for each integer type of TIFF.
TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q"}
MAX_TEXT = 2**22  # largest number of bytes to decompress from an XMP packet


class Directory(NamedTuple):
    """The first directory of a TIFF file or an EXIF block."""

    order: str  # byte order, as "<" or ">" for the module `struct`
    start: int  # position of the directory in the file
    big: bool  # whether the file is a BigTIFF
    entries: dict[int, bytes]  # by tag, in the order of the file
    complete: bool  # False if the file ends before the last entry

    def values(self, image: bytes, tag: int) -> tuple[int, ...]:
        """Returns the integers of `tag`, or () if they are missing, invalid or not integers."""
        form = f"{self.order}HH{'Q8s' if self.big else 'I4s'}"
        _, kind, count, inline = struct.unpack_from(form, self.entries.get(tag, bytes(20)))
        form = f"{self.order}{count}{TYPES.get(kind, 's')}"
        if kind not in TYPES or not 0 < count <= len(image):
            return ()
        size = struct.calcsize(form)
        if size > len(inline):
            place = self.place(tag)
            inline = image[place : place + size]
        return struct.unpack_from(form, inline) if len(inline) >= size else ()

    def place(self, tag: int) -> int:
        form, at = ("Q", 12) if self.big else ("I", 8)
        return struct.unpack_from(f"{self.order}{form}", self.entries[tag], at)[0]

    def orientation(self, image: bytes) -> int | None:
        value = next(iter(self.values(image, ORIENTATION)), 0)
        return value if 1 <= value <= 8 else None


def directory(image: bytes) -> Directory | None:
    """Returns the first directory of a TIFF file or an EXIF block, or None if there is none."""
    order = {b"II": "<", b"MM": ">"}.get(image[:2])
    if order is None:
        return None
    try:
        big = struct.unpack_from(f"{order}H", image, 2)[0] == 43
        (start,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", image, 8 if big else 4)
        (count,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", image, start)
    except struct.error:
        return None
    first, length = (start + 8, 20) if big else (start + 2, 12)
    entries = {}
    for place in range(first, min(first + length * count, len(image) - length + 1), length):
        entry = image[place : place + length]
        entries[struct.unpack_from(f"{order}H", entry)[0]] = entry
    return Directory(order, start, big, entries, first + length * count <= len(image))


def _exif_orientation(block: bytes) -> int | None:
    block = re.sub(rb"^(Exif\0\0)+", b"", block)
    found = directory(block)
    return None if found is None else found.orientation(block)


def _xmp_orientation(packet: bytes) -> int | None:
    match = re.search(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([1-8])\b", packet)
    return int(match[1]) if match else None


class Bare(NamedTuple):
    """An image file without its metadata, and the orientation from the metadata."""

    image: bytes
    orientation: int | None = None  # None if the metadata have none


def orientation(picture: ImageFile.ImageFile, bare: Bare) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 is upright. EXIF overrides XMP, as in Pillow."""
    found = bare.orientation or _exif_orientation(picture.info.get("exif", b""))
    if picture.format != "AVIF":  # AVIF has no XMP orientation; its own boxes become EXIF
        found = found or _xmp_orientation(picture.info.get("xmp", b""))
    return found or 1


def bare(image: bytes) -> Bare:
    """Returns a JPEG, PNG or AVIF without its metadata, and other files unchanged."""
    if image[4:8] == b"ftyp":
        # AVIF stores its orientation in its own boxes. libavif ignores items of unknown types.
        return Bare(re.sub(rb"(infe[\2\3]...(?:..)?....)Exif", rb"\1skip", image, flags=re.DOTALL))
    if image.startswith(b"\xff\xd8\xff"):
        pieces = _jpeg_metadata(image)
    elif image.startswith(b"\x89PNG\r\n\x1a\n"):
        pieces = _png_metadata(image)
    else:
        return Bare(image)
    kept, exif, xmp, previous = [], None, None, 0
    for start, end, exif_block, xmp_packet in pieces:
        kept.append(image[previous:start])
        previous = end
        exif = exif or _exif_orientation(exif_block)
        xmp = xmp or _xmp_orientation(xmp_packet)
    return Bare(b"".join([*kept, image[previous:]]) if kept else image, exif or xmp)


_Piece = tuple[int, int, bytes, bytes]  # start and end of the metadata; EXIF block, XMP packet


def _jpeg_metadata(image: bytes) -> Iterator[_Piece]:
    """Yields the metadata segments of a JPEG: all but APP0 and APP14, which define the colours."""
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
            exif = body if body.startswith(b"Exif\0") else b""
            xmp = body if body.startswith(b"http://ns.adobe.com/xap/1.0/\0") else b""
            yield place, end, exif, xmp
        place = end


def _png_metadata(image: bytes) -> Iterator[_Piece]:
    """Yields the metadata chunks of a PNG: all but transparency and the critical chunks."""
    place = 8
    while place + 12 <= len(image):
        length = int.from_bytes(image[place : place + 4], "big")
        name, end = image[place + 4 : place + 8], place + 12 + length
        if not name.isalpha() or end > len(image):
            return
        body = image[place + 8 : end - 4]
        if not name[:1].isupper() and name != b"tRNS":  # critical chunks begin with upper case
            exif, xmp = (body, b"") if name == b"eXIf" else _png_text(name, body)
            yield place, end, exif, xmp
        place = end


def _png_text(name: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Returns the EXIF block (which ImageMagick writes as text) and XMP packet of a text chunk."""
    key, _, text = body.partition(b"\0")
    known = (b"Raw profile type exif", b"Raw profile type APP1", b"XML:com.adobe.xmp")
    if name not in (b"tEXt", b"zTXt", b"iTXt") or key not in known:
        return b"", b""
    compressed = name == b"zTXt" or (name == b"iTXt" and text[:1] == b"\1")
    if name == b"iTXt":  # skip two flags, the language and the translated key
        text = text[2:].split(b"\0", 2)[-1]
    if compressed:
        try:
            text = zlib.decompressobj().decompress(text[name == b"zTXt" :], MAX_TEXT)
        except zlib.error:
            return b"", b""
    if key == b"XML:com.adobe.xmp":
        return b"", text
    # The text is "\nexif\n", the length, and the block in hexadecimal digits.
    digits = b"".join(text.split()[2:])
    found = re.match(rb"(?:[0-9a-fA-F]{2})*", digits)
    return bytes.fromhex(found[0].decode()) if found else b"", b""


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
MAX_CHANNELS = 6  # with more, Pillow logs an error


class Tiff(NamedTuple):
    """A TIFF file without metadata and later pages, rewritten as BlackIsZero, and its format."""

    bare: Bare
    bits: int  # number of bits of a sample
    inverted: bool  # whether 0 means white
    described: str  # description of the format for messages


def read_tiff(image: bytes) -> Tiff:
    """Rewrites the TIFF in `image` so that Pillow can read it.

    Raises ImageError for samples of unknown range or meaning, and for formats that Pillow decodes
    wrongly.
    """
    found = directory(image)
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
        " with other inks": kind == 5 and value(INKS, 1) != 1,
        " in a big-endian BigTIFF": found.big and found.order == ">",
        ", subsampled and not compressed": (
            kind == 6 and raw and found.values(image, SUBSAMPLING) != (1, 1)
        ),
        " in planes, not compressed": (
            raw and value(PLANAR, 1) == 2 and max(bits) > 8 and len(bits) > 1
        ),
    }
    for reason, applies in reasons.items():
        if applies:
            raise ImageError(f"{described}{reason}, which is not supported; {REMEDY}")
    packet = bytes(n & 255 for n in found.values(image, XMP))
    turned = found.orientation(image) or _xmp_orientation(packet)
    return Tiff(Bare(_rewrite(image, found), turned), max(bits), kind == 0, described)


def _rewrite(image: bytes, found: Directory) -> bytes:
    """Returns the file's first page with only the tags in NEEDED; grey pages store 0 as black."""
    letter = "Q" if found.big else "I"
    entries = {tag: entry for tag, entry in found.entries.items() if tag in NEEDED}
    if found.values(image, PHOTOMETRIC) == (0,):
        entries[PHOTOMETRIC] = struct.pack(f"{found.order}HH{letter}", PHOTOMETRIC, 3, 1)
        entries[PHOTOMETRIC] += struct.pack(f"{found.order}H{6 if found.big else 2}x", 1)
    rewritten = bytearray(image)
    head = struct.pack(f"{found.order}{'Q' if found.big else 'H'}", len(entries))
    cut = head + b"".join(entries.values()) + bytes(8 if found.big else 4)
    rewritten[found.start : found.start + len(cut)] = cut
    colours = found.values(image, PALETTE)
    if len(colours) > 2 and max(colours) < 256:  # 8-bit values, which libtiff accepts too
        form = f"{found.order}{len(colours)}H"
        struct.pack_into(form, rewritten, found.place(PALETTE), *(257 * n for n in colours))
    return bytes(rewritten)
