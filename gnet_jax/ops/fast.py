"""Fast operations: forms and gradients that cost a CPU a fraction of XLA's own.

Each computes what its namesake in `reference` does, within rounding. XLA's gradient of a max pool
visits every window one by one, and its gradient of LRN raises to powers. Gradients of their own
(`jax.custom_vjp`) exclude forward-mode differentiation (`jax.jvp`, `jax.hessian`), which requires
the reference operations: `googlenet(ops="reference")`.

The form is chosen when a program is lowered for a platform (`jax.lax.platform_dependent`), so a
program compiled for a TPU on a machine without one is the TPU's.

Shapes: B batch, H height, W width, C channels.
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gnet_jax.ops import reference
from gnet_jax.ops.fast_conv import convolve, convolve_1x1s
from gnet_jax.ops.fast_norm import BatchNorm, add_bias
from gnet_jax.ops.reference import REFERENCE, Ops
from gnet_jax.ops.sizes import pool_padding, pooled_size

ROWS, COLUMNS = 1, 2  # axes


def max_pool(x_BHWC: jax.Array, window: int, stride: int, pad: int = 0) -> jax.Array:
    """Returns `reference.max_pool`; the first of equal maxima, by rows, gets the gradient.

    XLA chooses the same one. On a CPU the maximum is taken over columns, then over rows, by
    elementwise operations on a few shifted views, which vectorise and fuse.
    """
    return _max_pool(x_BHWC, window, stride, pad)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x_BHWC, window: int, stride: int, pad: int) -> jax.Array:
    def separable(x):
        return _pool_axis(_pool_axis(x, COLUMNS, window, stride, pad), ROWS, window, stride, pad)

    def plain(x):
        return reference.max_pool(x, window, stride, pad)

    return lax.platform_dependent(x_BHWC, cpu=separable, default=plain)


def _max_pool_forward(x_BHWC, window, stride, pad):
    y = _max_pool(x_BHWC, window, stride, pad)
    return y, (x_BHWC, y)


def _max_pool_backward(window, stride, pad, saved, dy):
    def separable(x, y, dy):
        # The first maximum, by rows, is in the first row that has one.
        rows = _pool_axis(x, COLUMNS, window, stride, pad)
        d_rows = _to_first(rows, y, dy, ROWS, window, stride, pad)
        return _to_first(x, rows, d_rows, COLUMNS, window, stride, pad)

    def plain(x, _, dy):
        _, pullback = jax.vjp(lambda x: reference.max_pool(x, window, stride, pad), x)
        return pullback(dy)[0]

    return (lax.platform_dependent(*saved, dy, cpu=separable, default=plain),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _views(x, axis: int, window: int, stride: int, pad: int) -> list[jax.Array]:
    """Returns the k-th element of every window along `axis`, for each k; padding is -inf."""
    padding = [(0, 0, 0)] * x.ndim
    ((low, high),) = pool_padding([x.shape[axis]], window, stride, pad)
    padding[axis] = (low, high, 0)
    last = (pooled_size(x.shape[axis], window, stride, pad) - 1) * stride + 1
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), padding)
    return [lax.slice_in_dim(x, k, k + last, stride, axis) for k in range(window)]


def _pool_axis(x, axis: int, window: int, stride: int, pad: int) -> jax.Array:
    first, *others = _views(x, axis, window, stride, pad)
    for view in others:
        first = lax.max(first, view)
    return first


def _to_first(x, y, dy, axis: int, window: int, stride: int, pad: int) -> jax.Array:
    """Returns the gradient of `_pool_axis` at `x`, whose output is `y` with the gradient `dy`.

    Each element of `dy` goes to the first maximum of its window.
    """
    shares, taken = [], jnp.zeros(y.shape, bool)
    for view in _views(x, axis, window, stride, pad):
        hit = view == y
        shares.append(jnp.where(hit & ~taken, dy, 0))
        taken |= hit
    # Position stride * i + r of the padded input is element r of window i, element r + stride of
    # window i - 1, and so on. Sum these for each r, then interleave the sums.
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
    """Returns `reference.local_response_norm`; only `x` is kept for the gradient.

    The paper's beta of 0.75 needs no powers: s**-0.75 = rsqrt(sqrt(s))**3.
    """
    return _local_response_norm(x_BHWC, size, alpha, beta)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _local_response_norm(x_BHWC, size: int, alpha: float, beta: float) -> jax.Array:
    return _local_response_norm_forward(x_BHWC, size, alpha, beta)[0]


def _local_response_norm_forward(x_BHWC, size, alpha, beta):
    factor, _ = _lrn_factors(x_BHWC, size, alpha, beta)
    return (x_BHWC.astype(jnp.float32) * factor).astype(x_BHWC.dtype), x_BHWC


def _local_response_norm_backward(size, alpha, beta, x_BHWC, dy):
    # Without the barrier XLA would keep the scale from the forward pass in float32, which costs
    # more on a TPU than computing it again.
    x_BHWC = lax.optimization_barrier(x_BHWC)
    factor, slope = _lrn_factors(x_BHWC, size, alpha, beta)
    x, dy = x_BHWC.astype(jnp.float32), dy.astype(jnp.float32)
    through_scale = (dy * x * slope).astype(x_BHWC.dtype)
    near = _sum_of_neighbours(through_scale, size)
    dx = dy * factor - 2 * beta * alpha / size * x * near
    return (dx.astype(x_BHWC.dtype),)


_local_response_norm.defvjp(_local_response_norm_forward, _local_response_norm_backward)


def _lrn_factors(x_BHWC, size: int, alpha: float, beta: float) -> tuple[jax.Array, jax.Array]:
    """Returns scale**-beta and scale**(-beta - 1).

    The scale is 1 + alpha / size * the sum of squares over nearby channels.
    """
    squares = [jnp.square(view.astype(jnp.float32)) for view in _neighbours(x_BHWC, size)]
    scale = 1 + alpha / size * sum(squares[1:], squares[0])
    if beta != 0.75:
        factor = scale**-beta
        return factor, factor / scale
    # On CPUs XLA computes one root and its products in one pass, but writes the results of two
    # roots or of a division to memory.
    root = lax.rsqrt(lax.sqrt(scale))
    factor = root * root * root
    return factor, factor * (root * root) * (root * root)


def _sum_of_neighbours(x_BHWC: jax.Array, size: int) -> jax.Array:
    """Returns the float32 sums over the `size` channels around each channel."""
    return lax.platform_dependent(
        x_BHWC, tpu=partial(_banded_sum, size=size), default=partial(_shifted_sum, size=size)
    )


def _shifted_sum(x_BHWC: jax.Array, size: int) -> jax.Array:
    first, *others = (view.astype(jnp.float32) for view in _neighbours(x_BHWC, size))
    return sum(others, first)


def _banded_sum(x_BHWC: jax.Array, size: int) -> jax.Array:
    """Returns the same sums as the product with a banded matrix of ones.

    A TPU shifts along the channels slowly, while its matrix unit is idle.
    """
    # Without the barrier XLA would compute `x` inside the product and read its inputs twice.
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
    """Returns `x` shifted by each of `size` offsets along the channels, with zero padding.

    The views have the dtype of `x`, which XLA writes to memory; arithmetic on them is fused.
    """
    channels = x_BHWC.shape[-1]
    x = jnp.pad(x_BHWC, [(0, 0)] * 3 + [(size // 2, size // 2)])
    return [x[..., k : k + channels] for k in range(size)]


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """Returns `nn.relu`; the gradient keeps the output, which the next layer keeps anyway."""
    return jnp.maximum(x, 0)


def _relu_forward(x):
    y = relu(x)
    return y, y


def _relu_backward(y, dy):
    def mask(y, dy):
        return jnp.where(y > 0, dy, 0)

    def mask_by_kept(y, dy):
        # Without the barrier XLA would turn y > 0 back into x > 0 and keep x as well.
        return mask(lax.optimization_barrier(y), dy)

    return (lax.platform_dependent(y, dy, cpu=mask, default=mask_by_kept),)


relu.defvjp(_relu_forward, _relu_backward)


FAST = Ops(
    max_pool=max_pool,
    local_response_norm=local_response_norm,
    convolve=convolve,
    convolve_1x1s=convolve_1x1s,
    add_bias=add_bias,
    relu=relu,
    batch_norm=BatchNorm,
)
OPS: Mapping[str, Ops] = {"fast": FAST, "reference": REFERENCE}
