"""What the compiled step does to the pixels: hosts ship bytes, devices do the rest.

Shapes: B batch, H height, W width, C channels.
"""

import jax
import jax.numpy as jnp

from gnet_jax.config import Preprocessing


def preprocess(
    images_BHWC: jax.Array,
    key: jax.Array | None = None,
    *,
    preprocessing: Preprocessing,
    flip: bool = False,
    offset: int | jax.Array = 0,
) -> jax.Array:
    """uint8 images to float32 network inputs: mirrored by chance, then `(x - mean) / std`.

    Args:
        images_BHWC: uint8, red, green, blue.
        key: randomness of this step; None mirrors nothing (evaluation).
        preprocessing: order, mean and std of the channels.
        flip: mirror half of the images.
        offset: place of the first image in the global batch. An image's randomness is keyed by its
            place, so it does not depend on how the batch is split over devices.
    """
    if flip and key is not None:
        places = offset + jnp.arange(images_BHWC.shape[0])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
        mirrored = jax.vmap(jax.random.bernoulli)(keys)[:, None, None, None]
        images_BHWC = jnp.where(mirrored, images_BHWC[:, :, ::-1], images_BHWC)
    if preprocessing.channels == "BGR":
        images_BHWC = images_BHWC[..., ::-1]
    mean = jnp.asarray(preprocessing.mean, jnp.float32)
    std = jnp.asarray(preprocessing.std, jnp.float32)
    return (images_BHWC.astype(jnp.float32) - mean) / std
