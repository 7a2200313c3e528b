"""Encoded images to the uint8 squares that are shipped to the device.

Shapes: H height, W width, C channels (red, green, blue).
"""

import io
import math

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from gnet_jax.config import Preprocessing

MAX_PIXELS = 50_000_000  # above this an image is refused before it is decoded


class ImageError(ValueError):
    """Bytes that are not an image this project will read."""


def decode(image: bytes | np.ndarray) -> Image.Image:
    """An upright RGB picture from encoded bytes, or from uint8 pixels (H, W) or (H, W, 3).

    The format is told by content. EXIF orientation is honoured; grey, CMYK and palette images are
    converted, transparency is dropped.

    Raises:
        ImageError: for bytes that are no image, are cut short, or hold over 50 million pixels.
    """
    if isinstance(image, np.ndarray):
        return Image.fromarray(image).convert("RGB")
    try:
        with Image.open(io.BytesIO(image)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ImageError(
                    f"the image has {opened.width}x{opened.height} pixels; "
                    f"over {MAX_PIXELS // 10**6} million are refused"
                )
            if opened.mode in ("I", "I;16", "I;16B", "I;16L"):
                grey = np.asarray(opened, np.int64)  # 16 bits a pixel: keep the high byte
                return Image.fromarray((grey.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ImageError(f"not a readable image: {error}") from error


def random_crop(
    picture: Image.Image,
    generator: np.random.Generator,
    size: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> np.ndarray:
    """A random rectangle of the picture, resized to (size, size, 3) uint8 (paper, section 6).

    Its share of the picture's area is uniform in `area`, its width / height log-uniform in
    `aspect`, its place uniform. Where ten draws do not fit, the largest central rectangle of an
    allowed aspect is taken.
    """
    width, height = picture.size
    for _ in range(10):
        target = width * height * generator.uniform(*area)
        ratio = math.exp(generator.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = math.sqrt(target * ratio), math.sqrt(target / ratio)
        if w <= width and h <= height:
            left, top = generator.uniform(0, width - w), generator.uniform(0, height - h)
            return _resized(picture, (left, top, left + w, top + h), size)
    ratio = min(max(width / height, aspect[0]), aspect[1])
    w, h = min(width, height * ratio), min(height, width / ratio)
    left, top = (width - w) / 2, (height - h) / 2
    return _resized(picture, (left, top, left + w, top + h), size)


def central_crop(picture: Image.Image, p: Preprocessing) -> np.ndarray:
    """What the network sees of a picture in evaluation: (S, S, 3) uint8, red, green, blue.

    The picture is resized as `p` says, and the central square of `p.image_size` pixels is cut out.
    """
    if p.resize == "warp":
        width = height = p.resize_to
    else:
        scale = p.resize_to / min(picture.size)
        width, height = (max(p.resize_to, round(n * scale)) for n in picture.size)
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - p.image_size) // 2, (height - p.image_size) // 2
    return np.asarray(resized.crop((left, top, left + p.image_size, top + p.image_size)))


def _resized(picture: Image.Image, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))
