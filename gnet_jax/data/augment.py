"""What the compiled step does to the pixels: hosts send bytes, devices do the rest.

All randomness of an image is keyed by (seed, step, its place in the global batch), so it does not
depend on how the batch is split over devices or hosts.

Shapes: B batch, H height, W width, C channels, K classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gnet_jax.config import AugmentConfig, ConfigError, Preprocessing, choose
from gnet_jax.data.distort import FACTOR, blend, distort, on_grid

ERASED_AREA = (0.02, 0.33)  # arXiv 1708.04896, section 5.1, and torchvision
ERASED_ASPECT = (0.3, 3.3)

# From red, green, blue to the network's order, and back.
CHANNEL_STEPS = {"RGB": slice(None), "BGR": slice(None, None, -1)}


def preprocess(images_BHWC: jax.Array, *, preprocessing: Preprocessing) -> jax.Array:
    """Returns the network's float32 inputs: channels in its order, `(x - mean) / std`.

    Args:
        images_BHWC: uint8 or floating-point pixels from 0 to 255; red, green, blue.
        preprocessing: order, mean and std of the channels.

    Raises:
        ConfigError: for another dtype or shape, and outside of `jax.jit` for another range.
    """
    _check_pixels(images_BHWC)
    images_BHWC = images_BHWC[..., choose("channels", preprocessing.channels, CHANNEL_STEPS)]
    mean = jnp.asarray(preprocessing.mean, jnp.float32)
    std = jnp.asarray(preprocessing.std, jnp.float32)
    return (images_BHWC.astype(jnp.float32) - mean) / std


def _check_pixels(images: jax.Array) -> None:
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ConfigError(
            f"the images have the shape {images.shape}, but must be (B, H, W, 3), red, green and "
            "blue; pass a single image as x[None]"
        )
    if images.dtype == jnp.uint8:
        return
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ConfigError(
            f"the pixels are {images.dtype}, but must be uint8 or floating-point numbers from 0 to "
            "255; pass x.astype(np.uint8) if that is their range"
        )
    if isinstance(images, Tracer) or not images.size:
        return
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 255) or 0 < high <= 1:
        fix = "x * 255" if low >= 0 and high <= 1 else ""
        fix = "(x + 1) * 127.5" if -1 <= low < 0 and high <= 1 else fix
        raise ConfigError(
            f"the pixels are from {low:.6g} to {high:.6g}, but must be from 0 to 255"
            f"{'; pass ' if fix else ''}{fix}"
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
) -> tuple[jax.Array, jax.Array]:
    """Mirror, distort, mix, `preprocess` and erase training images, which the host has cropped.

    A part that `augmentation` switches off leaves nothing in the compiled program.

    Args:
        images_BHWC: uint8, red, green, blue.
        label_B: int32.
        key: randomness of this step.
        preprocessing: as in `preprocess`.
        augmentation: the parts and their strengths.
        num_classes: K, the length of a target.
        offset: place of the first image in the global batch; must be even for mixup.

    Returns:
        float32 inputs (B, H, W, C) and float32 targets (B, K). A target is one-hot, or holds the
        shares of both classes of a mixed image, at least one half for its own.

    Raises:
        ConfigError: if an odd number of images is to be mixed.
    """
    a = augmentation
    places_B = offset + jnp.arange(images_BHWC.shape[0])
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, places_B)
    if a.flip:
        mirrored_B = jax.vmap(jax.random.bernoulli)(keys_B)
        images_BHWC = jnp.where(_per_image(mirrored_B), images_BHWC[:, :, ::-1], images_BHWC)
    if a.brightness or a.contrast or a.saturation or a.hue:
        images_BHWC = distort(images_BHWC, _fold_in(keys_B, 1), augmentation=a)
    targets_BK = jax.nn.one_hot(label_B, num_classes, dtype=jnp.float32)
    if a.mixup:
        images_BHWC, targets_BK = _mix(images_BHWC, targets_BK, _fold_in(keys_B, 2), a.mixup)
    x_BHWC = preprocess(images_BHWC, preprocessing=preprocessing)
    if a.erase:
        x_BHWC = _erase(x_BHWC, _fold_in(keys_B, 3), a.erase)
    return x_BHWC, targets_BK


def _fold_in(keys_B: jax.Array, number: int) -> jax.Array:
    """Returns keys for another purpose. 0 would repeat the bits that mirror the image."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)


