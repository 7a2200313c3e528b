"""Augment and normalise uint8 images on the device, inside the compiled step.

The random numbers of an image depend only on the seed, the step and the image's position in the
global batch, not on how the batch is split among devices. Letters in names stand for dimensions:
B batch, H height, W width, C channels, K classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gnet_jax.config import AugmentConfig, ConfigError, Preprocessing, choose

ERASED_AREA = (0.02, 0.33)  # arXiv 1708.04896, section 5.1, and torchvision
ERASED_ASPECT = (0.3, 3.3)
GREY = (77 / 256, 150 / 256, 29 / 256)  # luma of ITU-R BT.601 (0.299, 0.587, 0.114), in 8 bits
# Values are rounded to multiples of 1 / PIXEL, 1 / FACTOR or 1 / HUE, to make products exact.
PIXEL = 16  # for pixels, which then use 12 of the 24 bits of a float32
FACTOR = 1024  # for factors, and for the weights of mixed images
HUE = 4096  # for hues, in sixths of the colour circle
NAMES = ("brightness", "contrast", "saturation", "hue")

# By channel order of the network, the index that converts from red, green, blue, and back.
CHANNEL_STEPS = {"RGB": slice(None), "BGR": slice(None, None, -1)}


def preprocess(images_BHWC: jax.Array, *, preprocessing: Preprocessing) -> jax.Array:
    """Returns the network's float32 input: reordered channels, normalised by `(x - mean) / std`.

    Args:
        images_BHWC: uint8 or floating-point pixels from 0 to 255; red, green, blue.
        preprocessing: order, mean and std of the channels.

    Raises:
        ConfigError: if the dtype, the shape or (outside of `jax.jit` only) the range is wrong.
    """
    _check_pixels(images_BHWC)
    images_BHWC = images_BHWC[..., choose("channels", preprocessing.channels, CHANNEL_STEPS)]
    mean = jnp.asarray(preprocessing.mean, jnp.float32)
    std = jnp.asarray(preprocessing.std, jnp.float32)
    return (images_BHWC.astype(jnp.float32) - mean) / std


def _check_pixels(images: jax.Array) -> None:
    if not hasattr(images, "dtype"):
        raise ConfigError(
            f"the images are a {type(images).__name__}, but must be an array of pixels; for files "
            "and PIL images, use the method `batch` of a model that gnet_jax.load returns"
        )
    floats = jnp.issubdtype(images.dtype, jnp.floating)
    if images.ndim != 4 or images.shape[-1] != 3 or not (floats or images.dtype == jnp.uint8):
        raise ConfigError(
            f"the images are {images.dtype} of shape {images.shape}, but must be uint8 or "
            "floating-point RGB pixels from 0 to 255 of shape (B, H, W, 3); pass a single image as "
            "x[None], and other integer types as x.astype(np.uint8)"
        )
    if not floats or isinstance(images, Tracer) or not images.size:
        return
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 255) or 0 < high <= 1:
        raise ConfigError(
            f"the pixels are from {low:.6g} to {high:.6g}, but must be from 0 to 255; pass x * 255 "
            "if they are from 0 to 1, or (x + 1) * 127.5 if they are from -1 to 1"
        )


def augment(
    images_BHWC: jax.Array,
    label_B: jax.Array,
    key: jax.Array,
    *,
    preprocessing: Preprocessing,
    augmentation: AugmentConfig,
    num_classes: int,
    offset: int | jax.Array = 0,
    size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Changes the host's cropped uint8 RGB images at random, and normalises them.

    The order is: mirror, shift, distort, mix, normalise, erase a part, and resize to `size` pixels
    a side (None keeps the size). Operations that `augmentation` switches off are not compiled.
    `offset` is the position of the first image in the global batch; it must be even for mixup.
    Returns float32 inputs (B, H, W, C) and float32 targets (B, K). The targets are one-hot; those
    of a mixed image are the weights of its two classes. Raises ConfigError if mixup gets an odd
    number of images.
    """
    a = augmentation
    places_B = offset + jnp.arange(images_BHWC.shape[0])
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, places_B)
    if a.flip:
        mirrored_B = jax.vmap(jax.random.bernoulli)(keys_B)
        images_BHWC = jnp.where(
            mirrored_B[:, None, None, None], images_BHWC[:, :, ::-1], images_BHWC
        )
    if a.shift:
        images_BHWC = _shift(images_BHWC, _fold_in(keys_B, 4), a.shift)
    if a.brightness or a.contrast or a.saturation or a.hue:
        images_BHWC = distort(images_BHWC, _fold_in(keys_B, 1), augmentation=a)
    targets_BK = jax.nn.one_hot(label_B, num_classes, dtype=jnp.float32)
    if a.mixup:
        images_BHWC, targets_BK = _mix(images_BHWC, targets_BK, _fold_in(keys_B, 2), a.mixup)
    x_BHWC = preprocess(images_BHWC, preprocessing=preprocessing)
    if a.erase:
        x_BHWC = _erase(x_BHWC, _fold_in(keys_B, 3), a.erase)
    if size is not None:
        shape = (x_BHWC.shape[0], size, size, x_BHWC.shape[3])
        x_BHWC = jax.image.resize(x_BHWC, shape, "linear")  # antialiased
    return x_BHWC, targets_BK


