"""Batch norm with a gradient rule of its own, its sums over all places by `fast.sums_over_places`.

Variables and results are those of `nn.BatchNorm`. JAX's own rule would differentiate each step of
the arithmetic on means and variances, 60 times over in a network: a second of every start.

Shapes: B batch, H height, W width, C channels.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from gnet_jax.model import fast


class BatchNorm(nn.BatchNorm):
    """`nn.BatchNorm` over the last axis, with its scale and bias, and without a mask.

    The running statistics are constants to the gradient, as they are to every loss.
    """

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
            factor_C = scale_C * lax.rsqrt(kept_var.value + self.epsilon)
            y_BHWC = (_wide(x_BHWC) - kept_mean.value) * factor_C + bias_C
        else:
            axis_name = None if self.is_initializing() else self.axis_name
            own: Any = by_batch(x_BHWC, scale_C, bias_C, self.epsilon, axis_name)
            y_BHWC, mean_C, var_C = own
            if not self.is_initializing():
                for kept, new in ((kept_mean, mean_C), (kept_var, var_C)):
                    new = lax.stop_gradient(new)
                    if self.momentum:  # without, three operations less, 120 times over
                        new = self.momentum * kept.value + (1 - self.momentum) * new
                    kept.value = new
        return y_BHWC.astype(self.dtype or x_BHWC.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def by_batch(
    x_BHWC: jax.Array,
    scale_C: jax.Array,
    bias_C: jax.Array,
    epsilon: float,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The batch normalised by its own statistics, and these: mean and biased variance, (C,).

    All float32 or wider; of the statistics no gradient is taken. Under pmap, `axis_name` is the
    axis over which they are averaged.
    """
    return _by_batch_forward(x_BHWC, scale_C, bias_C, epsilon, axis_name)[0]


def _by_batch_forward(x_BHWC, scale_C, bias_C, epsilon, axis_name):
    x = _wide(x_BHWC)
    _, (mean_C, square_C) = _sums_and_means(x, lax.square(x), axis_name)
    var_C = jnp.maximum(0.0, square_C - lax.square(mean_C))
    inverse_C = lax.rsqrt(var_C + epsilon)
    y = (x - mean_C) * (scale_C * inverse_C) + bias_C
    return (y, mean_C, var_C), (x_BHWC, scale_C, mean_C, inverse_C)


def _by_batch_backward(epsilon, axis_name, saved, gradients):
    x_BHWC, scale_C, mean_C, inverse_C = saved
    dy = gradients[0]
    centred = _wide(x_BHWC) - mean_C
    sums, means = _sums_and_means(dy, dy * centred, axis_name)
    # What each place gets by way of the mean, and of the variance (arXiv 1502.03167, section 3).
    through_mean_C, slope_C = means[0], means[1] * lax.square(inverse_C)
    dx = (dy - through_mean_C - centred * slope_C) * (scale_C * inverse_C)
    return dx.astype(x_BHWC.dtype), sums[1] * inverse_C, sums[0]


by_batch.defvjp(_by_batch_forward, _by_batch_backward)


def _sums_and_means(
    a_BHWC: jax.Array, b_BHWC: jax.Array, axis_name: str | None
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Of two arrays the sums (C,) over this device's places, and the means over all of them."""
    # All images at once: the recipes that train with batch norm on CPUs have small maps.
    sums = fast.sums_over_places(a_BHWC, b_BHWC, image_by_image=False)
    means = [total / (a_BHWC.size // a_BHWC.shape[-1]) for total in sums]
    return sums, means if axis_name is None else lax.pmean(means, axis_name)


def _wide(x: jax.Array) -> jax.Array:
    """`x` in the dtype of the statistics: float32, or wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
