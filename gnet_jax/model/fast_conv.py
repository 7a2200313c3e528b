"""Fast forms of convolution: as matrix products, where a CPU is faster at those.

Each computes what `lax.conv_general_dilated` does. Which form a platform gets is settled when the
program is lowered, as in `fast`.

Shapes: B batch, H height, W width, C channels.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gnet_jax.model import winograd


def convolve(x_BHWC: jax.Array, kernel: jax.Array, strides, padding, **options: Any) -> jax.Array:
    """`lax.conv_general_dilated`; a 1x1 convolution as the matrix product that it is.

    The gradients are then products too, where a convolution's rule transposes both operands first.
    For CPUs, 3x3 convolutions of many images or places are Winograd's, and a kernel that is larger
    than the map becomes a product of whole maps.
    """
    steps = [*strides, *(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ())]
    grouped = kernel.shape[2] != x_BHWC.shape[3]
    plain = partial(lax.conv_general_dilated, x_BHWC, kernel, strides, padding, **options)
    if isinstance(padding, str) or grouped or any(n != 1 for n in steps):
        return plain()
    size = kernel.shape[:2]
    if size == (1, 1) and all(p == (0, 0) for p in padding):
        return lax.dot_general(x_BHWC, kernel[0, 0], (((3,), (0,)), ((), ())))
    if any(k > n for k, n in zip(size, x_BHWC.shape[1:3], strict=True)):
        return _small_convolve(x_BHWC, kernel, tuple(padding))
    if size == (3, 3) and winograd.pays(x_BHWC, padding):
        return _convolve_3x3(x_BHWC, kernel, tuple(padding))
    return plain()


def _dense_convolve(x_BHWC, kernel, padding) -> jax.Array:
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x_BHWC, kernel, (1, 1), padding, dimension_numbers=dims)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_3x3(x_BHWC, kernel, padding) -> jax.Array:
    """With fewer products on a CPU, of the convolution and of both of its gradients."""
    return lax.platform_dependent(
        x_BHWC,
        kernel,
        cpu=partial(winograd.convolve, padding=padding),
        default=partial(_dense_convolve, padding=padding),
    )


def _convolve_3x3_forward(x_BHWC, kernel, padding):
    return _convolve_3x3(x_BHWC, kernel, padding), (x_BHWC, kernel)


def _convolve_3x3_backward(padding, saved, dy):
    x, kernel = saved

    def plain_dx(x, kernel, dy):
        return jax.vjp(lambda x: _dense_convolve(x, kernel, padding), x)[1](dy)[0]

    def plain_dk(x, kernel, dy):
        return jax.vjp(lambda kernel: _dense_convolve(x, kernel, padding), kernel)[1](dy)[0]

    def fast_dx(_x, kernel, dy):
        return winograd.input_gradient(kernel, dy, padding)

    def fast_dk(x, _kernel, dy):
        return winograd.kernel_gradient(x, dy, padding)

    pays = winograd.pays(dy, winograd.opposite(padding))
    return tuple(
        lax.platform_dependent(x, kernel, dy, cpu=fast, default=plain)
        for fast, plain in ((fast_dx if pays else plain_dx, plain_dx), (fast_dk, plain_dk))
    )


_convolve_3x3.defvjp(_convolve_3x3_forward, _convolve_3x3_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _small_convolve(x_BHWC, kernel, padding) -> jax.Array:
    """Over a map smaller than the kernel, for which XLA has a loop on CPUs, a tenth as fast."""
    return lax.platform_dependent(
        x_BHWC,
        kernel,
        cpu=partial(_product_of_maps, padding=padding),
        default=partial(_dense_convolve, padding=padding),
    )


def _small_convolve_forward(x_BHWC, kernel, padding):
    return _small_convolve(x_BHWC, kernel, padding), (x_BHWC, kernel)


def _small_convolve_backward(padding, saved, dy):
    def gradients_of(convolve):
        return lambda x, kernel, dy: jax.vjp(partial(convolve, padding=padding), x, kernel)[1](dy)

    return lax.platform_dependent(
        *saved, dy, cpu=gradients_of(_product_of_maps), default=gradients_of(_dense_convolve)
    )


_small_convolve.defvjp(_small_convolve_forward, _small_convolve_backward)


def _product_of_maps(x_BHWC, kernel, padding) -> jax.Array:
    """A convolution as one matrix, from all places of the input to all places of the output.

    Every output sees the whole map, so the matrix holds few zeros: for each output the entries of
    the kernel that lie on the map.
    """
    batch, *sizes, channels = x_BHWC.shape
    outs = [
        n + sum(pads) - k + 1 for n, pads, k in zip(sizes, padding, kernel.shape[:2], strict=True)
    ]
    # Entry i - o + before of the kernel lies between input i and output o; what is beyond is zero.
    edges = [
        (max(0, out - 1 - before), max(0, n - 1 + before - (k - 1)))
        for n, out, (before, _), k in zip(sizes, outs, padding, kernel.shape[:2], strict=True)
    ]
    # In float32 at least, for its gradient sums up what each output says of an entry.
    wide = jnp.pad(
        kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32)), [*edges, (0, 0), (0, 0)]
    )
    starts = [
        [edge + before - o for o in range(out)]
        for (edge, _), (before, _), out in zip(edges, padding, outs, strict=True)
    ]
    seen = [
        wide[row : row + sizes[0], column : column + sizes[1]]
        for row in starts[0]
        for column in starts[1]
    ]
    matrix = jnp.stack(seen, axis=3).reshape(math.prod(sizes) * channels, -1)
    matrix = matrix.astype(kernel.dtype)
    y = x_BHWC.reshape(batch, -1) @ matrix
    return y.reshape(batch, *outs, -1)