def _fold_in(keys_B: jax.Array, number: int) -> jax.Array:
    """Returns the images' keys for augmentation `number`. 0 would repeat the bits of mirroring."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)


def _shift(images_BHWC: jax.Array, keys_B: jax.Array, most: int) -> jax.Array:
    """Moves each image by up to `most` pixels up or down and left or right; mirrors its edges."""

    def shift(image_HWC: jax.Array, key: jax.Array) -> jax.Array:
        padded_HWC = jnp.pad(image_HWC, ((most, most), (most, most), (0, 0)), mode="reflect")
        top, left = jax.random.randint(key, (2,), 0, 2 * most + 1)
        return jax.lax.dynamic_slice(padded_HWC, (top, left, 0), image_HWC.shape)

    return jax.vmap(shift)(images_BHWC, keys_B)


def _mix(
    images_BHWC: jax.Array, targets_BK: jax.Array, keys_B: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image with its neighbour in the batch (mixup, arXiv 1710.09412).

    The pairs are images 0 and 1, 2 and 3, and so on, so both images of a pair are on one device.
    """
    if len(images_BHWC) % 2:
        raise ConfigError(
            f"augment.mixup={alpha:g} mixes images in pairs, so each device needs an even number "
            f"of images per batch; it has {images_BHWC.shape[0]}"
        )
    share_B = jax.vmap(_draw_share, (0, None))(keys_B, alpha)
    images_BHWC = images_BHWC.astype(jnp.float32)
    images_BHWC = blend(images_BHWC, _neighbours(images_BHWC), share_B[:, None, None, None])
    share_B1 = share_B[:, None]
    return images_BHWC, share_B1 * targets_BK + (1 - share_B1) * _neighbours(targets_BK)


def _neighbours(x_B: jax.Array) -> jax.Array:
    return x_B.reshape(-1, 2, *x_B.shape[1:])[:, ::-1].reshape(x_B.shape)


def _draw_share(key: jax.Array, alpha: float) -> jax.Array:
    """Draws s from Beta(alpha, alpha), and returns the larger of s and 1 - s, rounded to 1/1024."""
    # Bailey's polar method draws Student's t with 2 alpha degrees of freedom, which is transformed
    # to the symmetric beta (L. Devroye, Random variate generation in one line of code, 1996). A
    # rejection sampler would need a loop that ends only when all devices agree.
    u, v = jax.random.uniform(key, (2,))
    # t2 is t^2 / (2 alpha). The limit 80 keeps exp finite; at 80, the result is 1.
    t2 = jnp.expm1(jnp.minimum(-jnp.log(u) / alpha, 80.0)) * jnp.cos(2 * jnp.pi * v) ** 2
    return on_grid(0.5 + 0.5 * jnp.sqrt(t2 / (1 + t2)), FACTOR)


def _erase(x_BHWC: jax.Array, keys_B: jax.Array, probability: float) -> jax.Array:
    """Sets a random rectangle of each image to 0 with a given probability (arXiv 1708.04896)."""
    height, width = x_BHWC.shape[1:3]

    def rectangle(key: jax.Array) -> jax.Array:
        chosen_key, area_key, aspect_key, top_key, left_key = jax.random.split(key, 5)
        area = jax.random.uniform(area_key, (), minval=ERASED_AREA[0], maxval=ERASED_AREA[1])
        low, high = np.log(ERASED_ASPECT)
        aspect = jnp.exp(jax.random.uniform(aspect_key, (), minval=low, maxval=high))
        h = jnp.sqrt(area * height * width * aspect)
        w = jnp.sqrt(area * height * width / aspect)
        h = jnp.clip(jnp.round(h), 1, height).astype(jnp.int32)
        w = jnp.clip(jnp.round(w), 1, width).astype(jnp.int32)
        top = jax.random.randint(top_key, (), 0, height - h + 1)
        left = jax.random.randint(left_key, (), 0, width - w + 1)
        rows, columns = jnp.arange(height), jnp.arange(width)
        inside_H = (rows >= top) & (rows < top + h)
        inside_W = (columns >= left) & (columns < left + w)
        chosen = jax.random.bernoulli(chosen_key, probability)
        return chosen & inside_H[:, None] & inside_W[None, :]

    erased_BHW = jax.vmap(rectangle)(keys_B)
    return jnp.where(erased_BHW[..., None], 0.0, x_BHWC)


