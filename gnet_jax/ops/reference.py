"""Reference operations: plain implementations, with the gradients that JAX derives.

Shapes: B batch, H height, W width, C channels.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gnet_jax.ops.sizes import pool_padding, pooled_size


@dataclasses.dataclass(frozen=True)
class Ops:
    """The operations of a network that have a reference and a fast implementation."""

    max_pool: Callable[..., Any]  # Any, because custom_vjp has no static result type
    local_response_norm: Callable[..., Any]
    convolve: Callable[..., jax.Array]  # (x, kernel (H, W, C, features), strides, padding)
    convolve_1x1s: Callable[..., list[jax.Array]]  # applies several kernels to one input
    add_bias: Callable[[jax.Array, jax.Array], jax.Array]
    relu: Callable[[jax.Array], jax.Array]
    batch_norm: Callable[..., nn.Module]


def max_pool(x_BHWC: jax.Array, window: int, stride: int, pad: int = 0) -> jax.Array:
    """Returns the max pool. The output has Caffe's size (`pooled_size`); the padding is -inf."""
    padding: Any = pool_padding(x_BHWC.shape[1:3], window, stride, pad)
    return nn.max_pool(x_BHWC, (window, window), (stride, stride), padding)


def average_pool(x_BHWC: jax.Array, window: int, stride: int) -> jax.Array:
    """Returns the average pool, with Caffe's output size. Averages exclude the padding."""

    def windows(n: int) -> list[slice]:
        starts = range(0, pooled_size(n, window, stride) * stride, stride)
        return [slice(start, start + window) for start in starts]

    return _average(x_BHWC, windows)


def adaptive_average_pool(x_BHWC: jax.Array, out: int) -> jax.Array:
    """Returns an average pool with output `out` x `out`, as torch's adaptive_avg_pool2d does."""

    def windows(n: int) -> list[slice]:
        return [slice(i * n // out, -(-(i + 1) * n // out)) for i in range(out)]

    return _average(x_BHWC, windows)


def _average(x_BHWC: jax.Array, windows: Callable[[int], list[slice]]) -> jax.Array:
    """Returns the average over `windows(H)` x `windows(W)`.

    As matrix products, because XLA's gradient of a pool is slow on CPUs.
    """

    def averaging_matrix(n: int) -> np.ndarray:
        parts, dtype = windows(n), jnp.promote_types(x_BHWC.dtype, jnp.float32)
        matrix = np.zeros((len(parts), n), dtype)
        for row, part in zip(matrix, parts, strict=True):
            row[part] = 1 / len(row[part])
        return matrix

    rows, columns = (averaging_matrix(n) for n in x_BHWC.shape[1:3])
    exact = lax.Precision.HIGHEST
    y = jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x_BHWC, precision=exact)
    return y.astype(x_BHWC.dtype)


convolve = partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def convolve_1x1s(x_BHWC: jax.Array, kernels: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns the 1x1 convolutions of one input with several kernels (1, 1, C, features)."""
    return [convolve(x_BHWC, kernel, (1, 1), "VALID") for kernel in kernels]


def local_response_norm(x_BHWC: jax.Array, lrn: tuple[int, float, float, float]) -> jax.Array:
    """Returns `x * (bias + alpha * s) ** -power`, with the dtype of `x`.

    `lrn` is (size, bias, alpha, power), as in `Architecture`. `s` is the sum of the squares of
    `size` neighbouring channels, in float32, with zero padding.
    """
    size, bias, alpha, power = lrn
    x, half = x_BHWC.astype(jnp.float32), size // 2
    sums = lax.reduce_window(
        x * x, 0.0, lax.add, (1, 1, 1, size), (1, 1, 1, 1), [(0, 0)] * 3 + [(half, half)]
    )
    return (x * (bias + alpha * sums) ** -power).astype(x_BHWC.dtype)


REFERENCE = Ops(
    max_pool, local_response_norm, convolve, convolve_1x1s, jnp.add, nn.relu, nn.BatchNorm
)
