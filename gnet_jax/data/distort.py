"""Photometric distortions of training images, on the device.

Brightness, contrast and saturation follow A. Howard (arXiv 1312.5402, section 2.2), whom the paper
cites (section 6); with the hue they are torchvision's ColorJitter.

The pixels have the same bits however a batch is split and whatever a compiler fuses: every value is
on a grid so coarse that float32 rounds no product of two of them, with or without a fused
multiply-add. Pixels are sixteenths of a level of 0..255, finer than any file has.

Shapes: B batch, H height, W width, C channels.
"""

import jax
import jax.numpy as jnp

from gnet_jax.config import AugmentConfig

GREY = (77 / 256, 150 / 256, 29 / 256)  # luma of ITU-R BT.601 (0.299, 0.587, 0.114), in 8 bits
PIXEL = 16  # pixels are multiples of 1 / this: 12 of the 24 bits of a float32
FACTOR = 1024  # the same for factors and shares of two images
HUE = 4096  # and for sixths of the colour circle
NAMES = ("brightness", "contrast", "saturation", "hue")


def distort(images_BHWC: jax.Array, keys_B: jax.Array, *, augmentation: AugmentConfig) -> jax.Array:
    """Returns float32 images of 0 to 255, each distorted by its own factors in its own order.

    Brightness blends the image with black, contrast with its mean grey, saturation with its own
    grey, by a factor uniform in 1 +- the strength; see `blend`. The hue turns by a share of the
    colour circle uniform in +- the strength.

    Args:
        images_BHWC: red, green, blue.
        keys_B: one key per image.
        augmentation: the strengths; 0 switches a distortion off.
    """

    def distort_one(image_HWC: jax.Array, key: jax.Array) -> jax.Array:
        order_key, *keys = jax.random.split(key, 1 + len(NAMES))
        factors = {}
        for name, factor_key in zip(NAMES, keys, strict=True):  # a name always has the same key
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
    """Returns the image with the one distortion that is due.

    It computes all of them, because the images of one program cannot take different paths.
    """
    grey_HW1 = grey(image_HWC)
    others = {"brightness": 0.0, "contrast": mean_grey(grey_HW1), "saturation": grey_HW1}
    # The three blends differ only in a factor and a grey image: select those, and blend once.
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
    """Returns `x` rounded to multiples of 1 / `parts`, a power of two."""
    return jnp.round(x * parts) / parts


def blend(image_HWC: jax.Array, other: jax.Array | float, factor: jax.Array | float) -> jax.Array:
    """Returns `factor * image + (1 - factor) * other`, clipped to 0..255, on the grid of pixels."""
    blended_HWC = factor * image_HWC + (1 - factor) * other
    return on_grid(jnp.clip(blended_HWC, 0.0, 255.0), PIXEL)


def grey(image_HWC: jax.Array) -> jax.Array:
    """Returns the grey image (H, W, 1) of an RGB image."""
    red, green, blue = (image_HWC[..., i : i + 1] for i in range(3))
    return on_grid(GREY[0] * red + GREY[1] * green + GREY[2] * blue, PIXEL)


def mean_grey(grey_HW1: jax.Array) -> jax.Array:
    """Returns the mean of a grey image, its pixels rounded to whole levels.

    A sum of integers does not depend on the order in which a device adds them.
    """
    total = jnp.sum(jnp.round(grey_HW1).astype(jnp.int32))
    return on_grid(total / grey_HW1.size, PIXEL)


def turn_hue(image_HWC: jax.Array, turn: jax.Array | float) -> jax.Array:
    """Returns the image with its hue turned by a share of the colour circle.

    It goes through HSV and back: channel n is `value - chroma * clip(min(k, 4 - k), 0, 1)` with
    `k = (n + 6 hue) mod 6`, n = 5, 3, 1. Value and chroma stay.
    """
    red, green, blue = (image_HWC[..., i] for i in range(3))
    value, lowest = jnp.max(image_HWC, -1), jnp.min(image_HWC, -1)
    chroma = value - lowest
    is_red, is_green = (red >= green) & (red >= blue), green >= blue
    corner = jnp.where(is_red, 0.0, jnp.where(is_green, 2.0, 4.0))
    above = jnp.where(is_red, green - blue, jnp.where(is_green, blue - red, red - green))
    sixths = corner + on_grid(above / jnp.where(chroma > 0, chroma, 1.0), HUE)  # any, for grey
    channels = []
    for n in (5, 3, 1):
        k = (n + sixths + 6 * turn) % 6
        channels.append(value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1))
    return on_grid(jnp.stack(channels, -1), PIXEL)
