"""Encoded images to the uint8 squares that are shipped to the device.

Shapes: H height, W width, C channels (red, green, blue).
"""

import contextlib
import functools
import io
import math
from collections.abc import Iterator
from typing import NamedTuple, cast

import numpy as np
from PIL import Image, ImageFile, ImageOps

from gnet_jax.config import AugmentConfig, Preprocessing, UserError, choose
from gnet_jax.data.metadata import (
    REMEDY,
    Bare,
    Tiff,
    TiffError,
    bare,
    exif_orientation,
    tiff_facts,
    xmp_orientation,
)

MAX_PIXELS = 50_000_000  # above this an image is refused before it is decoded
# Photos come in these. Pillow would try forty more, one of which (EPS) runs a program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
SCALED = ("PNG", "PPM")  # whose grey of more than 8 bits Pillow scales to 16
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What interpolation "random" draws from; BOX is the mean over the area that a pixel covers.
FILTERS = (
    Image.Resampling.BILINEAR,
    Image.Resampling.BOX,
    Image.Resampling.BICUBIC,
    Image.Resampling.NEAREST,
)


class ImageError(UserError):
    """Bytes that are not an image this project will read."""


def decode(image: bytes | np.ndarray) -> Image.Image:
    """Returns an upright RGB picture of encoded bytes, or of uint8 pixels (H, W) or (H, W, 3).

    The content tells the format. The first picture of several is taken. The orientation is
    honoured; grey, CMYK, YCbCr, Lab and palette images are converted without their colour profiles,
    the 8 highest bits of a channel are kept, transparency is dropped.

    Raises:
        ImageError: for bytes that are not an image, are cut short or damaged so that it shows, hold
            over 50 million pixels, or hold pixels whose range or meaning is unknown: 32 bits,
            signed or floating-point numbers, CMYK in a JPEG without an Adobe marker. Also for an
            array of another dtype or shape.
    """
    if isinstance(image, np.ndarray):
        return Image.fromarray(_checked(image)).convert("RGB")
    with opening(image) as opened:
        picture = _rgb(opened)
        method = TURNS.get(opened.orientation)
        return picture if method is None else picture.transpose(method)


def _checked(pixels: np.ndarray) -> np.ndarray:
    """`pixels`, if they are a picture: uint8 (H, W) or (H, W, 3)."""
    if pixels.dtype != np.uint8:
        raise ImageError(
            f"the pixels are {pixels.dtype}, but must be uint8 from 0 to 255; convert them, "
            "floats in 0..1 by (255 * x).round().astype(np.uint8)"
        )
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)) or not pixels.size:
        remedy = ""
        if pixels.ndim == 4:
            remedy = "; pass one picture at a time, as x[0]"
        elif pixels.shape[2:] == (1,):
            remedy = "; pass x[..., 0]"
        elif pixels.shape[2:] == (4,):
            remedy = "; drop the transparency by x[..., :3]"
        elif pixels.ndim == 3 and pixels.shape[0] in (1, 3):
            remedy = "; move the channels to the end by x.transpose(1, 2, 0)"
        raise ImageError(
            f"the pixels have the shape {pixels.shape}, but must be (H, W) or (H, W, 3){remedy}"
        )
    _check_pixels((pixels.shape[1], pixels.shape[0]), "the image")
    return pixels


class Opened(NamedTuple):
    """An image file that is not decoded yet."""

    picture: ImageFile.ImageFile  # its format, mode and size are known
    image: bytes  # without metadata
    orientation: int  # as EXIF numbers them; 1 is upright
    tiff: Tiff | None  # what a TIFF says about its pixels


@contextlib.contextmanager
def opening(image: bytes) -> Iterator[Opened]:
    """The image file in `image`, opened and not yet decoded.

    Raises:
        ImageError: as `decode`, also for what goes wrong with it inside of the context.
    """
    kind, tiff = _format(image), None
    try:
        tiff = tiff_facts(image) if kind == "TIFF" else None
        stripped = bare(image) if tiff is None else Bare(tiff.image, tiff.orientation)
        # Image.open would report one reason for every fault, and warn of large images.
        with Image.OPEN[kind][0](io.BytesIO(stripped.image), "") as picture:
            _check_pixels(picture.size, "the image")
            yield Opened(picture, stripped.image, _orientation(picture, stripped), tiff)
    except ImageError:
        raise
    except TiffError as error:
        raise ImageError(str(error)) from None
    except SyntaxError as error:  # Pillow's, for what it does not know
        what = f"a {kind} file" if tiff is None else tiff.described
        raise ImageError(f"{what}, which is not read ({error}); {REMEDY}") from error
    except Exception as error:  # decoders raise whatever a damaged file makes them trip over
        raise ImageError(f"a damaged image: {error or type(error).__name__}") from error


