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


def convolve(x_BHWC: jax.Array, kernel: jax.Array, strides, padding, **options: Any) -> jax.Array:
    """`lax.conv_general_dilated`; a 1x1 convolution as the matrix product that it is.

    The gradients are then products too, where a convolution's rule transposes both operands first.
    For CPUs, the gradient of a 3x3 kernel over `LARGE` maps is taken in pieces of the batch, and a
    kernel that is larger than the map becomes a product of whole maps.
    """
    steps = [*strides, *(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ())]
    grouped = kernel.shape[2] != x_BHWC.shape[3]
    dense = all(n == 1 for n in steps) and not grouped and not isinstance(padding, str)
    if dense and kernel.shape[:2] == (1, 1) and all(p == (0, 0) for p in padding):
        return lax.dot_general(x_BHWC, kernel[0, 0], (((3,), (0,)), ((), ())))
    if dense and kernel.shape[:2] == (3, 3) and _pieces(x_BHWC.shape) > 1:
        return _large_convolve(x_BHWC, kernel, tuple(padding))
    if dense and any(k > n for k, n in zip(kernel.shape[:2], x_BHWC.shape[1:3], strict=True)):
        return _small_convolve(x_BHWC, kernel, tuple(padding))
    return lax.conv_general_dilated(x_BHWC, kernel, strides, padding, **options)


# B * H * W from which XLA's own gradient of a kernel is slow on a CPU: it gathers that many numbers
# for every product, which then no longer fit into a core's cache.
LARGE = 20_000
FEWEST = 8  # images of a piece: the gradient's products add over them, eight at a time
MOST = 16  # pieces: each is an operation of its own in the program


def _pieces(shape: tuple[int, ...]) -> int:
    """Into how many equal pieces a batch of maps of this shape falls, at most `MOST`.

    Each has fewer than `LARGE` places where that leaves it `FEWEST` images.
    """
    batch, places = shape[0], math.prod(shape[:3])
    if not isinstance(places, int):  # a batch of any size, as in an export
        return 1
    possible = [n for n in range(1, MOST + 1) if batch % n == 0 and batch >= n * FEWEST] or [1]
    return next((n for n in possible if places < n * LARGE), possible[-1])


def _dense_convolve(x_BHWC, kernel, padding) -> jax.Array:
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x_BHWC, kernel, (1, 1), padding, dimension_numbers=dims)


_large_convolve = jax.custom_vjp(_dense_convolve, nondiff_argnums=(2,))


def _large_convolve_forward(x_BHWC, kernel, padding):
    return _dense_convolve(x_BHWC, kernel, padding), (x_BHWC, kernel)


def _large_convolve_backward(padding, saved, dy):
    def whole(x, kernel, dy):
        return jax.vjp(lambda kernel: _dense_convolve(x, kernel, padding), kernel)[1](dy)[0]

    def in_pieces(x, kernel, dy):
        # Image i is of piece i % pieces: a share of the batch that the pieces divide stays where
        # it is.
        pieces = _pieces(x.shape)
        x, dy = (a.reshape(-1, pieces, *a.shape[1:]) for a in (x, dy))
        total = jnp.zeros(kernel.shape, jnp.promote_types(kernel.dtype, jnp.float32))
        for piece in range(pieces):
            total += whole(x[:, piece], kernel, dy[:, piece])
        return total.astype(kernel.dtype)

    x, kernel = saved
    dx = jax.vjp(lambda x: _dense_convolve(x, kernel, padding), x)[1](dy)[0]
    return dx, lax.platform_dependent(x, kernel, dy, cpu=in_pieces, default=whole)


_large_convolve.defvjp(_large_convolve_forward, _large_convolve_backward)


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
