"""Fast convolutions: computed as matrix products where that is faster on a CPU.

3x3 convolutions use Winograd's minimal filtering, F(2x2, 3x3) (arXiv 1509.09308, section 4.1). The
output is divided into tiles of 2x2 pixels. A tile depends on 4x4 pixels of the input, and takes 16
multiplications instead of 36. Inputs and kernels are transformed by sums and differences to 4x4
elements each. For each of these 16 elements, one matrix product computes all tiles. Sums and
differences of the products are the outputs. The gradient of the kernel reverses these steps. In
float32, the results differ from XLA's convolution by 4e-7 to 1e-6 of the largest value.

Shapes: B batch, H height, W width, C input channels, K output channels, T tiles.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gnet_jax.ops import reference

Padding = tuple[tuple[int, int], tuple[int, int]]

# Transforms along one axis: 4 inputs to 4 elements, 3 entries of the kernel to 4 elements, and 4
# products to 2 outputs.
INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
CHUNK_TILES = 3_200  # tiles computed at once, so that temporary arrays fit in the CPU's caches
MIN_TILES = 350  # with fewer tiles, transforming the kernel costs more than it saves
MIN_CHANNELS = 48  # with fewer channels, the sums cost more time than fewer products save


def convolve(x_BHWC: jax.Array, kernel: jax.Array, strides, padding) -> jax.Array:
    """Computes `reference.convolve` in the fastest way for the shapes.

    1x1 convolutions are computed as matrix products. On CPUs, large 3x3 convolutions use Winograd's
    minimal filtering. Also on CPUs, if the kernel is larger than the feature map, one matrix maps
    all inputs to all outputs, which is ten times as fast as XLA's convolution.
    """
    size = kernel.shape[:2]
    if tuple(strides) == (1, 1) and not isinstance(padding, str):
        if size == (1, 1) and all(p == (0, 0) for p in padding):
            return lax.dot_general(x_BHWC, kernel[0, 0], (((3,), (0,)), ((), ())))
        if any(k > n for k, n in zip(size, x_BHWC.shape[1:3], strict=True)):
            return _convolve(x_BHWC, kernel, tuple(padding), _multiply_maps, _map_gradients)
        if size == (3, 3) and winograd_is_faster(x_BHWC, padding):
            return _convolve(x_BHWC, kernel, tuple(padding), winograd_convolve, _winograd_gradients)
    return reference.convolve(x_BHWC, kernel, strides, padding)


def convolve_1x1s(x_BHWC: jax.Array, kernels: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns the 1x1 convolutions of one input with several kernels, by one matrix product."""
    kernel = jnp.concatenate(kernels, axis=-1)[0, 0]
    wide = lax.dot_general(x_BHWC, kernel, (((3,), (0,)), ((), ())))
    ends = np.cumsum([kernel.shape[-1] for kernel in kernels])
    return jnp.split(wide, ends[:-1], axis=-1)


_convolve_plainly = partial(reference.convolve, window_strides=(1, 1))


def _gradients(x_BHWC, kernel, dy, padding, convolve: Callable[..., Any] = _convolve_plainly):
    return jax.vjp(partial(convolve, padding=padding), x_BHWC, kernel)[1](dy)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(x_BHWC, kernel, padding, on_cpu, gradients_on_cpu) -> jax.Array:
    """Convolve. On CPUs, call `on_cpu` and, for the gradients, `gradients_on_cpu`; else use XLA."""
    cpu, default = (partial(form, padding=padding) for form in (on_cpu, _convolve_plainly))
    return lax.platform_dependent(x_BHWC, kernel, cpu=cpu, default=default)


def _convolve_forward(x_BHWC, kernel, *form):
    return _convolve(x_BHWC, kernel, *form), (x_BHWC, kernel)


