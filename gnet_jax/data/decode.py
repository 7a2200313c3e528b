"""Decode images, and crop and resize them to the square uint8 arrays that the device receives.

Shapes: H height, W width, C channels (red, green, blue), S side of the square.
"""

import contextlib
import functools
import io
import math
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFile, ImageOps

from gnet_jax.config import AugmentConfig, Preprocessing, choose
from gnet_jax.data.metadata import REMEDY, Bare, ImageError, bare, exif_orientation, read_tiff

MAX_PIXELS = 50_000_000  # larger images are rejected before they are decoded
# The accepted formats. Pillow has forty more, one of which (EPS) runs an external program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
_T, _R = Image.Transpose, Image.Resampling
HEIC = {b"ftyp" + brand for brand in (b"heic", b"heix", b"hevc", b"heif")}
TURNS = {2: _T.FLIP_LEFT_RIGHT, 3: _T.ROTATE_180, 4: _T.FLIP_TOP_BOTTOM, 5: _T.TRANSPOSE}
TURNS |= {6: _T.ROTATE_270, 7: _T.TRANSVERSE, 8: _T.ROTATE_90}  # by EXIF orientation
# The filters of `interpolation="random"`; BOX averages over the area that a pixel covers.
FILTERS = (_R.BILINEAR, _R.BOX, _R.BICUBIC, _R.NEAREST)
Box = tuple[float, float, float, float]  # left, top, right, bottom


def decode(image: bytes | np.ndarray) -> Image.Image:
    """Converts an encoded image, or uint8 pixels (H, W) or (H, W, 3), to an upright RGB picture.

    The content determines the format. Only the first picture of a file is read, only the highest 8
    bits of a channel are used, and transparency and colour profiles are ignored. Raises ImageError
    if the image is corrupt, is in an unsupported format, or has more than 50 million pixels.
    """
    if isinstance(image, np.ndarray):
        _check_array(image)
        return Image.fromarray(image).convert("RGB")
    with opening(image) as (opened, file):
        picture = _to_rgb(opened, file)
        method = TURNS.get(file.orientation)
        return picture if method is None else picture.transpose(method)


def _check_array(pixels: np.ndarray) -> None:
    shape = pixels.shape
    allowed = len(shape) in (2, 3) and shape[2:] in ((), (3,)) and pixels.size
    if pixels.dtype != np.uint8 or not allowed:
        raise ImageError(
            f"the pixels are {pixels.dtype} of shape {shape}, but must be uint8 of shape (H, W) or "
            "(H, W, 3); (255 * x).round().astype(np.uint8) converts floats from 0 to 1, x[..., 0] "
            "selects one channel, x[..., :3] drops the transparency, x.transpose(1, 2, 0) moves "
            "the channels to the end, and x[0] selects the first picture of a batch"
        )
    _check_size((shape[1], shape[0]))


@contextlib.contextmanager
def opening(image: bytes) -> Iterator[tuple[ImageFile.ImageFile, Bare]]:
    """Yields the opened, not yet decoded picture of a file, and the file without its metadata.

    Any exception, including one raised in the `with` block, is converted to ImageError.
    """
    kind, file = image_format(image), Bare(b"")
    if not image:
        raise ImageError("not an image: the file is empty")
    if kind is None and image[4:12] in HEIC:
        raise ImageError("a HEIC photo, a format that is not supported; convert it to JPEG")
    if kind is None:
        raise ImageError(
            f"not an image: the format is none of {', '.join(known_formats())}; the file has "
            f"{len(image):,} bytes and begins with {image[:16]!r}"
        )
    try:
        file = read_tiff(image) if kind == "TIFF" else bare(image)
        # Image.open would hide the reason for an error, and warn about large images.
        with Image.OPEN[kind][0](io.BytesIO(file.image), "") as picture:
            _check_size(picture.size)
            orientation = file.orientation or exif_orientation(picture.info.get("exif", b""))
            yield picture, file._replace(orientation=orientation)
    except ImageError:
        raise
    except SyntaxError as error:  # Pillow raises it for unsupported files
        what = file.described or f"a {kind} file"
        raise ImageError(f"{what}, which is not supported ({error}); {REMEDY}") from error
    except Exception as error:  # decoders may raise anything for a corrupt file
        raise ImageError(f"a corrupt image: {error or type(error).__name__}") from error


def image_format(image: bytes) -> str | None:
    """Returns the format, one of `FORMATS`, that the first 16 bytes of a file indicate, or None."""
    for name in known_formats():
        accept = Image.OPEN[name][1]
        if accept is not None and accept(image[:16]) is True:
            return name
    return None