def distort(images_BHWC: jax.Array, keys_B: jax.Array, *, augmentation: AugmentConfig) -> jax.Array:
    """Changes the brightness, contrast, saturation and hue of each image, in random order.

    Each of the first three is multiplied by a factor that is uniform in 1 +- its strength. The hue
    is rotated by a fraction of the colour circle, uniform in +- its strength (arXiv 1312.5402,
    section 2.2, and torchvision's ColorJitter). Returns float32 pixels from 0 to 255. Both are
    rounded so that float32 products are exact, and the bits do not depend on how a batch is split.
    """

    def distort_one(image_HWC: jax.Array, key: jax.Array) -> jax.Array:
        order_key, *keys = jax.random.split(key, 1 + len(NAMES))
        factors = {}
        for name, factor_key in zip(NAMES, keys, strict=True):  # each name always gets the same key
            strength = getattr(augmentation, name)
            if strength:
                most = round(strength * FACTOR)
                change = jax.random.randint(factor_key, (), -most, most + 1) / FACTOR
                factors[name] = change if name == "hue" else 1 + change
        order = jax.random.permutation(order_key, len(factors))
        image_HWC = image_HWC.astype(jnp.float32)
        for place in range(len(factors)):
            due = {name: order[place] == number for number, name in enumerate(factors)}
            image_HWC = _apply(image_HWC, due, factors)
        return image_HWC

    return jax.vmap(distort_one)(images_BHWC, keys_B)


def _apply(
    image_HWC: jax.Array, due: dict[str, jax.Array], factors: dict[str, jax.Array]
) -> jax.Array:
    """Computes every distortion of an image, and returns the one that `due` selects."""
    grey_HW1 = grey(image_HWC)
    others = {"brightness": 0.0, "contrast": mean_grey(grey_HW1), "saturation": grey_HW1}
    # Three distortions blend with a grey image. Select that image and the factor, and blend once.
    factor, other_HW1 = jnp.float32(1.0), jnp.zeros_like(grey_HW1)
    for name, other in others.items():
        if name in due:
            factor = jnp.where(due[name], factors[name], factor)
            other_HW1 = jnp.where(due[name], other, other_HW1)
    out_HWC = blend(image_HWC, other_HW1, factor)
    if "hue" in due:
        out_HWC = jnp.where(due["hue"], turn_hue(image_HWC, factors["hue"]), out_HWC)
    return out_HWC


def on_grid(x: jax.Array, parts: int) -> jax.Array:
    """Returns `x` rounded to multiples of 1 / `parts`; `parts` is a power of two."""
    return jnp.round(x * parts) / parts


def blend(image_HWC: jax.Array, other: jax.Array | float, factor: jax.Array | float) -> jax.Array:
    """Returns `factor * image + (1 - factor) * other`, clipped to 0..255 and rounded."""
    blended_HWC = factor * image_HWC + (1 - factor) * other
    return on_grid(jnp.clip(blended_HWC, 0.0, 255.0), PIXEL)


def grey(image_HWC: jax.Array) -> jax.Array:
    """Returns the grey image (H, W, 1) of an RGB image."""
    red, green, blue = (image_HWC[..., i : i + 1] for i in range(3))
    return on_grid(GREY[0] * red + GREY[1] * green + GREY[2] * blue, PIXEL)


def mean_grey(grey_HW1: jax.Array) -> jax.Array:
    """Returns the mean of a grey image, after rounding its pixels to integers."""
    # A sum of integers does not depend on the order in which a device adds them.
    total = jnp.sum(jnp.round(grey_HW1).astype(jnp.int32))
    return on_grid(total / grey_HW1.size, PIXEL)


def turn_hue(image_HWC: jax.Array, turn: jax.Array | float) -> jax.Array:
    """Returns the image with its HSV hue rotated by `turn`, a fraction of the colour circle."""
    red, green, blue = (image_HWC[..., i] for i in range(3))
    value, lowest = jnp.max(image_HWC, -1), jnp.min(image_HWC, -1)
    chroma = value - lowest
    is_red, is_green = (red >= green) & (red >= blue), green >= blue
    corner = jnp.where(is_red, 0.0, jnp.where(is_green, 2.0, 4.0))
    above = jnp.where(is_red, green - blue, jnp.where(is_green, blue - red, red - green))
    sixths = corner + on_grid(above / jnp.where(chroma > 0, chroma, 1.0), HUE)  # grey has no hue
    channels = []
    for n in (5, 3, 1):
        k = (n + sixths + 6 * turn) % 6
        channels.append(value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1))
    return on_grid(jnp.stack(channels, -1), PIXEL)
