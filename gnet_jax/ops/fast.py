"""Fast operations. Their results equal those of the operations in `reference`, up to rounding.

They define their own gradients, so they do not support forward-mode differentiation.
`lax.platform_dependent` chooses the implementation for the platform that a program is lowered for.
A program can be lowered for a TPU on a machine that has none.

Shapes: B batch, H height, W width, C channels.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gnet_jax.ops import reference
from gnet_jax.ops.fast_conv import convolve, convolve_1x1s
from gnet_jax.ops.reference import REFERENCE, Ops
from gnet_jax.ops.sizes import pool_padding, pooled_size

# Largest number of values that one matrix product adds up. It adds them one after the other, and in
# float32 the sum of a million numbers computed in this way is wrong in the fourth digit.
ADDENDS = 64


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(x_BHWC: jax.Array, window: int, stride: int, pad: int = 0) -> jax.Array:
    """Computes `reference.max_pool`. Of equal maxima, both give the gradient to the same one.

    On CPUs, XLA computes the gradient window by window, which is slow. So on CPUs this function
    takes the maximum of shifted views of the whole input.
    """

    def of_views(x):
        return reduce(lax.max, _views(x, window, stride, pad))

    def plain(x):
        return reference.max_pool(x, window, stride, pad)

    return lax.platform_dependent(x_BHWC, cpu=of_views, default=plain)


def _max_pool_forward(x_BHWC, window, stride, pad):
    y = max_pool(x_BHWC, window, stride, pad)
    return y, (x_BHWC, y)


def _max_pool_backward(window, stride, pad, saved, dy):
    def to_first(x, y, dy):
        return _to_first(x, y, dy, window, stride, pad)

    def plain(x, _, dy):
        _, pullback = jax.vjp(lambda x: reference.max_pool(x, window, stride, pad), x)
        return pullback(dy)[0]

    return (lax.platform_dependent(*saved, dy, cpu=to_first, default=plain),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _views(x, window: int, stride: int, pad: int) -> list[jax.Array]:
    """Returns one array for each element of a window, in row-major order: this element of every
    window, or -inf in the padding.
    """
    edges = pool_padding(x.shape[1:3], window, stride, pad)
    rows, columns = ((pooled_size(n, window, stride, pad) - 1) * stride + 1 for n in x.shape[1:3])
    # Without the barrier, XLA would read some views from `x` and some from its padded copy.
    x = lax.optimization_barrier(_pad(x, edges, -jnp.inf))
    return [
        x[:, i : i + rows : stride, j : j + columns : stride]
        for i in range(window)
        for j in range(window)
    ]


def _pad(x, edges, value) -> jax.Array:
    """Pads the rows and columns of `x`."""
    around = [(0, 0, 0), *((low, high, 0) for low, high in edges), (0, 0, 0)]
    return lax.pad(x, jnp.asarray(value, x.dtype), around)


def _to_first(x, y, dy, window: int, stride: int, pad: int) -> jax.Array:
    """Returns the gradient of the max pool: `dy` of a window goes to its first maximum."""
    place = jnp.full(y.shape, -1, np.min_scalar_type(-(window**2)))
    for k, view in reversed(list(enumerate(_views(x, window, stride, pad)))):
        place = jnp.where(view == y, k, place)
    # Position stride * i + r of the padded input is element r of window i, element r + stride of
    # window i - 1, and so on. Sum these for each r, then interleave the sums.
    sizes, before = x.shape[1:3], (window - 1) // stride
    rows, columns = (-(-(n + pad) // stride) for n in sizes)
    edges = [(before, rows - y.shape[1]), (before, columns - y.shape[2])]
    place, dy = lax.optimization_barrier((_pad(place, edges, -1), _pad(dy, edges, 0)))
    elements = [range(r, window, stride) for r in range(stride)]
    lines = []
    for i_all in elements:
        sums = []
        for j_all in elements:
            total = jnp.zeros((x.shape[0], rows, columns, x.shape[3]), dy.dtype)
            for i, j in itertools.product(i_all, j_all):
                top, left = before - i // stride, before - j // stride
                part = np.s_[:, top : top + rows, left : left + columns]
                total += jnp.where(place[part] == i * window + j, dy[part], 0)
            sums.append(total)
        lines.append(jnp.stack(sums, axis=3))
    dx = jnp.stack(lines, axis=2).reshape(x.shape[0], rows * stride, columns * stride, -1)
    return dx[:, pad : pad + sizes[0], pad : pad + sizes[1]]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def local_response_norm(x_BHWC: jax.Array, lrn: tuple[int, float, float, float]) -> jax.Array:
    """Computes `reference.local_response_norm`, and stores only `x` for the gradient.

    The power in `lrn` is a multiple of 0.25.
    """
    return _lrn_forward(x_BHWC, lrn)[0]


def _lrn_forward(x_BHWC, lrn):
    factor, _ = _lrn_factors(x_BHWC, lrn)
    return (x_BHWC.astype(jnp.float32) * factor).astype(x_BHWC.dtype), x_BHWC


def _lrn_backward(lrn, x_BHWC, dy):
    size, _, alpha, power = lrn
    # Without the barrier, XLA would store the float32 scale of the forward pass. On a TPU, storing
    # it takes longer than computing it again.
    x_BHWC = lax.optimization_barrier(x_BHWC)
    factor, slope = _lrn_factors(x_BHWC, lrn)
    x, dy = x_BHWC.astype(jnp.float32), dy.astype(jnp.float32)
    parts = [(dy * factor).astype(x_BHWC.dtype), (dy * x * slope).astype(x_BHWC.dtype)]
    # On TPUs, storing both parts takes less time than computing the scale twice.
    direct, through_scale = lax.platform_dependent(
        parts, tpu=lax.optimization_barrier, default=lambda parts: parts
    )
    dx = direct - 2 * power * alpha * x * _sum_neighbours(through_scale, size)
    return (dx.astype(x_BHWC.dtype),)


local_response_norm.defvjp(_lrn_forward, _lrn_backward)


def _lrn_factors(x_BHWC, lrn) -> tuple[jax.Array, jax.Array]:
    """Returns s**-power and s**-(power + 1), where s is bias + alpha * (sum of squares)."""
    size, bias, alpha, power = lrn
    scale = bias + alpha * _sum_neighbours(jnp.square(x_BHWC.astype(jnp.float32)), size)
    # No powers are needed: s**-0.75 = rsqrt(sqrt(s))**3. On CPUs, XLA computes one root and its
    # products in one pass; it writes the results of two roots or a division to memory.
    root = lax.rsqrt(lax.sqrt(scale))
    factor = root ** round(4 * power)
    return factor, factor * (root * root) * (root * root)


def _sum_neighbours(x_BHWC: jax.Array, size: int) -> jax.Array:
    """Returns for each channel the float32 sum over the `size` channels around it.

    Shifts are slow on TPUs, so there the sums are a product with a banded matrix.
    """
    banded, shifted = (partial(form, size=size) for form in (_banded_sum, _shifted_sum))
    return lax.platform_dependent(x_BHWC, tpu=banded, default=shifted)


def _shifted_sum(x_BHWC: jax.Array, size: int) -> jax.Array:
    channels = x_BHWC.shape[-1]
    x = jnp.pad(x_BHWC, [(0, 0)] * 3 + [(size // 2, size // 2)])
    first, *others = (x[..., k : k + channels].astype(jnp.float32) for k in range(size))
    return sum(others, first)


def _banded_sum(x_BHWC: jax.Array, size: int) -> jax.Array:
    distance = np.subtract.outer(*2 * [np.arange(x_BHWC.shape[-1])])
    return lax.dot_general(
        x_BHWC,
        jnp.asarray(abs(distance) <= size // 2, x_BHWC.dtype),
        (((3,), (0,)), ((), ())),
        precision=lax.Precision.HIGHEST,  # do not round float32 inputs
        preferred_element_type=jnp.float32,
    )


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """Returns the ReLU. The gradient uses the output, because the next layer stores that anyway."""
    return jnp.maximum(x, 0)


def _relu_forward(x):
    y = relu(x)
    return y, y


def _relu_backward(y, dy):
    # Without the barrier, XLA would replace y > 0 with x > 0 and store x, too.
    y = lax.platform_dependent(y, cpu=lambda y: y, default=lax.optimization_barrier)
    return (jnp.where(y > 0, dy, 0),)


relu.defvjp(_relu_forward, _relu_backward)


def sum_pixels(*arrays_BHWC: jax.Array, image_by_image: bool) -> list[jax.Array]:
    """Returns the sum of each array over all axes except the last, as an array (C,).

    The arrays are float32 or wider. On a CPU, the sum over the rows of a matrix is computed as a
    product with ones, which is five times as fast as XLA's sum. With `image_by_image`, devices that
    share a batch exchange only C sums; for small maps, summing all images at once is faster.
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
    """Returns `x + bias`. `sum_pixels` computes the gradient of the bias, in float32."""
    return x_BHWC + bias_C