def _format(image: bytes) -> str:
    """The format, one of `FORMATS`, that the first bytes tell."""
    if not image:
        raise ImageError("not an image: it is empty")
    for name in known_formats():
        accept = Image.OPEN[name][1]
        if accept is not None and accept(image[:16]) is True:
            return name
    known = ", ".join(known_formats())
    # The first bytes show a web page, a Git LFS pointer, HEIC and the like.
    raise ImageError(
        f"not an image: its {len(image):,} bytes are none of {known}; they begin with "
        f"{image[:16]!r}"
    )


def _orientation(picture: ImageFile.ImageFile, stripped: Bare) -> int:
    """1 to 8, as EXIF numbers them. An EXIF block overrides an XMP packet, as in Pillow."""
    exif = stripped.exif or exif_orientation(picture.info.get("exif", b""))
    if exif or picture.format == "AVIF":  # of which Pillow writes the block, by its boxes
        return exif or 1
    return stripped.xmp or xmp_orientation(picture.info.get("xmp", b"")) or 1


@functools.cache
def known_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow knows."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_pixels(size: tuple[int, int], what: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{what} has {width}x{height} pixels; over {MAX_PIXELS // 10**6} million are refused"
        )


def _rgb(opened: Opened) -> Image.Image:
    """The picture as RGB, not turned yet; never by a conversion that clips."""
    picture, tiff = opened.picture, opened.tiff
    if picture.mode == "CMYK" and picture.format == "JPEG" and "adobe" not in picture.info:
        raise ImageError(
            "a CMYK JPEG without an Adobe marker: nothing says whether 0 is full ink or none; "
            "save it as RGB"
        )
    if picture.format == "JPEG2000" and picture.mode != "I;16":
        _check_jpeg2000(opened.image)
    if picture.format == "PPM" and picture.tile[0].codec_name == "ppm":
        _check_portable_map(opened)
    # Pillow gives 16-bit grey as I;16, and from some formats scaled to 16 bits in a 32-bit I.
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in SCALED):
        high = np.asarray(picture, np.int64) >> ((tiff.bits if tiff else 16) - 8)
        rgb = Image.fromarray(high.astype(np.uint8)).convert("RGB")
    elif picture.mode in ("I", "F"):
        raise ImageError("the image has 32-bit pixels of unknown range; save it with 8 or 16 bits")
    else:
        picture.load()
        rgb = picture
        if picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes):
            rgb = picture.convert("RGBA")  # what Pillow asks for; the colours are the same
        elif picture.mode == "La":  # the only way from grey that was multiplied by its alpha
            rgb = picture.convert("LA")
        rgb = rgb if rgb.mode == "RGB" else rgb.convert("RGB")
    return ImageOps.invert(rgb) if tiff and tiff.inverted else rgb


def _check_jpeg2000(image: bytes) -> None:
    """Raise for colours of more than 8 bits, of which Pillow turns the highest values into 0."""
    size = image.find(b"\xff\x4f\xff\x51") + 40  # the number of channels in the first marker
    channels = int.from_bytes(image[size : size + 2], "big")
    bits = max((image[size + 2 : size + 2 + 3 * channels : 3]), default=0) % 128 + 1
    if bits > 8:
        raise ImageError(f"a JPEG 2000 with {bits} bits a colour, which is not read; {REMEDY}")


