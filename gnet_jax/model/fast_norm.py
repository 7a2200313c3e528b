"""Batch norm whose sums over all places are, on CPUs, products with ones: `fast.sum_over_places`.

Variables and results are those of `nn.BatchNorm`.

Shapes: B batch, H height, W width, C channels.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from gnet_jax.model import fast


class BatchNorm(nn.BatchNorm):
    """`nn.BatchNorm` over the last axis, with its scale and bias, and without a mask."""

    @nn.compact
    def __call__(self, x_BHWC, use_running_average=None, *, mask=None) -> jax.Array:
        running = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        shape = x_BHWC.shape[-1:]
        kept_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        kept_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale_C = self.param("scale", self.scale_init, shape, jnp.float32)
        bias_C = self.param("bias", self.bias_init, shape, jnp.float32)
        if running:
            mean_C, var_C = kept_mean.value, kept_var.value
        else:
            mean_C, square_C = (total / (x_BHWC.size // shape[0]) for total in sums(x_BHWC))
            if self.axis_name is not None and not self.is_initializing():
                mean_C, square_C = lax.pmean((mean_C, square_C), self.axis_name)
            var_C = jnp.maximum(0.0, square_C - jnp.square(mean_C))
            if not self.is_initializing():
                for kept, new in ((kept_mean, mean_C), (kept_var, var_C)):
                    kept.value = self.momentum * kept.value + (1 - self.momentum) * new
        factor_C = scale_C * lax.rsqrt(var_C + self.epsilon)
        return normalised(x_BHWC, mean_C, factor_C, bias_C).astype(self.dtype or x_BHWC.dtype)


@jax.custom_vjp
def sums(x_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sums (C,) of the values and of their squares over all places."""
    x = _wide(x_BHWC)
    return _sum(x), _sum(jnp.square(x))


def _sums_forward(x_BHWC):
    return sums(x_BHWC), x_BHWC


def _sums_backward(x_BHWC, d):
    d_sum, d_squares = d
    dx = d_sum + 2 * _wide(x_BHWC) * d_squares
    return (dx.astype(x_BHWC.dtype),)


sums.defvjp(_sums_forward, _sums_backward)


@jax.custom_vjp
def normalised(
    x_BHWC: jax.Array, mean_C: jax.Array, factor_C: jax.Array, bias_C: jax.Array
) -> jax.Array:
    """(x - mean) * factor + bias."""
    return (_wide(x_BHWC) - mean_C) * factor_C + bias_C


def _normalised_forward(x_BHWC, mean_C, factor_C, bias_C):
    return normalised(x_BHWC, mean_C, factor_C, bias_C), (x_BHWC, mean_C, factor_C)


def _normalised_backward(saved, dy):
    x_BHWC, mean_C, factor_C = saved
    d_bias = _sum(dy)
    d_factor = _sum(dy * (_wide(x_BHWC) - mean_C))
    dx = (dy * factor_C).astype(x_BHWC.dtype)
    return dx, -factor_C * d_bias, d_factor, d_bias


normalised.defvjp(_normalised_forward, _normalised_backward)


def _wide(x: jax.Array) -> jax.Array:
    """`x` in the dtype of the statistics: float32, or wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


# All images at once: the recipes that train with batch norm on CPUs have small maps.
_sum = partial(fast.sum_over_places, image_by_image=False)
