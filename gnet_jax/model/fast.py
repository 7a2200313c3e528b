"""Fast forms: pooling and normalisation with gradient rules of their own, 1x1 convolutions as dots.

Each computes what its namesake in `layers` does, and costs a fraction on a CPU: XLA's rule for the
gradient of a max pool visits every window one by one, and that of LRN raises to powers. A rule of
its own (`jax.custom_vjp`) excludes forward-mode differentiation (`jax.jvp`, `jax.hessian`); for
that there are the plain forms, `ops.PLAIN`.

Which form a platform gets is settled when the program is lowered (`jax.lax.platform_dependent`), so
a program compiled for a TPU on a machine without one is the TPU's.

Shapes: B batch, H height, W width, C channels.
"""

import math
from functools import partial
from typing import Any

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

    Only the paper's beta of 0.75 does without powers: s**-0.75 = rsqrt(s) * sqrt(rsqrt(s)).
    """
    return _local_response_norm(x_BHWC, size, alpha, beta)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _local_response_norm(x_BHWC, size: int, alpha: float, beta: float) -> jax.Array:
    return _local_response_norm_forward(x_BHWC, size, alpha, beta)[0]


def _local_response_norm_forward(x_BHWC, size, alpha, beta):
    _, factor = _lrn_scale(x_BHWC, size, alpha, beta)
    return (x_BHWC.astype(jnp.float32) * factor).astype(x_BHWC.dtype), x_BHWC


def _local_response_norm_backward(size, alpha, beta, x_BHWC, dy):
    # Without the barrier XLA would compute the scale once, and keep it from the forward pass on in
    # float32: on a TPU, that costs more than computing it again.
    x_BHWC = lax.optimization_barrier(x_BHWC)
    scale, factor = _lrn_scale(x_BHWC, size, alpha, beta)
    x, dy = x_BHWC.astype(jnp.float32), dy.astype(jnp.float32)
    through_scale = (dy * x * factor / scale).astype(x_BHWC.dtype)
    near = _sum_of_neighbours(through_scale, size)
    dx = dy * factor - 2 * beta * alpha / size * x * near
    return (dx.astype(x_BHWC.dtype),)


_local_response_norm.defvjp(_local_response_norm_forward, _local_response_norm_backward)


def _lrn_scale(x_BHWC, size: int, alpha: float, beta: float) -> tuple[jax.Array, jax.Array]:
    """1 + alpha / size * sum of squares over the channels near each, and that to the -beta."""
    squares = [jnp.square(view.astype(jnp.float32)) for view in _neighbours(x_BHWC, size)]
    scale = 1 + alpha / size * sum(squares[1:], squares[0])
    root = lax.rsqrt(scale)
    return scale, root * lax.sqrt(root) if beta == 0.75 else scale**-beta


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


def convolve(x_BHWC: jax.Array, kernel: jax.Array, strides, padding, **options: Any) -> jax.Array:
    """`lax.conv_general_dilated`; a 1x1 convolution as the matrix product that it is.

    The gradients are then products too, where a convolution's rule transposes both operands first.
    The gradient of a 3x3 kernel over `LARGE` maps has a rule for CPUs.
    """
    steps = [*strides, *(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ())]
    grouped = kernel.shape[2] != x_BHWC.shape[3]
    dense = all(n == 1 for n in steps) and not grouped and not isinstance(padding, str)
    if dense and kernel.shape[:2] == (1, 1) and all(p == (0, 0) for p in padding):
        return lax.dot_general(x_BHWC, kernel[0, 0], (((3,), (0,)), ((), ())))
    if dense and kernel.shape[:2] == (3, 3) and _is_large(x_BHWC.shape):
        return _large_convolve(x_BHWC, kernel, tuple(padding))
    return lax.conv_general_dilated(x_BHWC, kernel, strides, padding, **options)


# B * H * W from which XLA's own gradient of a kernel is slow on a CPU: it gathers that many numbers
# for every product, which then no longer fit into a core's cache.
LARGE = 20_000


def _is_large(shape: tuple[int, ...]) -> bool:
    """Whether a batch of maps has `LARGE` places; one of any size, as in an export, has not."""
    places = math.prod(shape[:3])
    return isinstance(places, int) and places >= LARGE


def _dense_convolve(x_BHWC, kernel, padding) -> jax.Array:
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x_BHWC, kernel, (1, 1), padding, dimension_numbers=dims)


_large_convolve = jax.custom_vjp(_dense_convolve, nondiff_argnums=(2,))


def _large_convolve_forward(x_BHWC, kernel, padding):
    return _dense_convolve(x_BHWC, kernel, padding), (x_BHWC, kernel)


def _large_convolve_backward(padding, saved, dy):
    def plain(x, kernel, dy):
        return jax.vjp(lambda kernel: _dense_convolve(x, kernel, padding), kernel)[1](dy)[0]

    def by_rows(x, kernel, dy):
        return _kernel_gradient_by_rows(x, kernel, dy, padding)

    x, kernel = saved
    dx = jax.vjp(lambda x: _dense_convolve(x, kernel, padding), x)[1](dy)[0]
    return dx, lax.platform_dependent(x, kernel, dy, cpu=by_rows, default=plain)


_large_convolve.defvjp(_large_convolve_forward, _large_convolve_backward)


def _kernel_gradient_by_rows(x_BHWC, kernel, dy, padding) -> jax.Array:
    """The gradient of a convolution's kernel: for each row of `dy`, a product for each entry.

    A row of all images is little enough to stay in the cache while the products read it.
    """
    rows, columns = kernel.shape[:2]
    x = jnp.pad(x_BHWC, [(0, 0), *padding, (0, 0)])
    width = dy.shape[2]

    def entry(x_rows, dy_row, i, j):
        near = x_rows[:, i, j : j + width]
        contracted = (((0, 1), (0, 1)), ((), ()))
        return lax.dot_general(near, dy_row, contracted, preferred_element_type=jnp.float32)

    def add_row(total, row):
        x_rows = lax.dynamic_slice_in_dim(x, row, rows, axis=ROWS)
        dy_row = lax.dynamic_index_in_dim(dy, row, axis=ROWS, keepdims=False)
        entries = [[entry(x_rows, dy_row, i, j) for j in range(columns)] for i in range(rows)]
        return total + jnp.stack([jnp.stack(each) for each in entries]), None

    total, _ = lax.scan(add_row, jnp.zeros(kernel.shape, jnp.float32), jnp.arange(dy.shape[1]))
    return total.astype(kernel.dtype)
