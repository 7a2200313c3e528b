"""Every kind of image that people have: decoded right or refused, never something in between."""

import io
import struct
import warnings
import zlib
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from gnet_jax.config import Preprocessing
from gnet_jax.data.decode import (
    ImageError,
    _check_array,
    _check_jpeg2000,
    central_crop,
    decode,
    shorter_side_size,
)

GREY = np.linspace(0, 255, 32 * 48).reshape(32, 48).astype(np.uint8)
PIXELS = np.stack([GREY, 255 - GREY, np.full_like(GREY, 200)], axis=-1)
PHOTO = Image.fromarray(PIXELS)


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int, bits: int, rows: bytes) -> bytes:
    """A colour PNG written by hand: Pillow writes neither 16-bit colour nor a lying header."""
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def assert_shows(image: bytes, expected: np.ndarray, tolerance: int = 0) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = decode(image)
    assert picture.mode == "RGB"
    assert picture.size == (expected.shape[1], expected.shape[0])
    difference = np.abs(np.asarray(picture).astype(int) - expected)
    assert difference.max() <= tolerance


def as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_every_pixel(kind):
    assert_shows(encoded(PHOTO, kind), PIXELS)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}])
def test_jpeg_baseline_and_progressive(options):
    assert_shows(encoded(PHOTO, "JPEG", quality=95, **options), PIXELS, tolerance=8)


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_formats_of_the_web(kind):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow is built without {kind}")
    assert_shows(encoded(PHOTO, kind, quality=100), PIXELS, tolerance=12)


def test_gif_gives_its_first_picture():
    frames = [PHOTO.quantize(256), Image.new("RGB", PHOTO.size).quantize()]
    image = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert_shows(image, np.asarray(frames[0].convert("RGB")))


def test_grey_with_and_without_alpha_and_black_and_white():
    grey = Image.fromarray(GREY)
    assert_shows(encoded(grey, "PNG"), as_rgb(GREY))
    assert_shows(encoded(grey, "JPEG", quality=95), as_rgb(GREY), tolerance=4)
    assert_shows(encoded(Image.merge("LA", [grey, grey]), "PNG"), as_rgb(GREY))
    assert_shows(encoded(Image.fromarray(GREY > 99), "PNG"), as_rgb(np.where(GREY > 99, 255, 0)))


def test_alpha_is_dropped():
    transparent = Image.merge("RGBA", [*PHOTO.split(), Image.fromarray(GREY)])
    assert_shows(encoded(transparent, "PNG"), PIXELS)


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(16))])
def test_palette_with_and_without_transparency(transparency):
    palette = PHOTO.quantize(16)
    options = {} if transparency is None else {"transparency": transparency}
    assert_shows(encoded(palette, "PNG", **options), np.asarray(palette.convert("RGB")))


def test_cmyk_tiff_and_jpeg_inverted_as_adobe_writes_it():
    cmyk = PHOTO.convert("CMYK")
    assert_shows(encoded(cmyk, "TIFF"), PIXELS)
    image = encoded(cmyk, "JPEG", quality=98)
    assert b"Adobe" in image  # inverted: 0 is full ink
    assert_shows(image, PIXELS, tolerance=6)


def test_sixteen_bits_keep_the_high_byte():
    wide = (GREY.astype(np.uint16) << 8) | 0xC5
    for kind in ("PNG", "TIFF"):
        assert_shows(encoded(Image.fromarray(wide), kind), as_rgb(GREY))
    big_endian = Image.frombytes("I;16B", (48, 32), wide.astype(">u2").tobytes())
    assert_shows(encoded(big_endian, "TIFF"), as_rgb(GREY))
    assert_shows(b"P5 48 32 65535 " + wide.astype(">u2").tobytes(), as_rgb(GREY))
    colour = ((PIXELS.astype(">u2") << 8) | 0xC5).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in colour)
    assert_shows(png_of(48, 32, 16, rows), PIXELS)


