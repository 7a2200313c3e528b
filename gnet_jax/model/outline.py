"""Forms that give results of the right shape and dtype, and no values: for what needs no more.

Parameters are drawn, and shapes and costs told, by running the network once. What its operations
compute is of no use then, and to trace it would take longer than all else.

Shapes: B batch, H height, W width, C channels.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from gnet_jax.model import layers
from gnet_jax.model.initializers import constant


def max_pool(x_BHWC: jax.Array, window: int, stride: int, pad: int = 0) -> jax.Array:
    """Of the size of `layers.max_pool`."""
    return _filled(x_BHWC, [layers.pooled_size(n, window, stride, pad) for n in x_BHWC.shape[1:3]])


def same(x: jax.Array, *_: jax.Array) -> jax.Array:
    """`x`, for an operation that changes neither its shape nor its dtype."""
    return x


def convolve(
    x_BHWC: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **_: Any,
) -> jax.Array:
    """Of the size of `lax.conv_general_dilated`; `padding` is "SAME" or (low, high) of H and W."""
    axes = list(zip(x_BHWC.shape[1:3], kernel.shape[:2], strides, strict=True))
    if isinstance(padding, str):
        padding = [layers.same_padding(*axis) for axis in axes]
    sizes = [(n + sum(p) - k) // s + 1 for (n, k, s), p in zip(axes, padding, strict=True)]
    return _filled(x_BHWC, sizes, kernel.shape[-1])


class BatchNorm(nn.BatchNorm):
    """The variables of `nn.BatchNorm`; no batch has a say in them while it is initialised."""

    @nn.compact
    def __call__(self, x_BHWC, use_running_average=None, *, mask=None) -> jax.Array:
        shape = x_BHWC.shape[-1:]
        for name, value in (("mean", 0.0), ("var", 1.0)):
            self.variable("batch_stats", name, constant(value), None, shape)
        self.param("scale", self.scale_init, shape, jnp.float32)
        self.param("bias", self.bias_init, shape, jnp.float32)
        return x_BHWC


def _filled(x_BHWC: jax.Array, sizes: Sequence[int], channels: int | None = None) -> jax.Array:
    """An image of other sizes; made of `x`, so that it is known only where `x` is."""
    batch, *_, old = x_BHWC.shape
    one = lax.slice(x_BHWC, (0, 0, 0, 0), (1, 1, 1, 1))
    return lax.broadcast_in_dim(one, (batch, *sizes, channels or old), (0, 1, 2, 3))
