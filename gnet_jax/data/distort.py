"""Photometric distortions of training images, on the device.

Brightness, contrast and saturation as A. Howard has them (arXiv 1312.5402, section 2.2) and the
paper after him (section 6); with the hue they are torchvision's ColorJitter.

The pixels are the same to the last bit however a batch is split and whatever a compiler fuses:
every value lies on a grid so coarse that float32 rounds no product of two of them, with or without
a fused multiply-add. Of a level of 0..255 each distortion rounds away a thirtieth at most.

Shapes: B batch, H height, W width, C channels.
"""

import jax
import jax.numpy as jnp

from gnet_jax.config import AugmentConfig

GREY = (77 / 256, 150 / 256, 29 / 256)  # luma of ITU-R BT.601 (0.299, 0.587, 0.114), in 8 bits
PIXEL = 16  # pixels are multiples of 1 / this: 12 bits of the 24 that a float32 keeps
FACTOR = 1024  # factors and shares of two images
HUE = 4096  # sixths of the colour circle


def distort(images_BHWC: jax.Array, keys_B: jax.Array, *, augmentation: AugmentConfig) -> jax.Array:
    """float32 images of 0 to 255, each distorted by factors and in an order of its own.

    Brightness blends the image with black, contrast with its mean grey, saturation with its own
    grey, see `blend`; the factor is uniform in 1 +- the strength. The hue is turned by a share of
    the colour circle, uniform in +- the strength.

    Args:
        images_BHWC: red, green, blue.
        keys_B: one key an image.
        augmentation: the strengths; those that are 0 take no part.
    """
    names = ("brightness", "contrast", "saturation", "hue")

    def one(image_HWC: jax.Array, key: jax.Array) -> jax.Array:
        order_key, *keys = jax.random.split(key, 1 + len(names))
        factors = {}
        for name, factor_key in zip(names, keys, strict=True):  # of each name always the same key
            strength = getattr(augmentation, name)
            if strength:
                most = round(strength * FACTOR)
                change = jax.random.randint(factor_key, (), -most, most + 1) / FACTOR
                factors[name] = change if name == "hue" else 1 + change
        order = jax.random.permutation(order_key, len(factors))
        image_HWC = image_HWC.astype(jnp.float32)
        for place in range(len(factors)):
            due = {name: order[place] == number for number, name in enumerate(factors)}
            image_HWC = _one_of(image_HWC, due, factors)
        return image_HWC

    return jax.vmap(one)(images_BHWC, keys_B)


def _one_of(
    image_HWC: jax.Array, due: dict[str, jax.Array], factors: dict[str, jax.Array]
) -> jax.Array:
    """The image with that one of the distortions which is due.

    All are computed: images side by side in one program cannot take different paths.
    """
    grey_HW1 = grey(image_HWC)
    others = {"brightness": 0.0, "contrast": mean_grey(grey_HW1), "saturation": grey_HW1}
    # The three blends differ in a factor and a grey image alone: select those, and blend once.
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
    """`x` rounded to multiples of 1 / `parts`, a power of two."""
    return jnp.round(x * parts) / parts


def blend(image_HWC: jax.Array, other: jax.Array | float, factor: jax.Array | float) -> jax.Array:
    """`factor * image + (1 - factor) * other`, cut off at 0 and 255, on the grid of pixels."""
    blended_HWC = factor * image_HWC + (1 - factor) * other
    return on_grid(jnp.clip(blended_HWC, 0.0, 255.0), PIXEL)


def grey(image_HWC: jax.Array) -> jax.Array:
    """The grey image (H, W, 1) of an RGB one."""
    red, green, blue = (image_HWC[..., i : i + 1] for i in range(3))
    return on_grid(GREY[0] * red + GREY[1] * green + GREY[2] * blue, PIXEL)


def mean_grey(grey_HW1: jax.Array) -> jax.Array:
    """The mean of a grey image, its pixels rounded to whole levels.

    Their sum is one of integers: that of floats would depend on the order in which a device takes
    them.
    """
    total = jnp.sum(jnp.round(grey_HW1).astype(jnp.int32))
    return on_grid(total / grey_HW1.size, PIXEL)


def turn_hue(image_HWC: jax.Array, turn: jax.Array | float) -> jax.Array:
    """The image with its hue turned by a share of the colour circle; value and chroma stay.

    Through HSV, whose way back needs no cases: channel n is
    `value - chroma * clip(min(k, 4 - k), 0, 1)` with `k = (n + 6 hue) mod 6`, n = 5, 3, 1.
    """
    red, green, blue = (image_HWC[..., i] for i in range(3))
    value, lowest = jnp.max(image_HWC, -1), jnp.min(image_HWC, -1)
    chroma = value - lowest
    of_red, of_green, of_blue = green - blue, blue - red, red - green
    is_red, is_green = (red >= green) & (red >= blue), green >= blue
    corner = jnp.where(is_red, 0.0, jnp.where(is_green, 2.0, 4.0))
    above = jnp.where(is_red, of_red, jnp.where(is_green, of_green, of_blue))
    sixths = corner + on_grid(
        above / jnp.where(chroma > 0, chroma, 1.0), HUE
    )  # of grey any will do
    channels = []
    for n in (5, 3, 1):
        k = (n + sixths + 6 * turn) % 6
        channels.append(value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1))
    return on_grid(jnp.stack(channels, -1), PIXEL)
