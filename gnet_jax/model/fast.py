"""Fast forms: pooling, normalisation, biases and ReLU with gradient rules of their own.

Each computes what its namesake in `ops.PLAIN` does, and costs a fraction on a CPU: XLA's rule for
the gradient of a max pool visits every window one by one, and that of LRN raises to powers. A rule
of its own (`jax.custom_vjp`) excludes forward-mode differentiation (`jax.jvp`, `jax.hessian`); for
that there are the plain forms, `ops.PLAIN`.

Which form a platform gets is settled when the program is lowered (`jax.lax.platform_dependent`), so
a program compiled for a TPU on a machine without one is the TPU's.

Shapes: B batch, H height, W width, C channels.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gnet_jax.model import layers

ROWS, COLUMNS = 1, 2  # axes


def max_pool(x_BHWC: jax.Array, window: int, stride: int, pad: int = 0) -> jax.Array:
    """`layers.max_pool`; of equal maxima the first in row-major order gets the gradient.

    That is XLA's own choice. On a CPU the maximum is taken over columns, then over rows, each time
    of a few shifted views: elementwise operations that vectorise and fuse.
    """
    return _max_pool(x_BHWC, window, stride, pad)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x_BHWC, window: int, stride: int, pad: int) -> jax.Array:
    def separable(x):
        return _pool_axis(_pool_axis(x, COLUMNS, window, stride, pad), ROWS, window, stride, pad)

    def plain(x):
        return layers.max_pool(x, window, stride, pad)

    return lax.platform_dependent(x_BHWC, cpu=separable, default=plain)


def _max_pool_forward(x_BHWC, window, stride, pad):
    y = _max_pool(x_BHWC, window, stride, pad)
    return y, (x_BHWC, y)


def _max_pool_backward(window, stride, pad, saved, dy):
    def separable(x, y, dy):
        # The first maximum in row-major order lies in the first row that has one.
        rows = _pool_axis(x, COLUMNS, window, stride, pad)
        d_rows = _to_first(rows, y, dy, ROWS, window, stride, pad)
        return _to_first(x, rows, d_rows, COLUMNS, window, stride, pad)

    def plain(x, _, dy):
        _, pullback = jax.vjp(lambda x: layers.max_pool(x, window, stride, pad), x)
        return pullback(dy)[0]

    return (lax.platform_dependent(*saved, dy, cpu=separable, default=plain),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _views(x, axis: int, window: int, stride: int, pad: int) -> list[jax.Array]:
    """View k holds the k-th element of every window along `axis`; -inf where that is padding."""
    size = x.shape[axis]
    out = layers.pooled_size(size, window, stride, pad)
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (pad, max(0, (out - 1) * stride + window - size - pad), 0)
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), padding)
    last = (out - 1) * stride + 1
    return [lax.slice_in_dim(x, k, k + last, stride, axis) for k in range(window)]


def _pool_axis(x, axis: int, window: int, stride: int, pad: int) -> jax.Array:
    first, *others = _views(x, axis, window, stride, pad)
    for view in others:
        first = lax.max(first, view)
    return first


def _to_first(x, y, dy, axis: int, window: int, stride: int, pad: int) -> jax.Array:
    """The gradient of `_pool_axis`: each element of `dy` goes to the first maximum of its window.

    Args:
        x: what was pooled.
        y: its pool along `axis`.
        dy: the gradient with respect to `y`.
    """
    shares, taken = [], jnp.zeros(y.shape, bool)
    for view in _views(x, axis, window, stride, pad):
        hit = view == y
        shares.append(jnp.where(hit & ~taken, dy, 0))
        taken |= hit
    # Position stride * i + r of the padded input is in windows i, i - 1, ... as their element
    # r, r + stride, ...: summed for each r, then interleaved.
    size, out = x.shape[axis], y.shape[axis]
    groups = -(-(size + pad) // stride)
    sums = []
    for r in range(stride):
        total = jnp.zeros((), dy.dtype)
        for k in range(r, window, stride):
            padding = [(0, 0, 0)] * x.ndim
            padding[axis] = (k // stride, groups - k // stride - out, 0)
            total += lax.pad(shares[k], jnp.zeros((), dy.dtype), padding)
        sums.append(jnp.broadcast_to(total, sums[0].shape) if sums else total)
    shape = list(x.shape)
    shape[axis] = groups * stride
    dx = sums[0] if stride == 1 else jnp.stack(sums, axis + 1).reshape(shape)
    return lax.slice_in_dim(dx, pad, pad + size, axis=axis)


def local_response_norm(
    x_BHWC: jax.Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """`layers.local_response_norm`; what is kept for the gradient is `x` alone.

    Only the paper's beta of 0.75 does without powers: s**-0.75 = rsqrt(sqrt(s))**3.
    """
    return _local_response_norm(x_BHWC, size, alpha, beta)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _local_response_norm(x_BHWC, size: int, alpha: float, beta: float) -> jax.Array:
    return _local_response_norm_forward(x_BHWC, size, alpha, beta)[0]


def _local_response_norm_forward(x_BHWC, size, alpha, beta):
    factor, _ = _lrn_factors(x_BHWC, size, alpha, beta)
    return (x_BHWC.astype(jnp.float32) * factor).astype(x_BHWC.dtype), x_BHWC


def _local_response_norm_backward(size, alpha, beta, x_BHWC, dy):
    # Without the barrier XLA would compute the scale once, and keep it from the forward pass on in
    # float32: on a TPU, that costs more than computing it again.
    x_BHWC = lax.optimization_barrier(x_BHWC)
    factor, slope = _lrn_factors(x_BHWC, size, alpha, beta)
    x, dy = x_BHWC.astype(jnp.float32), dy.astype(jnp.float32)
    through_scale = (dy * x * slope).astype(x_BHWC.dtype)
    near = _sum_of_neighbours(through_scale, size)
    dx = dy * factor - 2 * beta * alpha / size * x * near
    return (dx.astype(x_BHWC.dtype),)


_local_response_norm.defvjp(_local_response_norm_forward, _local_response_norm_backward)


def _lrn_factors(x_BHWC, size: int, alpha: float, beta: float) -> tuple[jax.Array, jax.Array]:
    """The scale to the powers of -beta and -beta - 1.

    The scale is 1 + alpha / size * the sum of squares over the channels near each.
    """
    squares = [jnp.square(view.astype(jnp.float32)) for view in _neighbours(x_BHWC, size)]
    scale = 1 + alpha / size * sum(squares[1:], squares[0])
    if beta != 0.75:
        factor = scale**-beta
        return factor, factor / scale
    # Of one root and its products XLA makes no more than one pass; two roots, or a division, it
    # would write to memory on CPUs.
    root = lax.rsqrt(lax.sqrt(scale))
    factor = root * root * root
    return factor, factor * (root * root) * (root * root)


def _sum_of_neighbours(x_BHWC: jax.Array, size: int) -> jax.Array:
    """Float32 sums over the `size` channels around each."""
    return lax.platform_dependent(
        x_BHWC, tpu=partial(_banded_sum, size=size), default=partial(_shifted_sum, size=size)
    )


def _shifted_sum(x_BHWC: jax.Array, size: int) -> jax.Array:
    first, *others = (view.astype(jnp.float32) for view in _neighbours(x_BHWC, size))
    return sum(others, first)


def _banded_sum(x_BHWC: jax.Array, size: int) -> jax.Array:
    """The same by a matrix of ones around the diagonal.

    A TPU shifts along the channels slowly, while its matrix unit is idle.
    """
    # Without the barrier XLA would compute what is summed inside the product, and read what that is
    # made of a second time.
    x_BHWC = lax.optimization_barrier(x_BHWC)
    distance = np.subtract.outer(*2 * [np.arange(x_BHWC.shape[-1])])
    band = jnp.asarray(abs(distance) <= size // 2, x_BHWC.dtype)
    return lax.dot_general(
        x_BHWC,
        band,
        (((3,), (0,)), ((), ())),
        precision=lax.Precision.HIGHEST,  # float32 stays float32
        preferred_element_type=jnp.float32,
    )


def _neighbours(x_BHWC: jax.Array, size: int) -> list[jax.Array]:
    """`x` shifted by each of `size` places along the channels, zeros coming in.

    In the dtype of `x`, which is what XLA writes to memory; arithmetic on the views is fused.
    """
    channels = x_BHWC.shape[-1]
    x = jnp.pad(x_BHWC, [(0, 0)] * 3 + [(size // 2, size // 2)])
    return [x[..., k : k + channels] for k in range(size)]


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """`nn.relu`; what is kept for the gradient is the output, which the next layer keeps anyway."""
    return jnp.maximum(x, 0)


def _relu_forward(x):
    y = relu(x)
    return y, y


def _relu_backward(y, dy):
    # Without the barrier XLA would turn y > 0 back into x > 0, and keep x as well.
    return (jnp.where(lax.optimization_barrier(y) > 0, dy, 0),)


relu.defvjp(_relu_forward, _relu_backward)


@jax.custom_vjp
def add_bias(x_BHWC: jax.Array, bias_C: jax.Array) -> jax.Array:
    """`x + bias`; on a CPU the bias's gradient is summed over all places by `sums_over_places`."""
    return x_BHWC + bias_C


