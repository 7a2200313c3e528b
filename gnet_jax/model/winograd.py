"""3x3 convolutions by Winograd's minimal filtering, F(2x2, 3x3): 16 products in place of 36.

A tile of 2x2 outputs depends on 4x4 inputs. Both, and the kernel, are combined by sums and
differences so that the convolution becomes 16 matrix products over all tiles, one for each place of
the 4x4 (arXiv 1509.09308, section 4.1); the gradient of the kernel is the same the other way round.
In float32 the results differ by 4e-7 to 1e-6 of the largest value.

Shapes: B batch, H height, W width, C input channels, K output channels, T tiles.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]

# Along one axis, a row for each of the 4 places: what it is the sum of, of 4 inputs, of 3 entries
# of the kernel and, transposed, of 2 outputs.
INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
PIECE = 3_200  # tiles of one piece of the batch: what is made of them stays in the caches
FEWEST = 350  # tiles below which the kernel's part is not worth its while
CHANNELS = 48  # with fewer, the products are small beside the sums


def pays(x_BHWC: jax.Array, padding: Sequence[tuple[int, int]]) -> bool:
    """Whether a CPU is faster this way, for images of these sizes and this dtype."""
    batch, *sizes, channels = x_BHWC.shape
    if not isinstance(batch, int) or x_BHWC.dtype != jnp.float32:  # any size, as in an export
        return False
    return batch * math.prod(_tiles(sizes, padding)) >= FEWEST and channels >= CHANNELS


def convolve(x_BHWC: jax.Array, kernel_33CK: jax.Array, padding: Padding) -> jax.Array:
    """The 3x3 convolution of stride 1, (B, H', W', K)."""
    tiles = _tiles(x_BHWC.shape[1:3], padding)
    outs = [n + sum(pads) - 2 for n, pads in zip(x_BHWC.shape[1:3], padding, strict=True)]
    factors_44CK = _both_axes(KERNEL, kernel_33CK)

    def of_piece(x: jax.Array) -> jax.Array:
        products = [
            [of_place @ factors for of_place, factors in zip(*row, strict=True)]
            for row in zip(_inputs(x, padding, tiles), factors_44CK, strict=True)
        ]
        places = [
            [each.reshape(-1, *tiles, each.shape[-1]) for each in row]
            for row in _sums(OUTPUT, products)
        ]
        # (B, tile's row, row in it, tile's column, column in it, K)
        y = jnp.stack([jnp.stack(row, axis=3) for row in places], axis=2)
        y = y.reshape(-1, *(2 * n for n in tiles), y.shape[-1])
        return y[:, : outs[0], : outs[1]]

    batch = x_BHWC.shape[0]
    pieces = _pieces(batch, tiles)
    if pieces == 1:
        return of_piece(x_BHWC)
    x, pick = _split(x_BHWC, pieces)

    def add_piece(piece: jax.Array, y: jax.Array) -> jax.Array:
        return lax.dynamic_update_index_in_dim(y, of_piece(pick(x, piece)), piece, 1)

    y = jnp.zeros((batch // pieces, pieces, *outs, kernel_33CK.shape[-1]), x.dtype)
    return lax.fori_loop(0, pieces, add_piece, y).reshape(batch, *outs, -1)


def kernel_gradient(x_BHWC: jax.Array, dy_BHWK: jax.Array, padding: Padding) -> jax.Array:
    """The gradient (3, 3, C, K) of the kernel of `convolve`, whose output's gradient is `dy`."""
    tiles = _tiles(x_BHWC.shape[1:3], padding)

    def of_piece(x: jax.Array, dy: jax.Array) -> jax.Array:
        return jnp.stack(
            [
                jnp.stack([a.T @ b for a, b in zip(*row, strict=True)])
                for row in zip(_inputs(x, padding, tiles), _outputs(dy, tiles), strict=True)
            ]
        )

    pieces = _pieces(x_BHWC.shape[0], tiles)
    if pieces == 1:
        return _both_axes(KERNEL.T, of_piece(x_BHWC, dy_BHWK))
    (x, pick), (dy, _) = _split(x_BHWC, pieces), _split(dy_BHWK, pieces)

    def add_piece(piece: jax.Array, total: jax.Array) -> jax.Array:
        return total + of_piece(pick(x, piece), pick(dy, piece))

    total = jnp.zeros((4, 4, x.shape[-1], dy.shape[-1]), x.dtype)
    return _both_axes(KERNEL.T, lax.fori_loop(0, pieces, add_piece, total))