def _per_image(values_B: jax.Array) -> jax.Array:
    return values_B[:, None, None, None]


def _mix(
    images_BHWC: jax.Array, targets_BK: jax.Array, keys_B: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image with its neighbour in the batch (mixup, arXiv 1710.09412).

    Places 0 and 1 are neighbours, 2 and 3, and so on. They are a random pair, because every epoch
    is another permutation. If each device holds an even number of images, no image moves between
    devices, and pmap, which sees only its own share, mixes the same pairs. Each image draws a share
    of its own.
    """
    if images_BHWC.shape[0] % 2:
        raise ConfigError(
            f"augment.mixup is {alpha:g} and mixes pairs of images, but a device holds "
            f"{images_BHWC.shape[0]} images of a batch; it must be an even number"
        )
    share_B = jax.vmap(_draw_share, (0, None))(keys_B, alpha)
    images_BHWC = images_BHWC.astype(jnp.float32)
    images_BHWC = blend(images_BHWC, _neighbours(images_BHWC), _per_image(share_B))
    share_B1 = share_B[:, None]
    return images_BHWC, share_B1 * targets_BK + (1 - share_B1) * _neighbours(targets_BK)


def _neighbours(x_B: jax.Array) -> jax.Array:
    """Returns for each place the entry of place ^ 1."""
    return x_B.reshape(-1, 2, *x_B.shape[1:])[:, ::-1].reshape(x_B.shape)


def _draw_share(key: jax.Array, alpha: float) -> jax.Array:
    """Returns the larger of s and 1 - s, for s drawn from Beta(alpha, alpha), in 1024ths.

    The image itself keeps the larger share. Neighbours are exchangeable, so the distribution of the
    mixed images is the same, and each example is the main part of one image in every epoch.

    The draw is exact and needs two uniform numbers: Student's t with 2 alpha degrees of freedom by
    Bailey's polar method, and from it the symmetric beta (L. Devroye, Random variate generation in
    one line of code, 1996). A rejection sampler would loop until all devices agree to end.
    """
    u, v = jax.random.uniform(key, (2,))
    # t^2 / (2 alpha); 80 keeps the exponential finite, where the share is 1 to the last bit
    t2 = jnp.expm1(jnp.minimum(-jnp.log(u) / alpha, 80.0)) * jnp.cos(2 * jnp.pi * v) ** 2
    return on_grid(0.5 + 0.5 * jnp.sqrt(t2 / (1 + t2)), FACTOR)


def _erase(x_BHWC: jax.Array, keys_B: jax.Array, probability: float) -> jax.Array:
    """Sets a random rectangle of that share of the images to zero, the mean colour.

    Random erasing (arXiv 1708.04896). A side is at most as long as the image, so no draw fails.
    """
    height, width = x_BHWC.shape[1:3]

    def rectangle(key: jax.Array) -> jax.Array:
        chosen_key, area_key, aspect_key, top_key, left_key = jax.random.split(key, 5)
        area = jax.random.uniform(area_key, (), minval=ERASED_AREA[0], maxval=ERASED_AREA[1])
        low, high = np.log(ERASED_ASPECT)
        aspect = jnp.exp(jax.random.uniform(aspect_key, (), minval=low, maxval=high))
        h = jnp.sqrt(area * height * width * aspect)
        w = jnp.sqrt(area * height * width / aspect)
        h, w = (
            jnp.clip(jnp.round(side), 1, whole).astype(jnp.int32)
            for side, whole in ((h, height), (w, width))
        )
        top = jax.random.randint(top_key, (), 0, height - h + 1)
        left = jax.random.randint(left_key, (), 0, width - w + 1)
        rows, columns = jnp.arange(height), jnp.arange(width)
        inside_H = (rows >= top) & (rows < top + h)
        inside_W = (columns >= left) & (columns < left + w)
        chosen = jax.random.bernoulli(chosen_key, probability)
        return chosen & inside_H[:, None] & inside_W[None, :]

    erased_BHW = jax.vmap(rectangle)(keys_B)
    return jnp.where(erased_BHW[..., None], 0.0, x_BHWC)