def _add_bias_backward(_, dy):
    (d_bias,) = sum_pixels(_widen(dy), image_by_image=True)
    return dy, d_bias.astype(dy.dtype)


add_bias.defvjp(lambda x_BHWC, bias_C: (add_bias(x_BHWC, bias_C), ()), _add_bias_backward)


def constant(value: float) -> Callable[..., jax.Array]:
    """Returns an initialiser with a constant `value`; jnp.full would compile for each shape."""

    def fill(key: jax.Array | None, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        return jnp.asarray(np.full(shape, value, np.float32), dtype)

    return fill


class BatchNorm(nn.Module):
    """Computes the same as `nn.BatchNorm`, but the running statistics have no gradient.

    During initialisation, the module only creates its variables and returns its input.
    """

    use_running_average: bool
    momentum: float
    epsilon: float
    dtype: Any  # of the output
    axis_name: str | None = None
    group: int | None = None  # images that are normalised together; None: all

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        shape = x_BHWC.shape[-1:]
        mean = self.variable("batch_stats", "mean", constant(0.0), None, shape)
        var = self.variable("batch_stats", "var", constant(1.0), None, shape)
        scale_C = self.param("scale", constant(1.0), shape)
        bias_C = self.param("bias", constant(0.0), shape)
        if self.is_initializing():
            return x_BHWC.astype(self.dtype)
        if self.use_running_average:
            factor_C = scale_C * lax.rsqrt(var.value + self.epsilon)
            y_BHWC = (_widen(x_BHWC) - mean.value) * factor_C + bias_C
        else:
            options = (scale_C, bias_C, self.epsilon, self.axis_name)
            y_BHWC, *statistics = _normalize_groups(x_BHWC, self.group, *options)
            for running, new in zip((mean, var), statistics, strict=True):
                new = lax.stop_gradient(new)
                if self.momentum:  # with momentum 0, skip three operations, 120 times in a network
                    new = self.momentum * running.value + (1 - self.momentum) * new
                running.value = new
        return y_BHWC.astype(self.dtype)


def _normalize_groups(x_BHWC: jax.Array, group: int | None, *options: Any) -> Any:
    """Returns `normalize` of each `group` consecutive images, and the means of its statistics."""
    if group is None:
        return normalize(x_BHWC, *options)
    x_GBHWC = x_BHWC.reshape(-1, group, *x_BHWC.shape[1:])
    y_GBHWC, mean_GC, var_GC = jax.vmap(lambda x: normalize(x, *options))(x_GBHWC)
    return y_GBHWC.reshape(x_BHWC.shape), mean_GC.mean(0), var_GC.mean(0)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalize(
    x_BHWC: jax.Array, scale_C: jax.Array, bias_C: jax.Array, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the normalised batch, its mean (C,) and its biased variance (C,), float32 or wider.

    The statistics have no gradient; under pmap they are averaged over `axis_name`. The gradient is
    written by hand, because JAX's own gradient would add a second to the start of every program.
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


def _sums_and_means(a_BHWC, b_BHWC, axis_name) -> tuple[list[jax.Array], list[jax.Array]]:
    """Returns the sums (C,) of both arrays on this device, and the means over all devices."""
    # Sum all images at once, because the batch-norm recipes for CPUs have small feature maps.
    sums = sum_pixels(a_BHWC, b_BHWC, image_by_image=False)
    means = [total / (a_BHWC.size // a_BHWC.shape[-1]) for total in sums]
    return sums, means if axis_name is None else lax.pmean(means, axis_name)


def _widen(x: jax.Array) -> jax.Array:
    """Returns `x` as float32, or unchanged if its dtype is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


FAST = Ops(max_pool, local_response_norm, convolve, convolve_1x1s, add_bias, relu, BatchNorm)
OPS: Mapping[str, Ops] = {"fast": FAST, "reference": REFERENCE}