def _add_bias_forward(x_BHWC, bias_C):
    return add_bias(x_BHWC, bias_C), ()


def _add_bias_backward(_, dy):
    wide = dy.astype(jnp.promote_types(dy.dtype, jnp.float32))
    (d_bias,) = sums_over_places(wide, image_by_image=True)
    return dy, d_bias.astype(dy.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


# The most numbers that a product adds up: it does so one after the other, and of a sum of a million
# numbers so formed the fourth digit is wrong.
ADDENDS = 64


def sums_over_places(*arrays_BHWC: jax.Array, image_by_image: bool) -> list[jax.Array]:
    """Of each array its sums (C,) over all axes but the last.

    XLA's sum over the rows of a matrix takes a CPU some five times as long as the product of a row
    of ones with it.

    Args:
        arrays_BHWC: float32, or wider.
        image_by_image: devices that hold a part of the images then have no more than C sums to add
            up among them; over small maps, products of all images at once are longer and faster.
    """

    def by_ones(x):
        parts = x.shape[0] if image_by_image else 1
        places = math.prod(x.shape[:-1]) // parts
        addends = math.gcd(places, ADDENDS)
        ones = lax.full((parts, 1, addends), 1, x.dtype)
        rows = lax.reshape(x, (parts, addends, x.size // (parts * addends)))
        sums = lax.dot_general(ones, rows, (((2,), (1,)), ((0,), (0,))))
        return lax.reshape(sums, (sums.size // x.shape[-1], x.shape[-1])).sum(axis=0)

    def plain(x):
        return x.sum(axis=tuple(range(x.ndim - 1)))

    def of_each(function):
        return lambda *arrays: [function(x) for x in arrays]

    return lax.platform_dependent(*arrays_BHWC, cpu=of_each(by_ones), default=of_each(plain))
