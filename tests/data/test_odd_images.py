"""Odd but legal image files: the right picture, or refused by name; the same by both decoders."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from gnet_jax.config import AugmentConfig, Preprocessing
from gnet_jax.data.check import inspect
from gnet_jax.data.decode import ImageError, decode, pillow_crop
from gnet_jax.data.metadata import bare
from gnet_jax.data.sources import Example

HEIGHT, WIDTH = 30, 47
RAMP = np.add.outer(np.linspace(0, 0.2, HEIGHT), np.linspace(0, 0.8, WIDTH))  # 0..1
COLOURS = np.stack([RAMP, 1 - RAMP, np.full_like(RAMP, 0.5)], axis=-1)
PHOTO = Image.fromarray((COLOURS * 255).round().astype(np.uint8))
BESIDE = Path(__file__).parents[2] / "../shared/data"
ODD = Path(os.environ.get("GNET_SHARED_DATA", BESIDE)) / "odd"


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def levels(share: np.ndarray, bits: int) -> np.ndarray:
    return (share * (2**bits - 1)).round().astype(np.uint16)


def packed(values: np.ndarray, bits: int, order: str = "<") -> bytes:
    """The rows of samples, each row from a whole byte, as TIFF and PNG have them."""
    if bits == 16:
        return values.astype(f"{order}u2").tobytes()
    rows = values.reshape(values.shape[0], -1)
    digits = (rows[..., None] >> np.arange(bits)[::-1]) & 1
    return np.packbits(digits.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def tiff(
    pixels: bytes,
    *,
    bits: int | tuple[int, ...] = 8,
    kind: int | None = 1,
    order: str = "<",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    **tags: tuple[str, tuple[int, ...]],
) -> bytes:
    """An uncompressed TIFF of one strip; `tags` as t339=("H", (2,))."""
    bits = bits if isinstance(bits, tuple) else (bits,)
    entries = {
        256: ("H", (size[0],)),
        257: ("H", (size[1],)),
        258: ("H", bits),
        259: ("H", (1,)),
        273: ("I", (16,)),
        277: ("H", (len(bits),)),
        278: ("H", (size[1],)),
        279: ("I", (len(pixels),)),
    }
    if kind is not None:
        entries[262] = ("H", (kind,))
    entries |= {int(tag[1:]): value for tag, value in tags.items()}
    codes = {"B": 1, "s": 2, "H": 3, "I": 4, "R": 5}
    body, directory = pixels + bytes(len(pixels) % 2), b""
    for tag, (letter, values) in sorted(entries.items()):
        data = struct.pack(f"{order}{len(values)}{'I' if letter == 'R' else letter}", *values)
        number = len(values) // 2 if letter == "R" else len(values)
        if len(data) > 4:
            data, body = struct.pack(f"{order}I", 16 + len(body)), body + data
            body += bytes(len(body) % 2)
        directory += struct.pack(f"{order}HHI4s", tag, codes[letter], number, data)
    start = 16 + len(body)
    sign = b"II" if order == "<" else b"MM"
    head = struct.pack(f"{order}HI8x", 42, start)
    return sign + head + body + struct.pack(f"{order}H", len(entries)) + directory + bytes(4)


def png(rows: np.ndarray, bits: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    line = (rows.shape[1] * (rows.size // rows.shape[0] // rows.shape[1]) * bits + 7) // 8
    data = packed(rows, bits, ">")
    lines = b"".join(b"\0" + data[i : i + line] for i in range(0, len(data), line))
    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], bits, colour, 0, 0, 0)
    whole = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in whole)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def inserted(image: bytes, *pieces: bytes) -> bytes:
    """A JPEG with segments after its first marker, or a PNG with chunks after its header."""
    place = 2 if image.startswith(b"\xff\xd8") else 33
    return image[:place] + b"".join(pieces) + image[place:]


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def assert_shows(image: bytes, expected: np.ndarray, tolerance: float = 2) -> None:
    """`expected` in 0..1, (H, W) or (H, W, 3)."""
    pixels = np.asarray(decode(image)).astype(float)
    expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=-1)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - 255 * expected).max() <= tolerance


def assert_refused(image: bytes, *words: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(image)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def rounded(bits: int) -> np.ndarray:
    return levels(RAMP, bits) / (2**bits - 1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_grey_tiffs_of_every_depth_and_polarity(bits, kind, order):
    values = levels(RAMP, bits) if kind else levels(1 - RAMP, bits)
    image = tiff(packed(values, bits, order), bits=bits, kind=kind, order=order)
    if order == ">" and bits == 12:
        assert_refused(image, f"{bits}-bit", "not supported")
    else:
        assert_shows(image, rounded(bits) if kind else 1 - levels(1 - RAMP, bits) / (2**bits - 1))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["RGB", "RGBA", "CMYK"])
def test_colour_tiffs(kind, bits, order):
    shares = COLOURS
    extra = {}
    if kind == "RGBA":
        shares, extra = np.dstack([COLOURS, RAMP]), {"t338": ("H", (2,))}
    elif kind == "CMYK":
        shares = np.dstack([1 - COLOURS, 0 * RAMP])
    channels = shares.shape[-1]
    photometric = 5 if kind == "CMYK" else 2
    values = levels(shares, bits)
    image = tiff(
        packed(values, bits, order), bits=(bits,) * channels, kind=photometric, order=order, **extra
    )
    assert_shows(image, COLOURS)
    planes = b"".join(packed(plane, bits, order) for plane in np.moveaxis(values, -1, 0))
    strip = len(planes) // channels
    extra |= {
        "t273": ("I", tuple(16 + strip * n for n in range(channels))),
        "t279": ("I", (strip,) * channels),
        "t284": ("H", (2,)),
    }
    image = tiff(planes, bits=(bits,) * channels, kind=photometric, order=order, **extra)
    if bits == 16:
        assert_refused(image, "16-bit", "planes")
    else:
        assert_shows(image, COLOURS)


def test_palette_tiffs():
    steps = np.arange(256)
    palette = np.concatenate([steps, 255 - steps, np.full(256, 128)])
    pixels = packed(levels(RAMP, 8), 8)
    assert_shows(tiff(pixels, kind=3, t320=("H", tuple((257 * palette).tolist()))), COLOURS)
    # Some programs write 8 bits, which Pillow would show as black.
    assert_refused(tiff(pixels, kind=3, t320=("H", tuple(palette.tolist()))), "8-bit palette")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 10}, ("10-bit", "grey")),
        ({"bits": 14}, ("14-bit", "grey")),
        ({"bits": (12,) * 3, "kind": 2}, ("12-bit", "RGB")),
        ({"bits": (16, 16), "t338": ("H", (2,))}, ("16-bit", "grey")),
        ({"bits": (5, 6, 5), "kind": 2}, ("RGB",)),
        ({"bits": 16, "t284": ("H", (2,))}, ("16-bit", "planes")),
        ({"bits": 32}, ("32-bit",)),
        ({"bits": 64}, ("64-bit",)),
        ({"bits": 8, "t339": ("H", (2,))}, ("8-bit signed",)),
        ({"bits": 16, "t339": ("H", (2,))}, ("16-bit signed",)),
        ({"bits": (8,) * 3, "kind": 2, "t339": ("H", (1, 1, 2))}, ("8-bit signed",)),
        ({"bits": 16, "t339": ("H", (3,))}, ("16-bit floating-point",)),
        ({"bits": 32, "t339": ("H", (3,))}, ("32-bit floating-point",)),
        ({"bits": (32,) * 3, "kind": 2, "t339": ("H", (3,) * 3)}, ("floating-point", "RGB")),
        ({"kind": None}, ("photometric",)),
        ({"kind": 4}, ("mask",)),
        ({"bits": (8,) * 3, "kind": 9}, ("ICC Lab",)),
        ({"bits": (8,) * 3, "kind": 6}, ("YCbCr", "subsampled")),
        ({"bits": (8,) * 4, "kind": 5, "t332": ("H", (2,))}, ("CMYK", "inks")),
        ({"kind": 32803}, ("sensor",)),
        ({"bits": 3}, ("3-bit",)),
        ({"bits": (8,) * 7}, ("7 channels",)),
    ],
)
def test_tiffs_of_unknown_range_or_meaning_are_refused_by_name(options, words):
    assert_refused(tiff(bytes(8 * HEIGHT * WIDTH * 4), **options), "TIFF", *words)


@pytest.mark.parametrize("head", [b"II+\0\x08\0", b"MM\0+\0\x08"])
def test_bigtiffs_are_refused_by_name(head):
    assert_refused(head + bytes(2000), "BigTIFF")


def test_neutral_lab_tiffs():
    lab = np.dstack([levels(RAMP, 8), *[np.zeros_like(RAMP, np.uint16)] * 2])
    lightness = (RAMP * 100 + 16) / 116
    linear = np.where(lightness > 6 / 29, lightness**3, RAMP * 100 / 903.3)
    grey = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    assert_shows(tiff(packed(lab, 8), bits=(8,) * 3, kind=8), grey, tolerance=3)


@pytest.mark.skipif(PIL.__version__ < "13", reason="older ones refuse it as cut short")
def test_plain_ycbcr_tiffs():
    ycbcr = np.asarray(PHOTO.convert("YCbCr")).tobytes()
    image = tiff(ycbcr, bits=(8,) * 3, kind=6, t530=("H", (1, 1)))
    assert_shows(image, COLOURS, tolerance=4)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_pngs_of_every_depth(bits):
    assert_shows(png(levels(RAMP, bits), bits, 0), rounded(bits))
    # A transparent grey, which is dropped.
    assert_shows(png(levels(RAMP, bits), bits, 0, (b"tRNS", struct.pack(">H", 1))), rounded(bits))
    if bits >= 8:
        assert_shows(png(levels(COLOURS, bits), bits, 2), COLOURS)
        hidden = b"tRNS", struct.pack(">HHH", *levels(COLOURS, bits)[3, 3])
        assert_shows(png(levels(COLOURS, bits), bits, 2, hidden), COLOURS)
        assert_shows(png(levels(np.dstack([RAMP, RAMP]), bits), bits, 4), RAMP)
        assert_shows(png(levels(np.dstack([COLOURS, RAMP]), bits), bits, 6), COLOURS)
    if bits <= 8:
        greys = (np.arange(2**bits) * 255 // (2**bits - 1)).astype(np.uint8)
        palette = b"PLTE", np.repeat(greys, 3).tobytes()
        for extra in ((), ((b"tRNS", bytes(2**bits)),)):
            assert_shows(png(levels(RAMP, bits), bits, 3, palette, *extra), rounded(bits))


@pytest.mark.parametrize("highest", [1, 3, 100, 255, 1023, 4095, 65535])
def test_portable_maps_of_every_range(highest):
    for magic, shares in (("5", RAMP), ("6", COLOURS)):
        values = (shares * highest).round().astype(np.uint16)
        plain = " ".join(str(n) for n in values.ravel()).encode()
        head = f"{WIDTH} {HEIGHT} {highest}\n"
        binary = values.astype(np.uint8 if highest < 256 else ">u2").tobytes()
        expected = values / highest
        assert_shows(f"P{magic} {head}".encode() + binary, expected)
        assert_shows(f"P{int(magic) - 3} {head}".encode() + plain, expected)


def test_cmyk_jpegs_say_how_they_are_stored_or_are_refused():
    image = encoded(PHOTO.convert("CMYK"), "JPEG", quality=98)
    assert_shows(image, COLOURS, tolerance=8)
    place = image.index(b"\xff\xee")
    assert_refused(image[:place] + image[place + 16 :], "CMYK", "Adobe")


def test_jpegs_of_twelve_bits_are_refused_by_name():
    image = bytearray(encoded(PHOTO, "JPEG"))
    image[image.index(b"\xff\xc0") + 4] = 12
    assert_refused(bytes(image), "JPEG", "12-bit")


def test_colour_jpeg2000_of_more_than_8_bits_is_refused_because_pillow_turns_white_into_black():
    grey = encoded(Image.fromarray(levels(RAMP, 16)), "JPEG2000")
    assert_shows(grey, RAMP)
    image = encoded(PHOTO, "JPEG2000")
    assert_shows(image, COLOURS)
    place = image.index(b"\xff\x4f\xff\x51") + 42
    for channel in range(3):
        assert image[place + 3 * channel] == 7
        image = image[: place + 3 * channel] + b"\x0b" + image[place + 3 * channel + 1 :]
    assert_refused(image, "JPEG 2000", "12 bits")


def orientation_block(kind: int, value: bytes, order: str = "<", *others: bytes) -> bytes:
    entry = struct.pack(f"{order}HHI", 0x0112, kind, 1) + value
    entries = sorted([entry, *others])
    sign = b"II" if order == "<" else b"MM"
    count = struct.pack(f"{order}H", len(entries))
    return sign + struct.pack(f"{order}HI", 42, 8) + count + b"".join(entries) + bytes(4)


TURNED = COLOURS[::-1].swapaxes(0, 1)
JPEG = encoded(PHOTO, "JPEG", quality=98, subsampling=0)


@pytest.mark.parametrize(
    ("kind", "value", "turned"),
    [
        (3, struct.pack("<HH", 6, 0), True),
        (4, struct.pack("<I", 6), True),
        (1, b"\6\0\0\0", True),
        (2, b"6\0\0\0", False),
        (5, struct.pack("<I", 9999), False),  # outside of the block
        (12, struct.pack("<I", 9999), False),
        (3, struct.pack("<HH", 9, 0), False),
        (99, b"\6\0\0\0", False),
    ],
)
def test_the_orientation_is_read_by_itself_whatever_its_type(kind, value, turned):
    strange = [  # a resolution as text, a width as a rational outside, a block of 4 GB
        struct.pack("<HHI", 0x011A, 2, 4) + b"abc\0",
        struct.pack("<HHII", 0x0100, 5, 1, 70000),
        struct.pack("<HHII", 0x8769, 4, 2**32 - 1, 2**32 - 1),
    ]
    block = orientation_block(kind, value, "<", *strange)
    expected = TURNED if turned else COLOURS
    assert_shows(inserted(JPEG, segment(0xE1, b"Exif\0\0" + block)), expected, tolerance=8)
    image = encoded(PHOTO, "PNG")
    assert_shows(inserted(image, chunk(b"eXIf", block)), expected)


def test_a_malformed_exif_block_does_not_cost_the_picture():
    for block in (b"", b"II", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"x" * 99):
        assert_shows(inserted(JPEG, segment(0xE1, b"Exif\0\0" + block)), COLOURS, tolerance=8)
        assert_shows(inserted(encoded(PHOTO, "PNG"), chunk(b"eXIf", block)), COLOURS)


def test_big_endian_and_second_exif_blocks():
    block = segment(0xE1, b"Exif\0\0" + orientation_block(3, b"\0\6\0\0", ">"))
    assert_shows(inserted(JPEG, block), TURNED, tolerance=8)
    assert_shows(inserted(JPEG, segment(0xE1, b"Exif\0\0"), block), TURNED, tolerance=8)


def test_orientation_in_webp_tiff_and_avif():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert_shows(encoded(PHOTO, "WEBP", lossless=True, exif=exif), TURNED)
    odd = {"t305": ("R", (7, 0)), "t34665": ("I", (2**32 - 1,))}
    pixels = np.asarray(PHOTO).tobytes()
    image = tiff(pixels, bits=(8,) * 3, kind=2, t274=("H", (6,)), t282=("H", (3, 4, 5)), **odd)
    assert_shows(image, TURNED)
    Image.init()
    if "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow is built without AVIF")
    exif[0x010E] = "a description"
    image = encoded(PHOTO, "AVIF", quality=100, subsampling="4:4:4", exif=exif)
    assert_shows(image, TURNED, tolerance=12)
    place = image.index(b"II*\0" if b"II*\0" in image else b"MM\0*")
    broken = image[:place] + b"II*\0\xff\xff\xff\xff" + image[place + 8 :]
    assert_shows(broken, TURNED, tolerance=12)  # by its own boxes


def test_large_text_profiles_and_damaged_extras_do_not_cost_a_png():
    image = encoded(PHOTO, "PNG")
    noise = np.random.default_rng(0).bytes(2**21)
    extras = [
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(noise)),
        chunk(b"zTXt", b"key\0\0" + zlib.compress(noise)),
        chunk(b"iTXt", b"key\0\1\0\0\0" + zlib.compress(noise)),
        chunk(b"gAMA", b""),
        chunk(b"cHRM", b"x"),
        chunk(b"pHYs", b"x"),
        chunk(b"sPLT", b""),
        chunk(b"acTL", b"x"),
        chunk(b"tEXt", b"key\0text")[:-1] + b"x",  # another checksum
    ]
    for extra in extras:
        assert_shows(inserted(image, extra), COLOURS)
    assert_shows(inserted(image, *extras), COLOURS)
    assert bare(inserted(image, *extras)).image == image


def test_damaged_or_strange_segments_do_not_cost_a_jpeg():
    extras = [
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x"),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
        segment(0xED, b"Photoshop 3.0\0008BIM\x04"),
        segment(0xFE, b"a comment"),
    ]
    for extra in extras:
        assert_shows(inserted(JPEG, extra), COLOURS, tolerance=8)
    assert bare(inserted(JPEG, *extras)).image == JPEG


def test_a_profile_of_other_colours_is_not_applied():
    for kind in ("PNG", "TIFF", "JPEG", "WEBP"):
        options = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
        options = {"lossless": True} if kind == "WEBP" else options
        image = encoded(PHOTO, kind, icc_profile=b"CMYK" * 99, **options)
        assert_shows(image, COLOURS, tolerance=8)


def test_transparent_and_partial_gifs_and_animated_pngs():
    palette = PHOTO.quantize(64)
    shown = np.asarray(palette.convert("RGB")) / 255
    other = Image.new("P", PHOTO.size)
    options = {"save_all": True, "append_images": [other], "transparency": 3}
    assert_shows(encoded(palette, "GIF", **options), shown, tolerance=0)
    image = encoded(PHOTO, "PNG", save_all=True, append_images=[Image.new("RGB", PHOTO.size)])
    assert_shows(image, COLOURS)
    image = encoded(PHOTO, "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    assert_shows(image, COLOURS)


def test_bitmaps_of_16_bits_and_with_alpha():
    rows = (levels(COLOURS[::-1], 5) << np.array([10, 5, 0])).sum(axis=-1).astype("<u2")
    data = b"".join(row.tobytes() + bytes(-row.nbytes % 4) for row in rows)
    header = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, 16, 0, len(data), 0, 0, 0, 0)
    image = b"BM" + struct.pack("<IHHI", 54 + len(data), 0, 0, 54) + header + data
    assert_shows(image, levels(COLOURS, 5) / 31)
    alpha = PHOTO.copy()
    alpha.putalpha(60)
    assert_shows(encoded(alpha, "BMP"), COLOURS)


@pytest.mark.parametrize(
    "name",
    [
        "cmyk_adobe.jpg",
        "cmyk_noadobe.jpg",
        "exif_rot6_width_as_rational.jpg",
        "exif_rot6_xres_as_ascii.jpg",
        "gray_jpeg.jpg",
        "mpo_rot6.jpg",
        "pgm_4095.pgm",
        "png_text_1.2MB.png",
        "rot6_PNG.png",
        "tiff12_blackiszero.tif",
        "tiff16_blackiszero.tif",
        "tiff16_whiteiszero_II.tif",
    ],
)
def test_examples_made_after_bug_reports(name):
    file = ODD / name
    if not file.is_file():
        pytest.skip(f"there is no {file} (GNET_SHARED_DATA)")
    if name == "cmyk_noadobe.jpg":
        assert_refused(file.read_bytes(), "Adobe")
        return
    ramp = np.repeat(np.linspace(0, 1, 48)[None], 32, axis=0)
    expected = np.dstack([ramp, 1 - ramp, np.full_like(ramp, 128 / 255)])
    if not any(word in name for word in ("rot6", "cmyk")):
        expected = ramp
    if "rot6" in name:
        expected = expected[::-1].swapaxes(0, 1)
    assert_shows(file.read_bytes(), expected, tolerance=4 if name.endswith("jpg") else 2)


def test_the_fast_decoder_reads_the_same_pictures():
    pytest.importorskip("simplejpeg")
    pytest.importorskip("cv2")
    from gnet_jax.data.fast_crop import fast_crop

    turned = segment(0xE1, b"Exif\0\0" + orientation_block(3, b"\6\0\0\0"))
    odd = segment(0xE1, b"Exif\0\0II"), segment(0xE2, b"MPF\0"), segment(0xED, b"Photoshop 3.0\0")
    cmyk = encoded(PHOTO.convert("CMYK"), "JPEG", quality=98)
    whole = AugmentConfig(crop_area=(1.0, 1.0), crop_aspect=(0.1, 10.0))
    for image in (
        JPEG,
        inserted(JPEG, turned),
        inserted(JPEG, *odd),
        inserted(JPEG, *odd, turned),
        cmyk,
        tiff(packed(levels(RAMP, 12), 12), bits=12),
        tiff(packed(levels(RAMP, 16), 16), bits=16, kind=0),
    ):
        crops = [
            crop(image, np.random.default_rng(1), Preprocessing(image_size=30), whole).astype(int)
            for crop in (fast_crop, pillow_crop)
        ]
        assert np.abs(crops[0] - crops[1]).max() < 12
    place = cmyk.index(b"\xff\xee")
    with pytest.raises(ImageError, match="Adobe"):
        fast_crop(
            cmyk[:place] + cmyk[place + 16 :], np.random.default_rng(1), Preprocessing(), whole
        )


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), ("float32", "uint8")),
        (np.zeros((4, 4), bool), ("bool",)),
        (np.zeros((4, 4, 4), np.uint8), ("(4, 4, 4)", "[..., :3]")),
        (np.zeros((4, 4, 1), np.uint8), ("(4, 4, 1)", "[..., 0]")),
        (np.zeros((3, 4, 5), np.uint8), ("(3, 4, 5)", "transpose(1, 2, 0)")),
        (np.zeros((2, 4, 4, 3), np.uint8), ("(2, 4, 4, 3)", "x[0]")),
        (np.zeros((4,), np.uint8), ("(4,)",)),
        (np.zeros((0, 4, 3), np.uint8), ("(0, 4, 3)",)),
    ],
)
def test_arrays_that_are_not_a_picture_are_refused(pixels, words):
    assert_refused(pixels, *words)


def test_nothing_is_printed_about_odd_files(tmp_path):
    """Not by Pillow, by libtiff, or by the bomb check in front of our own message."""
    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
    (tmp_path / "bomb").write_bytes(bomb)
    odd = tiff(packed(levels(RAMP, 8), 8), t59932=("I", (2**32 - 1,)), t282=("I", (1, 2, 3)))
    (tmp_path / "odd").write_bytes(odd)
    (tmp_path / "cut").write_bytes(odd[: len(odd) - 60])
    (tmp_path / "mpo").write_bytes(inserted(JPEG, segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff")))
    code = (
        "import sys, pathlib\n"
        "from gnet_jax.data.decode import ImageError, decode\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try: decode(path.read_bytes())\n"
        "    except ImageError as error: print(path.name)\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "always::UserWarning",
            "-W",
            "always::RuntimeWarning",
            "-c",
            code,
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["bomb", "cut"]
    assert done.stderr == ""


class OneImage:
    """A source of one image."""

    class_names = ("a", "b")
    split = "train"

    def __init__(self, image: bytes) -> None:
        self._image = image

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Example:
        return Example(self._image, 0)

    def describe(self, index: int) -> str:
        return "photo"

    def fingerprint(self) -> str:
        return "photo"


def test_check_data_lists_what_is_odd_about_a_good_file():
    def odd(image: bytes) -> dict[str, str]:
        facts = inspect(OneImage(image), 0)
        assert facts.bad is None
        return dict(facts.odd)

    turned = segment(0xE1, b"Exif\0\0" + orientation_block(3, b"\6\0\0\0"))
    assert odd(inserted(JPEG, turned)).keys() >= {"turned by EXIF"}
    assert odd(tiff(packed(levels(RAMP, 12), 12), bits=12)).keys() >= {"12 bit", "grey"}
    transparent = png(levels(RAMP, 8), 8, 0, (b"tRNS", struct.pack(">H", 1)))
    assert odd(transparent).keys() == {"grey", "transparent", "a side below 32 pixels"}
    pages = encoded(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(9)])
    assert odd(pages).keys() >= {"several pictures"}
