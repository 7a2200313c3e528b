"""Kernels in mirrored pairs: the network treats an image and its mirror image almost alike.

Channels 2n and 2n + 1 of every layer are a pair: in the mirror image of the input, their maps are
mirrored and change places (the group of one reflection in arXiv 1602.07576). This holds if the
kernel of a layer stays the same when its columns are mirrored and the channels of every pair of its
inputs and outputs change places. So half of the parameters are free, and an image teaches the
network as much as it and its mirror image together. The parameters are stored like all others.

Two things treat the images differently: layers with a stride of 2 on maps of an even size, because
their windows begin at the left edge and exceed the right one; and, slightly, the mean and variance
of batch norm, which come from batches that contain only one of the two images. The auxiliary heads
have no pairs, because their linear layers depend on the position in the image.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gnet_jax.config import ConfigError
from gnet_jax.model.architecture import Architecture


def mirrored(params: Any) -> Any:
    """Mirrors the kernels, and exchanges the channels of each pair. Returns the new parameters.
    Their network computes from a mirror image what that of `params` computes from the image.
    """

    def mirror(path: Any, x: jax.Array) -> jax.Array:
        axes = _paired_axes(path, x)
        if axes and x.ndim == 4:
            x = x[:, ::-1]
        for axis in axes:
            x = jnp.take(x, np.arange(x.shape[axis]) ^ 1, axis)
        return x

    return jax.tree.map_with_path(mirror, params)


def in_pairs(params: Any) -> Any:
    """Returns parameters in pairs: a pair's second channel is the mirror image of the first."""

    def pair(path: Any, x: jax.Array, image: jax.Array) -> jax.Array:
        axes = _paired_axes(path, x)
        if not axes:
            return x
        second = np.arange(x.shape[axes[-1]]) % 2 == 1
        return jnp.where(jnp.expand_dims(second, range(1, x.ndim - axes[-1])), image, x)

    return jax.tree.map_with_path(pair, params, mirrored(params))


def average_pairs() -> optax.GradientTransformation:
    """Returns a transformation that keeps parameters in pairs, if the optimiser is the same for
    both channels of a pair: it averages the gradient and its mirror image.
    """

    def average(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda x, image: (x + image) / 2, updates, mirrored(updates))

    return optax.stateless(average)


def check_pairs(arch: Architecture, params: Any) -> None:
    """Raise a ConfigError if a network cannot have its kernels in pairs.
    `params` has its parameters or their shapes.
    """
    if arch.norm == "lrn":
        raise ConfigError(
            "optim.mirrored_pairs cannot be used with LRN, which mixes neighbouring channels; "
            "add --model.norm batch_norm"
        )
    if arch.own_parts:
        raise ConfigError(
            f"optim.mirrored_pairs cannot be used with {arch.own_parts[0]}, which may treat the "
            "channels of a pair differently"
        )
    for path, x in jax.tree.leaves_with_path(params):
        for axis in _paired_axes(path, x):
            if x.shape[axis] % 2:
                name = "/".join(part.key for part in path)
                raise ConfigError(
                    f"optim.mirrored_pairs needs even numbers of channels, but {name} has the "
                    f"shape {'x'.join(map(str, x.shape))}; use a model.width_multiplier of 0.25, "
                    "0.5, 0.75 or 1, or model.widths"
                )


def _paired_axes(path: Any, x: Any) -> tuple[int, ...]:
    """Returns the axes of a parameter along which channels are in pairs; outputs are the last."""
    layer, name = path[0].key, path[-1].key
    if layer.startswith("aux_"):
        return ()
    if layer == "classifier":
        return (0,) if name == "kernel" else ()
    if x.ndim == 4:
        return (3,) if layer == "conv1" else (2, 3)  # the channels of the image are not in pairs
    return (0,)