@pytest.mark.parametrize(
    ("depths", "refused"),
    [
        ((7, 7, 7), None),  # one less than the number of bits
        ((0x87, 7, 7), None),  # signed
        ((8, 7, 7), 9),
        ((7, 7, 8), 9),
        ((7, 0x88, 7), 9),
        ((15, 15), 16),
        ((), None),
    ],
)
def test_every_channel_of_a_jpeg_2000_has_at_most_8_bits(depths, refused):
    channels = b"".join(bytes([depth, 1, 1]) for depth in depths)
    header = b"box\xff\x4f\xff\x51" + bytes(36) + len(depths).to_bytes(2, "big") + channels
    with pytest.raises(ImageError, match=f" {refused} bits") if refused else nullcontext():
        _check_jpeg2000(header + b"\x0f" * 9)  # the rest of the file


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_unknown_range_are_refused_not_clipped(dtype):
    image = encoded(Image.fromarray(GREY.astype(dtype)), "TIFF")
    with pytest.raises(ImageError, match="32-bit"):
        decode(image)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation, wide):
    upright = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.swapaxes(0, 1),
        6: PIXELS[::-1].swapaxes(0, 1),
        7: PIXELS[::-1, ::-1].swapaxes(0, 1),
        8: PIXELS[:, ::-1].swapaxes(0, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    if wide:
        stored = Image.fromarray(GREY.astype(np.uint16) << 8)
        assert_shows(encoded(stored, "PNG", exif=exif), as_rgb(upright[..., 0]))
    else:
        assert_shows(encoded(PHOTO, "JPEG", quality=98, exif=exif), upright, tolerance=8)


def test_unusable_exif_does_not_cost_the_picture():
    exif = Image.Exif()
    exif[0x0112] = 99
    assert_shows(encoded(PHOTO, "JPEG", quality=98, exif=exif), PIXELS, tolerance=8)
    garbage = encoded(PHOTO, "JPEG", quality=98, exif=b"Exif\0\0garbage")
    assert_shows(garbage, PIXELS, tolerance=8)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_truncated_files_are_refused(kind, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    image = encoded(Image.fromarray(noise), kind)
    with pytest.raises(ImageError):
        decode(image[: int(len(image) * share)])


def test_bytes_that_are_not_an_image_are_refused_in_one_sentence():
    with pytest.raises(ImageError, match="empty"):
        decode(b"")
    with pytest.raises(ImageError, match="the format is none of JPEG, PNG") as caught:
        decode(b"<!doctype html><h1>404 no page</h1>")
    assert "b'<!doctype html>" in str(caught.value)
    assert "0x" not in str(caught.value)  # no object's address


def test_postscript_is_not_run():
    with pytest.raises(ImageError, match="not an image"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


@pytest.mark.parametrize("size", [(7071, 7072), (10_000, 10_000), (60_000, 60_000)])
def test_bombs_are_refused_before_they_are_decoded(size):
    with pytest.raises(ImageError, match="50 million"):
        decode(png_of(size[0], size[1], 8, b""))


@pytest.mark.parametrize("size", [(7071, 7071), (10_000, 5_000)])
def test_fifty_million_pixels_are_not_a_bomb(size):
    with pytest.raises(ImageError, match="corrupt"):  # this file lacks its pixels
        decode(png_of(size[0], size[1], 8, b""))


@pytest.mark.parametrize(
    ("shape", "refused"),
    [
        ((2, 3), False),
        ((2, 3, 3), False),
        ((50_000_000, 1), False),
        ((50_000_001, 1), True),
        ((16_666_667, 2, 3), False),
        ((7071, 7072, 3), True),
    ],
)
def test_arrays_have_the_same_limit(shape, refused):
    pixels = np.broadcast_to(np.uint8(0), shape)
    with pytest.raises(ImageError, match="50 million") if refused else nullcontext():
        _check_array(pixels)


def test_a_text_bomb_inside_a_png_is_never_unpacked():
    image = encoded(PHOTO, "PNG")
    text = png_chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(10**7)))
    assert_shows(image[:33] + text + image[33:], PIXELS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_damaged_headers_raise_nothing_but_image_error(kind):
    generator = np.random.default_rng(7)
    whole = encoded(PHOTO, kind)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in generator.integers(0, min(len(whole), 400), 3):
            damaged[place] = generator.integers(256)
        try:
            decode(bytes(damaged))
        except ImageError:
            continue


def test_a_strip_that_would_be_resized_to_a_bomb_is_refused():
    strip = Image.new("RGB", (1, 50_000))
    with pytest.raises(ImageError, match="256x12800000"):
        central_crop(strip, Preprocessing())
    assert central_crop(strip, Preprocessing(resize="warp")).shape == (224, 224, 3)


def test_the_shorter_side_gets_the_asked_length():
    assert shorter_side_size((500, 400), 256) == (320, 256)
    assert shorter_side_size((400, 500), 256) == (256, 320)
    assert shorter_side_size((333, 333), 256) == (256, 256)
    assert shorter_side_size((7, 10), 256) == (256, 366)  # of 365.7
    assert shorter_side_size((3, 1000), 256) == (256, 85_333)


def test_the_central_crop_is_central():
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))  # already of the size it is resized to
    picture = Image.fromarray(as_rgb(ramp))
    crop = central_crop(picture, Preprocessing())
    np.testing.assert_array_equal(crop, as_rgb(ramp)[16:240, 16:240])
    turned = central_crop(Image.fromarray(as_rgb(ramp.T)), Preprocessing())
    np.testing.assert_array_equal(turned, as_rgb(ramp.T)[16:240, 16:240])
    odd = central_crop(picture.crop((0, 0, 255, 253)), Preprocessing(resize_to=253))
    np.testing.assert_array_equal(odd, as_rgb(ramp)[14:238, 15:239])


def test_a_photo_of_an_iphone_is_named_with_the_fix():
    with pytest.raises(ImageError, match="HEIC photo, a format that is not supported; convert"):
        decode(bytes(3) + b"\x18ftypheic" + bytes(20))