def _convolve_backward(padding, _, gradients_on_cpu, saved, dy):
    cpu, default = (partial(form, padding=padding) for form in (gradients_on_cpu, _gradients))
    return lax.platform_dependent(*saved, dy, cpu=cpu, default=default)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _multiply_maps(x_BHWC, kernel, padding) -> jax.Array:
    """Convolve by one matrix that maps all pixels of the input to all pixels of the output."""
    batch, *sizes, channels = x_BHWC.shape
    axes = list(zip(sizes, padding, kernel.shape[:2], strict=True))
    outs = [n + sum(pads) - k + 1 for n, pads, k in axes]
    # Entry i - o + low of the kernel connects input i and output o. Pad the kernel with zeros so
    # that this entry exists.
    edges = [
        (max(0, out - 1 - low), max(0, n - 1 + low - (k - 1)))
        for out, (n, (low, _), k) in zip(outs, axes, strict=True)
    ]
    # Use at least float32, because the gradient sums over all outputs that use the same entry.
    wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    wide = jnp.pad(wide, [*edges, (0, 0), (0, 0)])
    rows, columns = (
        [edge + low - o for o in range(out)]
        for out, (edge, _), (_, (low, _), _) in zip(outs, edges, axes, strict=True)
    )
    views = [wide[i : i + sizes[0], j : j + sizes[1]] for i in rows for j in columns]
    matrix = jnp.stack(views, axis=3).reshape(math.prod(sizes) * channels, -1)
    y = x_BHWC.reshape(batch, -1) @ matrix.astype(kernel.dtype)
    return y.reshape(batch, *outs, -1)


_map_gradients = partial(_gradients, convolve=_multiply_maps)


def winograd_is_faster(x_BHWC: jax.Array, padding: Sequence[tuple[int, int]]) -> bool:
    """Returns whether `winograd_convolve` is faster than XLA on a CPU for this input."""
    batch, *sizes, channels = x_BHWC.shape
    if not isinstance(batch, int) or x_BHWC.dtype != jnp.float32:  # symbolic `batch`: in an export
        return False
    return batch * math.prod(_tiles(sizes, padding)) >= MIN_TILES and channels >= MIN_CHANNELS


