"""What the compiled step does to the pixels: hosts ship bytes, devices do the rest.

Shapes: B batch, H height, W width, C channels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def preprocess(
    images_BHWC: jax.Array,
    key: jax.Array | None = None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    flip: bool = False,
    offset: int | jax.Array = 0,
) -> jax.Array:
    """uint8 images to float32 network inputs: mirrored by chance, then `(x - mean) / std`.

    Args:
        images_BHWC: uint8, red, green, blue.
        key: randomness of this step; None mirrors nothing (evaluation).
        mean, std: a value a channel, in units of 0 to 255.
        flip: mirror half of the images.
        offset: place of the first image in the global batch. An image's randomness is keyed by its
            place, so it does not depend on how the batch is split over devices.
    """
    if flip and key is not None:
        places = offset + jnp.arange(images_BHWC.shape[0])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
        mirrored = jax.vmap(jax.random.bernoulli)(keys)[:, None, None, None]
        images_BHWC = jnp.where(mirrored, images_BHWC[:, :, ::-1], images_BHWC)
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (images_BHWC.astype(jnp.float32) - mean) / std
