"""Fast batch norm and bias: sums over all pixels as matrix products, and gradients of their own.

JAX's own gradient of batch norm differentiates each step of the arithmetic, 60 times in a network,
which adds a second to every start.

Shapes: B batch, H height, W width, C channels.
"""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Largest number of values that one product adds up. A product adds them one after the other, and a
# sum of a million numbers so formed is wrong in its fourth digit.
ADDENDS = 64


def sum_pixels(*arrays_BHWC: jax.Array, image_by_image: bool) -> list[jax.Array]:
    """Returns the sum (C,) of each array over all axes but the last.

    On a CPU XLA's sum over the rows of a matrix takes five times as long as the product of a row
    of ones with the matrix.

    Args:
        arrays_BHWC: float32 or wider.
        image_by_image: sum each image first, so that devices that share a batch exchange C sums
            only. For small maps, summing all images at once is faster.
    """

    def sum_by_product(x):
        parts = x.shape[0] if image_by_image else 1
        pixels = math.prod(x.shape[:-1]) // parts
        addends = math.gcd(pixels, ADDENDS)
        ones = lax.full((parts, 1, addends), 1, x.dtype)
        rows = lax.reshape(x, (parts, addends, x.size // (parts * addends)))
        sums = lax.dot_general(ones, rows, (((2,), (1,)), ((0,), (0,))))
        return lax.reshape(sums, (sums.size // x.shape[-1], x.shape[-1])).sum(axis=0)

    def sum_plainly(x):
        return x.sum(axis=tuple(range(x.ndim - 1)))

    def each(function):
        return lambda *arrays: [function(x) for x in arrays]

    return lax.platform_dependent(*arrays_BHWC, cpu=each(sum_by_product), default=each(sum_plainly))


@jax.custom_vjp
def add_bias(x_BHWC: jax.Array, bias_C: jax.Array) -> jax.Array:
    """Returns `x + bias`; the gradient of the bias is summed by `sum_pixels`, in float32."""
    return x_BHWC + bias_C


def _add_bias_forward(x_BHWC, bias_C):
    return add_bias(x_BHWC, bias_C), ()


def _add_bias_backward(_, dy):
    (d_bias,) = sum_pixels(_widen(dy), image_by_image=True)
    return dy, d_bias.astype(dy.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


class BatchNorm(nn.BatchNorm):
    """`nn.BatchNorm` over the last axis, with scale and bias, without a mask.

    The running statistics are constants to the gradient. While the module is initialised it
    creates its variables and returns its input.
    """

    @nn.compact
    def __call__(self, x_BHWC, use_running_average=None, *, mask=None) -> jax.Array:
        use_running = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        shape = x_BHWC.shape[-1:]
        mean = self.variable("batch_stats", "mean", _filled, 0, shape)
        var = self.variable("batch_stats", "var", _filled, 1, shape)
        scale_C = self.param("scale", self.scale_init, shape, jnp.float32)
        bias_C = self.param("bias", self.bias_init, shape, jnp.float32)
        if self.is_initializing():
            return x_BHWC.astype(self.dtype or x_BHWC.dtype)
        if use_running:
            factor_C = scale_C * lax.rsqrt(var.value + self.epsilon)
            y_BHWC = (_widen(x_BHWC) - mean.value) * factor_C + bias_C
        else:
            results: Any = normalize(x_BHWC, scale_C, bias_C, self.epsilon, self.axis_name)
            y_BHWC, *statistics = results
            for running, new in zip((mean, var), statistics, strict=True):
                new = lax.stop_gradient(new)
                if self.momentum:  # momentum 0 saves three operations, 120 times in a network
                    new = self.momentum * running.value + (1 - self.momentum) * new
                running.value = new
        return y_BHWC.astype(self.dtype or x_BHWC.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalize(
    x_BHWC: jax.Array,
    scale_C: jax.Array,
    bias_C: jax.Array,
    epsilon: float,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the batch normalised by its own statistics, their mean and biased variance, (C,).

    All are float32 or wider, and the statistics have no gradient. Under pmap the statistics are
    averaged over `axis_name`.
    """
    return _normalize_forward(x_BHWC, scale_C, bias_C, epsilon, axis_name)[0]


def _normalize_forward(x_BHWC, scale_C, bias_C, epsilon, axis_name):
    x = _widen(x_BHWC)
    _, (mean_C, square_C) = _sums_and_means(x, lax.square(x), axis_name)
    var_C = jnp.maximum(0.0, square_C - lax.square(mean_C))
    inverse_C = lax.rsqrt(var_C + epsilon)
    y = (x - mean_C) * (scale_C * inverse_C) + bias_C
    return (y, mean_C, var_C), (x_BHWC, scale_C, mean_C, inverse_C)


def _normalize_backward(epsilon, axis_name, saved, gradients):
    x_BHWC, scale_C, mean_C, inverse_C = saved
    dy = gradients[0]
    centred = _widen(x_BHWC) - mean_C
    sums, means = _sums_and_means(dy, dy * centred, axis_name)
    # The gradient through the mean and through the variance (arXiv 1502.03167, section 3).
    through_mean_C, slope_C = means[0], means[1] * lax.square(inverse_C)
    dx = (dy - through_mean_C - centred * slope_C) * (scale_C * inverse_C)
    return dx.astype(x_BHWC.dtype), sums[1] * inverse_C, sums[0]


normalize.defvjp(_normalize_forward, _normalize_backward)


def _sums_and_means(
    a_BHWC: jax.Array, b_BHWC: jax.Array, axis_name: str | None
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Returns the sums (C,) of both arrays on this device, and the means over all devices."""
    # All images at once: the recipes that train with batch norm on CPUs have small maps.
    sums = sum_pixels(a_BHWC, b_BHWC, image_by_image=False)
    means = [total / (a_BHWC.size // a_BHWC.shape[-1]) for total in sums]
    return sums, means if axis_name is None else lax.pmean(means, axis_name)


def _filled(value: float, shape: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(np.full(shape, value, np.float32))  # jnp.full compiles once per shape


def _widen(x: jax.Array) -> jax.Array:
    """Returns `x` as float32, or as it is if it is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