def input_gradient(kernel_33CK: jax.Array, dy_BHWK: jax.Array, padding: Padding) -> jax.Array:
    """The gradient (B, H, W, C) of the input of `convolve`, a convolution of `dy`."""
    return convolve(dy_BHWK, kernel_33CK[::-1, ::-1].swapaxes(2, 3), opposite(padding))


def opposite(padding: Padding) -> Padding:
    """The padding of the convolution that `input_gradient` is."""
    (top, bottom), (left, right) = padding
    return (2 - top, 2 - bottom), (2 - left, 2 - right)


def _tiles(sizes: Sequence[int], padding: Sequence[tuple[int, int]]) -> list[int]:
    """Tiles along both axes of an image."""
    return [(n + sum(pads) - 1) // 2 for n, pads in zip(sizes, padding, strict=True)]


def _pieces(batch: int, tiles: Sequence[int]) -> int:
    """The fewest equal pieces of the batch with at most `PIECE` tiles each, or one image."""
    wanted = min(batch, -(-batch * math.prod(tiles) // PIECE))
    return next(n for n in range(wanted, batch + 1) if batch % n == 0)


def _split(x: jax.Array, pieces: int) -> tuple[jax.Array, Callable[..., jax.Array]]:
    """The batch in pieces, and a function that picks one of them.

    Image i is of piece i % pieces: a share of the batch that the pieces divide stays on its device.
    """
    pick = functools.partial(lax.dynamic_index_in_dim, axis=1, keepdims=False)
    return x.reshape(-1, pieces, *x.shape[1:]), pick


def _inputs(x_BHWC: jax.Array, padding: Padding, tiles: Sequence[int]) -> list[list[jax.Array]]:
    """For each place of the 4x4, the combined inputs (T, C) of all tiles."""
    # So many rows and columns that every tile finds its 4.
    edges = [
        (before, 2 * n + 2 - size - before)
        for n, size, (before, _) in zip(tiles, x_BHWC.shape[1:3], padding, strict=True)
    ]
    x = jnp.pad(x_BHWC, [(0, 0), *edges, (0, 0)])
    views = [[_every_second(x, i, j, tiles) for j in range(4)] for i in range(4)]
    return [[each.reshape(-1, x.shape[-1]) for each in row] for row in _sums(INPUT, views)]


def _outputs(dy_BHWK: jax.Array, tiles: Sequence[int]) -> list[list[jax.Array]]:
    """For each place of the 4x4, the combined gradients (T, K) of the tiles' outputs."""
    edges = [(0, 2 * n - size) for n, size in zip(tiles, dy_BHWK.shape[1:3], strict=True)]
    dy = jnp.pad(dy_BHWK, [(0, 0), *edges, (0, 0)])
    views = [[_every_second(dy, i, j, tiles) for j in range(2)] for i in range(2)]
    return [[each.reshape(-1, dy.shape[-1]) for each in row] for row in _sums(OUTPUT.T, views)]


def _every_second(x: jax.Array, row: int, column: int, tiles: Sequence[int]) -> jax.Array:
    """The element at (row, column) of every tile; tiles begin 2 apart."""
    last = [first + 2 * n - 1 for first, n in zip((row, column), tiles, strict=True)]
    return lax.slice(x, (0, row, column, 0), (x.shape[0], *last, x.shape[3]), (1, 2, 2, 1))


def _sums(matrix: np.ndarray, parts: Sequence[Sequence[jax.Array]]) -> list[list[jax.Array]]:
    """The product matrix @ parts @ matrix.T, of entries 0, 1 and -1; the parts are arrays."""
    columns = [_row_sums(matrix, column) for column in zip(*parts, strict=True)]
    return [_row_sums(matrix, row) for row in zip(*columns, strict=True)]


def _row_sums(matrix: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
    terms = (
        [part if factor > 0 else -part for factor, part in zip(row, parts, strict=True) if factor]
        for row in matrix
    )
    return [sum(rest, first) for first, *rest in terms]


def _both_axes(matrix: np.ndarray, kernel: jax.Array) -> jax.Array:
    """The product matrix @ kernel @ matrix.T over the first two axes, for all channels."""
    factors = jnp.asarray(matrix, kernel.dtype)
    exact = lax.Precision.HIGHEST
    return jnp.einsum("ik,jl,klcf->ijcf", factors, factors, kernel, precision=exact)