@functools.cache
def known_formats() -> tuple[str, ...]:
    """Returns the names in `FORMATS` that this build of Pillow supports."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_size(size: tuple[int, int], what: str = "the image") -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{what} has {width}x{height} pixels; the limit is {MAX_PIXELS // 10**6} million"
        )


def _to_rgb(picture: ImageFile.ImageFile, file: Bare) -> Image.Image:
    """Converts a picture to RGB without clipping values. The result is not upright yet."""
    if picture.mode == "CMYK" and picture.format == "JPEG" and "adobe" not in picture.info:
        raise ImageError(
            "a CMYK JPEG without an Adobe marker, so 0 may mean full or no ink; save it as RGB"
        )
    if picture.format == "JPEG2000" and picture.mode != "I;16":
        _check_jpeg2000(file.image)
    # Pillow opens 16-bit grey in mode I;16, or in the 32-bit mode I with values up to 65535.
    scaled = picture.mode == "I" and picture.format in ("PNG", "PPM")
    if scaled or picture.mode.startswith("I;16"):
        high = np.asarray(picture, np.int64) >> (file.bits - 8)
        rgb = Image.fromarray(high.astype(np.uint8)).convert("RGB")
    elif picture.mode in ("I", "F"):
        raise ImageError(f"the image has 32-bit pixels of unknown range; {REMEDY}")
    else:
        picture.load()
        rgb = picture
        if picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes):
            rgb = picture.convert("RGBA")  # otherwise Pillow warns; the colours are the same
        elif picture.mode == "La":  # Pillow converts La (premultiplied grey) only to LA
            rgb = picture.convert("LA")
        if rgb.mode != "RGB":  # otherwise `convert` would copy the picture
            rgb = rgb.convert("RGB")
    return ImageOps.invert(rgb) if file.inverted else rgb


def _check_jpeg2000(image: bytes) -> None:
    """Raises ImageError if a channel has over 8 bits: Pillow turns its highest values into 0."""
    size = image.find(b"\xff\x4f\xff\x51") + 40  # position of the number of channels
    channels = int.from_bytes(image[size : size + 2], "big")
    bits = max(image[size + 2 : size + 2 + 3 * channels : 3], default=0) % 128 + 1
    if bits > 8:
        what = f"a JPEG 2000 with {bits} bits per channel"
        raise ImageError(f"{what}, which is not supported; {REMEDY}")


def pillow_crop(
    image: bytes | np.ndarray, generator: np.random.Generator, p: Preprocessing, a: AugmentConfig
) -> np.ndarray:
    """Returns a random part of an image, chosen by `training_box`, resized to (S, S, 3) uint8.

    The part is chosen before the resize filter, so it does not depend on `a.interpolation`.
    """
    picture = decode(image)
    box, kind = training_box(picture.size, generator, p, a), _R.BILINEAR
    if choose("augment.interpolation", a.interpolation, {"bilinear": False, "random": True}):
        kind = FILTERS[generator.integers(len(FILTERS))]
    return np.asarray(picture.resize((p.image_size, p.image_size), kind, box=box))


def training_box(
    size: tuple[int, int], generator: np.random.Generator, p: Preprocessing, a: AugmentConfig
) -> Box:
    """Returns the random rectangle to crop from a picture of `size` (width, height).

    With the crop "random_area", the rectangle's share of the area is uniform, and its aspect ratio
    (width / height) is log-uniform. If none of ten samples fits in the picture, it is the largest
    central rectangle with an allowed aspect ratio (paper, section 6). With "fixed_scale", it is as
    large as the central crop of an evaluation (Caffe, data_transformer).
    """
    width, height = size
    if choose("augment.crop", a.crop, {"random_area": False, "fixed_scale": True}):
        resized = evaluation_size(size, p)
        left, top = (int(generator.integers(side - p.image_size + 1)) for side in resized)
        x, y = width / resized[0], height / resized[1]
        return left * x, top * y, (left + p.image_size) * x, (top + p.image_size) * y
    low, high = a.crop_aspect
    for _ in range(10):
        area = width * height * generator.uniform(*a.crop_area)
        aspect = math.exp(generator.uniform(math.log(low), math.log(high)))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = generator.uniform(0, width - w), generator.uniform(0, height - h)
            return left, top, left + w, top + h
    aspect = min(max(width / height, low), high)
    w, h = min(width, height * aspect), min(height, width / aspect)
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def central_crop(picture: Image.Image, p: Preprocessing) -> np.ndarray:
    """Resizes a picture for evaluation, and returns its central square, (S, S, 3) uint8."""
    width, height = evaluation_size(picture.size, p)
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - p.image_size) // 2, (height - p.image_size) // 2
    return np.asarray(resized.crop((left, top, left + p.image_size, top + p.image_size)))


def evaluation_size(size: tuple[int, int], p: Preprocessing) -> tuple[int, int]:
    """Returns the (width, height) to which evaluation resizes a picture before the crop."""
    if choose("resize", p.resize, {"warp": True, "shorter_side": False}):
        return p.resize_to, p.resize_to
    return shorter_side_size(size, p.resize_to)


def shorter_side_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Returns the (width, height) after scaling a picture so that its shorter side is `shorter`.

    Raises ImageError if the result has more than 50 million pixels, because it is long and narrow.
    """
    scale = shorter / min(size)
    width, height = (max(shorter, round(n * scale)) for n in size)
    _check_size((width, height), f"the image, resized from {size[0]}x{size[1]} pixels,")
    return width, height