def winograd_convolve(x_BHWC: jax.Array, kernel_33CK: jax.Array, padding: Padding) -> jax.Array:
    """Returns the 3x3 convolution with stride 1, of shape (B, out height, out width, K)."""
    tiles = _tiles(x_BHWC.shape[1:3], padding)
    outs = [n + sum(pads) - 2 for n, pads in zip(x_BHWC.shape[1:3], padding, strict=True)]
    factors_44CK = _transform(KERNEL, kernel_33CK)

    def convolve_chunk(x: jax.Array) -> jax.Array:
        products = [
            [inputs @ factors for inputs, factors in zip(*row, strict=True)]
            for row in zip(_tile_inputs(x, padding, tiles), factors_44CK, strict=True)
        ]
        outputs = [
            [each.reshape(-1, *tiles, each.shape[-1]) for each in row]
            for row in _combine(OUTPUT, products)
        ]
        # (B, row of the tile, row in the tile, column of the tile, column in the tile, K)
        y = jnp.stack([jnp.stack(row, axis=3) for row in outputs], axis=2)
        y = y.reshape(-1, *(2 * n for n in tiles), y.shape[-1])
        return y[:, : outs[0], : outs[1]]

    batch = x_BHWC.shape[0]
    chunks = _chunks(batch, tiles)
    if chunks == 1:
        return convolve_chunk(x_BHWC)
    x = _split(x_BHWC, chunks)

    def add_chunk(chunk: jax.Array, y: jax.Array) -> jax.Array:
        return lax.dynamic_update_index_in_dim(y, convolve_chunk(_pick(x, chunk)), chunk, 1)

    y = jnp.zeros((batch // chunks, chunks, *outs, kernel_33CK.shape[-1]), x.dtype)
    return lax.fori_loop(0, chunks, add_chunk, y).reshape(batch, *outs, -1)


def _winograd_gradients(x_BHWC, kernel, dy, padding) -> tuple[jax.Array, jax.Array]:
    # The gradient of the input is a 3x3 convolution of dy with the mirrored kernel.
    (top, bottom), (left, right) = padding
    dx_padding = ((2 - top, 2 - bottom), (2 - left, 2 - right))
    if winograd_is_faster(dy, dx_padding):
        dx = winograd_convolve(dy, kernel[::-1, ::-1].swapaxes(2, 3), dx_padding)
    else:
        dx = _gradients(x_BHWC, kernel, dy, padding)[0]
    return dx, winograd_kernel_gradient(x_BHWC, dy, padding)


def winograd_kernel_gradient(x_BHWC: jax.Array, dy_BHWK: jax.Array, padding: Padding) -> jax.Array:
    """Returns the gradient (3, 3, C, K) of `winograd_convolve` with respect to its kernel."""
    tiles = _tiles(x_BHWC.shape[1:3], padding)
    edges = [(0, 2 * n - size) for n, size in zip(tiles, dy_BHWK.shape[1:3], strict=True)]

    def sum_chunk(x: jax.Array, dy: jax.Array) -> jax.Array:
        inputs = _tile_inputs(x, padding, tiles)
        rows = zip(inputs, _combine_tiles(OUTPUT.T, dy, edges, tiles), strict=True)
        return jnp.stack([jnp.stack([a.T @ b for a, b in zip(*row, strict=True)]) for row in rows])

    chunks = _chunks(x_BHWC.shape[0], tiles)
    if chunks == 1:
        return _transform(KERNEL.T, sum_chunk(x_BHWC, dy_BHWK))
    x, dy = _split(x_BHWC, chunks), _split(dy_BHWK, chunks)

    def add_chunk(chunk: jax.Array, total: jax.Array) -> jax.Array:
        return total + sum_chunk(_pick(x, chunk), _pick(dy, chunk))

    total = jnp.zeros((4, 4, x.shape[-1], dy.shape[-1]), x.dtype)
    return _transform(KERNEL.T, lax.fori_loop(0, chunks, add_chunk, total))


def _tiles(sizes: Sequence[int], padding: Sequence[tuple[int, int]]) -> list[int]:
    """Returns the number of 2x2 output tiles along each axis of an image."""
    return [(n + sum(pads) - 1) // 2 for n, pads in zip(sizes, padding, strict=True)]


def _chunks(batch: int, tiles: Sequence[int]) -> int:
    """Returns the least number of equal chunks that have one image or up to `CHUNK_TILES` tiles."""
    wanted = min(batch, -(-batch * math.prod(tiles) // CHUNK_TILES))
    return next(n for n in range(wanted, batch + 1) if batch % n == 0)


def _split(x: jax.Array, chunks: int) -> jax.Array:
    """Split the batch. Image i goes to chunk i % chunks, so every image stays on its device."""
    return x.reshape(-1, chunks, *x.shape[1:])


_pick = partial(lax.dynamic_index_in_dim, axis=1, keepdims=False)


def _tile_inputs(x_BHWC, padding: Padding, tiles: Sequence[int]) -> list[list[jax.Array]]:
    """Returns the transformed inputs: one (T, C) array for each of the 4x4 elements."""
    edges = [
        (low, 2 * n + 2 - size - low)  # pad, so that every tile has 4 rows and columns
        for n, size, (low, _) in zip(tiles, x_BHWC.shape[1:3], padding, strict=True)
    ]
    return _combine_tiles(INPUT, x_BHWC, edges, tiles)


def _combine_tiles(matrix: np.ndarray, x, edges, tiles: Sequence[int]) -> list[list[jax.Array]]:
    """Pad `x` by `edges`, split it into tiles, and transform them by `matrix` along both axes."""
    x = jnp.pad(x, [(0, 0), *edges, (0, 0)])
    places = range(matrix.shape[1])
    rows, columns = (2 * n - 1 for n in tiles)  # neighbouring tiles begin 2 pixels apart

    def take(i: int, j: int) -> jax.Array:  # the element at (i, j) of every tile
        ends = (x.shape[0], i + rows, j + columns, x.shape[3])
        return lax.slice(x, (0, i, j, 0), ends, (1, 2, 2, 1))

    views = [[take(i, j) for j in places] for i in places]
    return [[each.reshape(-1, x.shape[-1]) for each in row] for row in _combine(matrix, views)]


def _combine(matrix: np.ndarray, parts: Sequence[Sequence[jax.Array]]) -> list[list[jax.Array]]:
    """Returns matrix @ parts @ matrix.T for a `matrix` of 0, 1 and -1. Each part is an array."""
    columns = [_add_rows(matrix, column) for column in zip(*parts, strict=True)]
    return [_add_rows(matrix, row) for row in zip(*columns, strict=True)]


def _add_rows(matrix: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
    terms = (
        [part if factor > 0 else -part for factor, part in zip(row, parts, strict=True) if factor]
        for row in matrix
    )
    return [sum(rest, first) for first, *rest in terms]


def _transform(matrix: np.ndarray, kernel: jax.Array) -> jax.Array:
    """Returns matrix @ kernel @ matrix.T over the first two axes, for all channels."""
    factors = jnp.asarray(matrix, kernel.dtype)
    return jnp.einsum("ik,jl,klcf->ijcf", factors, factors, kernel, precision="highest")
