"""Encoded images to the uint8 squares that are shipped to the device.

Shapes: H height, W width, C channels (red, green, blue).
"""

import contextlib
import functools
import io
import math
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from gnet_jax.config import AugmentConfig, Preprocessing, UserError, choose

MAX_PIXELS = 50_000_000  # above this an image is refused before it is decoded
# Photos come in these. Pillow would try forty more, one of which (EPS) runs a program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")

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
    """An upright RGB picture from encoded bytes, or from uint8 pixels (H, W) or (H, W, 3).

    The format is told by content, and of an animation the first picture is taken. EXIF orientation
    is honoured; grey, CMYK and palette images are converted, of 16 bits the high byte is kept,
    transparency is dropped.

    Raises:
        ImageError: for bytes that are no image, are cut short or damaged so that it shows, hold
            over 50 million pixels, or hold 32-bit pixels, whose range nothing tells.
    """
    if isinstance(image, np.ndarray):
        return _rgb(Image.fromarray(image), None)
    with opening(image) as opened:
        ImageOps.exif_transpose(opened, in_place=True)  # else it copies what needs no turning
        return _rgb(opened, opened.format)


@contextlib.contextmanager
def opening(image: bytes) -> Iterator[Image.Image]:
    """The image file in `image`, opened and not yet decoded: its format, mode and size are known.

    Raises:
        ImageError: as `decode`, also for what goes wrong with it inside of the context.
    """
    if not image:
        raise ImageError("not an image: it is empty")
    try:
        with Image.open(io.BytesIO(image), formats=known_formats()) as opened:
            _check_pixels(opened.size, "the image")
            yield opened
    except ImageError:
        raise
    except UnidentifiedImageError:
        known = ", ".join(known_formats())
        raise ImageError(f"not an image: its {len(image):,} bytes are none of {known}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"the image is over {MAX_PIXELS // 10**6} million pixels") from error
    except Exception as error:  # decoders raise whatever a damaged file makes them trip over
        raise ImageError(f"a damaged image: {error or type(error).__name__}") from error


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


def _rgb(picture: Image.Image, kind: str | None) -> Image.Image:
    """`picture`, read from a file of format `kind`, as RGB; never by a conversion that clips."""
    # Pillow gives 16-bit grey as I;16, and from some formats scaled to 16 bits in a 32-bit I.
    if picture.mode.startswith("I;16") or (picture.mode == "I" and kind in ("PNG", "PPM")):
        high = np.asarray(picture, np.int64) >> 8
        return Image.fromarray(high.astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise ImageError("the image has 32-bit pixels of unknown range; save it with 8 or 16 bits")
    if picture.mode == "RGB":
        picture.load()
        return picture
    if picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes):
        picture = picture.convert("RGBA")  # what Pillow asks for; the colours are the same
    return picture.convert("RGB")


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
