"""What a TIFF file says about its pixels, which Pillow does not always follow."""

import struct
from typing import NamedTuple

from gnet_jax.config import UserError
from gnet_jax.data.metadata import XMP, Directory, directory, xmp_orientation

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