def _check_portable_map(opened: Opened) -> None:
    """Raise for values above the highest that the file declares, which Pillow cuts off."""
    tile = opened.picture.tile[0]
    _, highest = cast(tuple[str, int], tile.args)
    dtype = np.dtype(np.uint8 if highest < 256 else ">u2")
    data = memoryview(opened.image)[tile.offset :]
    width, height = opened.picture.size
    count = min(len(data) // dtype.itemsize, width * height * len(opened.picture.getbands()))
    largest = np.frombuffer(data, dtype, count).max(initial=0)
    if largest > highest:
        raise ImageError(f"a damaged image: it holds {largest}, but declares {highest} as white")


def training_crop(
    picture: Image.Image, generator: np.random.Generator, p: Preprocessing, a: AugmentConfig
) -> np.ndarray:
    """A random part of the picture, resized to (S, S, 3) uint8, S being `p.image_size`.

    Of `crop` "random_area" it is a rectangle whose share of the area is uniform in `a.crop_area`,
    its width / height log-uniform in `a.crop_aspect`, its place uniform (paper, section 6); where
    ten draws do not fit, the largest central rectangle of an allowed aspect. Of "fixed_scale" it is
    a random square of the picture that evaluation would crop centrally (Caffe, data_transformer).

    With interpolation "random", one of the four `FILTERS` resizes it, drawn after the part, which
    is therefore the same with both.
    """
    box = training_box(picture.size, generator, p, a)
    drawn = {"bilinear": lambda: 0, "random": lambda: generator.integers(len(FILTERS))}
    kind = FILTERS[choose("augment.interpolation", a.interpolation, drawn)()]
    return np.asarray(picture.resize((p.image_size, p.image_size), kind, box=box))


def training_box(
    size: tuple[int, int], generator: np.random.Generator, p: Preprocessing, a: AugmentConfig
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the part that `training_crop` takes of a picture of `size`."""
    crops = {
        "random_area": lambda: _random_box(size, generator, a.crop_area, a.crop_aspect),
        "fixed_scale": lambda: _random_square(size, generator, p),
    }
    return choose("augment.crop", a.crop, crops)()


def _random_square(
    size: tuple[int, int], generator: np.random.Generator, p: Preprocessing
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom), in a picture of `size`, of a random square of the resized one."""
    # Of any size: only the square is ever resized.
    sizes = {"warp": (p.resize_to, p.resize_to), "shorter_side": _scaled(size, p.resize_to)}
    width, height = choose("resize", p.resize, sizes)
    left = generator.integers(width - p.image_size + 1)
    top = generator.integers(height - p.image_size + 1)
    x, y = size[0] / width, size[1] / height
    return left * x, top * y, (left + p.image_size) * x, (top + p.image_size) * y


def _random_box(
    size: tuple[int, int],
    generator: np.random.Generator,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a random rectangle of a picture of `size`."""
    width, height = size
    for _ in range(10):
        target = width * height * generator.uniform(*area)
        ratio = math.exp(generator.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = math.sqrt(target * ratio), math.sqrt(target / ratio)
        if w <= width and h <= height:
            left, top = generator.uniform(0, width - w), generator.uniform(0, height - h)
            return left, top, left + w, top + h
    ratio = min(max(width / height, aspect[0]), aspect[1])
    w, h = min(width, height * ratio), min(height, width / ratio)
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def pillow_crop(
    image: bytes | np.ndarray, generator: np.random.Generator, p: Preprocessing, a: AugmentConfig
) -> np.ndarray:
    """`training_crop` of what `decode` makes of `image`."""
    return training_crop(decode(image), generator, p, a)


def central_crop(picture: Image.Image, p: Preprocessing) -> np.ndarray:
    """What the network sees of a picture in evaluation: (S, S, 3) uint8, red, green, blue.

    The picture is resized as `p` says, and the central square of `p.image_size` pixels is cut out.

    Raises:
        ImageError: for a picture so narrow that the resized one would be a bomb.
    """
    width, height = evaluation_size(picture.size, p)
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - p.image_size) // 2, (height - p.image_size) // 2
    return np.asarray(resized.crop((left, top, left + p.image_size, top + p.image_size)))


def evaluation_size(size: tuple[int, int], p: Preprocessing) -> tuple[int, int]:
    """(width, height) that `p` resizes a whole picture of `size` to, before the central crop.

    Raises:
        ImageError: as `shorter_side_size`.
    """
    sizes = {
        "warp": lambda: _square_size(p.resize_to),
        "shorter_side": lambda: shorter_side_size(size, p.resize_to),
    }
    return choose("resize", p.resize, sizes)()


def _square_size(side: int) -> tuple[int, int]:
    _check_pixels((side, side), f"a square with sides of {side}")
    return side, side


def shorter_side_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """(width, height) of a picture of `size` scaled so that its shorter side is `shorter`.

    Raises:
        ImageError: if that is over 50 million pixels: a strip of 1x50000 would take 10 GB.
    """
    scaled = _scaled(size, shorter)
    _check_pixels(scaled, f"the image, {size[0]}x{size[1]} scaled to {shorter},")
    return scaled


def _scaled(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    scale = shorter / min(size)
    width, height = (max(shorter, round(n * scale)) for n in size)
    return width, height
