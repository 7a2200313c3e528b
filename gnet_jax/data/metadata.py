"""Image files without their metadata, because Pillow refuses some pictures for odd metadata.

No text, colour profile or EXIF block can then cost a picture or print a warning. The orientation is
read by itself.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from gnet_jax.config import UserError

ORIENTATION, XMP = 0x0112, 0x02BC  # tags of TIFF and EXIF
# struct's letter for each integer type of TIFF.
TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q"}
MOST_TEXT = 2**22  # bytes of a compressed XMP packet that are unpacked


class Directory(NamedTuple):
    """The first directory of a TIFF file or an EXIF block."""

    order: str  # struct's sign of the byte order
    start: int  # of the directory in the file
    big: bool  # BigTIFF
    entries: dict[int, bytes]  # tag to the entry, in the file's order
    complete: bool  # no entry is missing at the end of the file

    def values(self, image: bytes, tag: int) -> tuple[int, ...]:
        """The numbers of `tag`; () if it is missing, of another type, or outside of the file."""
        form = f"{self.order}HH{'Q8s' if self.big else 'I4s'}"
        _, kind, count, inline = struct.unpack_from(form, self.entries.get(tag, bytes(20)))
        letter = TYPES.get(kind, "")
        size = count * struct.calcsize(f"{self.order}{letter}")
        if not size or size > len(image):
            return ()
        if size > len(inline):
            place = self.place(tag)
            inline = image[place : place + size]
        if len(inline) < size:
            return ()
        return struct.unpack_from(f"{self.order}{count}{letter}", inline)

    def place(self, tag: int) -> int:
        """Where in the file the values of `tag` begin, which do not fit into its entry."""
        form, at = ("Q", 12) if self.big else ("I", 8)
        return struct.unpack_from(f"{self.order}{form}", self.entries[tag], at)[0]

    def orientation(self, image: bytes) -> int | None:
        """1 to 8; None if nothing usable is stored."""
        value = next(iter(self.values(image, ORIENTATION)), 0)
        return value if 1 <= value <= 8 else None


def directory(image: bytes) -> Directory | None:
    """The first directory of `image`, a TIFF file or an EXIF block; None if there is none."""
    order = {b"II": "<", b"MM": ">"}.get(image[:2])
    try:
        if order is None:
            return None
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


def exif_orientation(block: bytes) -> int | None:
    """1 to 8 of an EXIF block, with or without its signature; None if it holds nothing usable."""
    block = re.sub(rb"^(Exif\0\0)+", b"", block)
    found = directory(block)
    return None if found is None else found.orientation(block)


def xmp_orientation(packet: bytes) -> int | None:
    """1 to 8 of an XMP packet; None if it holds none."""
    match = re.search(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([1-8])\b", packet)
    return int(match[1]) if match else None


class Bare(NamedTuple):
    """A file without its metadata."""

    image: bytes
    exif: int | None = None  # the orientation in an EXIF block
    xmp: int | None = None  # in an XMP packet, which EXIF overrides


def bare(image: bytes) -> Bare:
    """A JPEG, PNG or AVIF without its metadata; other files as they are."""
    if image.startswith(b"\xff\xd8\xff"):
        return _bare(image, _jpeg_parts(image))
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return _bare(image, _png_parts(image))
    if image[4:8] == b"ftyp":
        # Boxes of its own turn an AVIF, and its EXIF block must not. libavif ignores items of other
        # types.
        return Bare(re.sub(rb"(infe[\2\3]...(?:..)?....)Exif", rb"\1skip", image, flags=re.DOTALL))
    return Bare(image)


class _Part(NamedTuple):
    start: int
    end: int
    kept: bool
    exif: bytes = b""
    xmp: bytes = b""


def _bare(image: bytes, parts: Iterator[_Part]) -> Bare:
    kept, exif, xmp, start, end = [], None, None, 0, 0
    for part in parts:
        end = part.end
        if not part.kept:
            kept.append(image[start : part.start])
            start = end
            exif = exif or (exif_orientation(part.exif) if part.exif else None)
            xmp = xmp or (xmp_orientation(part.xmp) if part.xmp else None)
    return Bare(b"".join([*kept, image[start:]]) if kept else image, exif, xmp)


def _jpeg_parts(image: bytes) -> Iterator[_Part]:
    """The segments before the pixels. APP0 and APP14 stay, because they say how colours are coded.

    Pillow and libjpeg judge what comes after the first segment that is not one.
    """
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
            yield _Part(place, end, kept=False, exif=exif, xmp=xmp)
        else:
            yield _Part(place, end, kept=True)
        place = end


def _png_parts(image: bytes) -> Iterator[_Part]:
    """The chunks. The critical ones stay (their names start in upper case), and transparency."""
    place = 8
    while place + 12 <= len(image):
        length = int.from_bytes(image[place : place + 4], "big")
        name, end = image[place + 4 : place + 8], place + 12 + length
        if not name.isalpha() or end > len(image):
            return
        body = image[place + 8 : end - 4]
        if name[:1].isupper() or name == b"tRNS":
            yield _Part(place, end, kept=True)
        elif name == b"eXIf":
            yield _Part(place, end, kept=False, exif=body)
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            exif, xmp = _png_text(name, body)
            yield _Part(place, end, kept=False, exif=exif, xmp=xmp)
        else:
            yield _Part(place, end, kept=False)
        place = end


def _png_text(name: bytes, body: bytes) -> tuple[bytes, bytes]:
    """The EXIF block that ImageMagick writes as text, or the XMP packet, of a text chunk."""
    key, _, text = body.partition(b"\0")
    if key not in (b"Raw profile type exif", b"Raw profile type APP1", b"XML:com.adobe.xmp"):
        return b"", b""
    compressed = name == b"zTXt" or (name == b"iTXt" and text[:1] == b"\1")
    if name == b"iTXt":  # two flags, the language and the translated key
        text = text[2:].split(b"\0", 2)[-1]
    elif name == b"zTXt":
        text = text[1:]
    if compressed:
        try:
            text = zlib.decompressobj().decompress(text, MOST_TEXT)
        except zlib.error:
            return b"", b""
    if key == b"XML:com.adobe.xmp":
        return b"", text
    # "\nexif\n", the length, and the block in hexadecimal digits
    digits = b"".join(text.split()[2:])
    found = re.match(rb"(?:[0-9a-fA-F]{2})*", digits)
    return bytes.fromhex(found[0].decode()) if found else b"", b""


BITS, COMPRESSION, PHOTOMETRIC, CHANNELS, PLANAR = 258, 259, 262, 277, 284
PALETTE, INKS, SAMPLE_FORMAT, SUBSAMPLING = 320, 332, 339, 530
# The tags that say how the pixels are stored; the rest is metadata.
NEEDED = {
    *(256, 257, BITS, COMPRESSION, PHOTOMETRIC, 266, 273, CHANNELS, 278, 279, PLANAR, 292, 293),
    *(317, PALETTE, 322, 323, 324, 325, 338, SAMPLE_FORMAT, 347, SUBSAMPLING, 531),
    *(512, 513, 514, 515, 517, 518, 519, 520, 521),
}
KINDS = {
    0: "grey (white is 0)",
    1: "grey",
    2: "RGB",
    3: "palette",
    4: "a mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIE Lab",
    9: "ICC Lab",
    10: "ITU Lab",
    32803: "raw sensor data",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw",
}
FORMATS = {2: "signed", 3: "floating-point", 4: "undefined", 5: "complex", 6: "complex"}
MOST_CHANNELS = 6  # Pillow logs an error above it
REMEDY = "save it with 8 bits a channel, as grey or RGB"


class TiffError(UserError):
    """A TIFF whose pixels are not read."""


class Tiff(NamedTuple):
    """A TIFF file without metadata, later pages and WhiteIsZero, and what those said."""

    image: bytes
    bits: int  # of a sample
    inverted: bool  # grey of which 0 is white
    described: str  # for messages
    orientation: int | None


def tiff_facts(image: bytes) -> Tiff:
    """What Pillow needs of the TIFF in `image`, and what it does not follow.

    Raises:
        TiffError: for samples of no known range or meaning, and what Pillow would misread.
    """
    found = directory(image)
    if found is None or not found.complete:
        raise TiffError("a damaged image: the directory of the TIFF is cut short")
    for tag in NEEDED & found.entries.keys():
        if not found.values(image, tag):
            raise TiffError(f"a damaged image: tag {tag} of the TIFF has no value")

    def value(tag: int, default: int) -> int:
        return next(iter(found.values(image, tag)), default)

    bits, kind = found.values(image, BITS) or (1,), value(PHOTOMETRIC, -1)
    sample_format = next((n for n in found.values(image, SAMPLE_FORMAT) if n != 1), 1)
    if kind < 0:
        raise TiffError(f"a TIFF without a photometric interpretation; {REMEDY}")
    sign = f"{FORMATS.get(sample_format, 'unknown')} " if sample_format != 1 else ""
    described = f"a TIFF with {max(bits)}-bit {sign}samples of {KINDS.get(kind, f'kind {kind}')}"
    if sample_format != 1:
        raise TiffError(f"{described}, whose range is unknown; {REMEDY}")
    channels = value(CHANNELS, 1)
    if channels > MOST_CHANNELS:
        raise TiffError(f"{described} in {channels} channels, which is not read; {REMEDY}")
    if len(set(bits)) > 1 or max(bits) > 16 or kind not in (0, 1, 2, 3, 5, 6, 8):
        raise TiffError(f"{described}, which is not read; {REMEDY}")
    if kind == 5 and value(INKS, 1) != 1:
        raise TiffError(f"{described} with other inks; {REMEDY}")
    if found.big and found.order == ">":
        raise TiffError(f"{described} in a big-endian BigTIFF, which is not read; {REMEDY}")
    raw = value(COMPRESSION, 1) == 1
    if kind == 6 and raw and found.values(image, SUBSAMPLING) != (1, 1):
        raise TiffError(f"{described}, subsampled and not compressed, which is not read; {REMEDY}")
    if raw and value(PLANAR, 1) == 2 and max(bits) > 8 and len(bits) > 1:
        raise TiffError(f"{described} in planes, not compressed, which is not read; {REMEDY}")
    packet = bytes(n & 255 for n in found.values(image, XMP))
    turned = found.orientation(image) or xmp_orientation(packet)
    return Tiff(_rewritten(image, found), max(bits), kind == 0, described, turned)


def _rewritten(image: bytes, found: Directory) -> bytes:
    """The file with its directory cut to what is needed, of grey BlackIsZero, without more pages.

    Everything else stays where it is, so no offset changes.
    """
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
    if len(colours) > 2 and max(colours) < 256:  # 8 bits where 16 belong; libtiff reads it so, too
        form = f"{found.order}{len(colours)}H"
        struct.pack_into(form, rewritten, found.place(PALETTE), *(257 * n for n in colours))
    return bytes(rewritten)
