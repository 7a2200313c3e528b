"""The layers GoogLeNet is made of, with Caffe's rules for sizes and padding.

Shapes: B batch, H height, W width, C channels.
"""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gnet_jax.config import choose
from gnet_jax.model.initializers import caffe_xavier, constant, he_normal


def conv_size(size: int, kernel: int, *, stride: int, pad: int) -> int:
    """Output side length of a convolution: Caffe and everyone else round down."""
    return (size + 2 * pad - kernel) // stride + 1


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """(low, high) padding by TensorFlow's rule "SAME": an odd pixel goes to the high side."""
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


def pooled_size(size: int, window: int, stride: int, pad: int = 0) -> int:
    """Output side length of a pool by Caffe's rule, which rounds up (Caffe, pooling_layer.cpp).

    The last window must still begin inside the image or its low padding. Below 1 where nothing is
    left to pool.
    """
    out = -(-(size + 2 * pad - window) // stride) + 1
    if pad and (out - 1) * stride >= size + pad:
        out -= 1
    return out


def _pool_padding(x_BHWC: jax.Array, window: int, stride: int, pad: int) -> Any:
    """(low, high) padding of H and of W that gives Caffe's output size."""
    sizes = x_BHWC.shape[1:3]
    outs = [pooled_size(n, window, stride, pad) for n in sizes]
    return [
        (pad, max(0, (out - 1) * stride + window - n - pad))
        for n, out in zip(sizes, outs, strict=True)
    ]


def max_pool(x_BHWC: jax.Array, window: int, stride: int, pad: int = 0) -> jax.Array:
    """Max pool of Caffe's output size; what is padded counts as -inf."""
    padding = _pool_padding(x_BHWC, window, stride, pad)
    return nn.max_pool(x_BHWC, (window, window), (stride, stride), padding)


def average_pool(x_BHWC: jax.Array, window: int, stride: int) -> jax.Array:
    """Average pool of Caffe's output size; a window over the border averages what is inside."""
    padding = _pool_padding(x_BHWC, window, stride, 0)
    return nn.avg_pool(x_BHWC, (window, window), (stride, stride), padding, count_include_pad=False)


def adaptive_average_pool(x_BHWC: jax.Array, out: int) -> jax.Array:
    """Average pool to `out` x `out` whatever the input (torch's adaptive_avg_pool2d)."""

    def averaging_matrix(n: int) -> np.ndarray:
        matrix = np.zeros((out, n), np.float32)
        for i in range(out):
            start, end = i * n // out, -(-(i + 1) * n // out)
            matrix[i, start:end] = 1 / (end - start)
        return matrix

    rows, columns = (averaging_matrix(n) for n in x_BHWC.shape[1:3])
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x_BHWC).astype(x_BHWC.dtype)


def local_response_norm(
    x_BHWC: jax.Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """`x * (1 + alpha / size * s) ** -beta`, s the sum of squares over `size` nearby channels.

    The sum is taken in float32 whatever the dtype of `x`, over zero padding; the result has the
    dtype of `x`. Alpha IS divided by the size (Caffe, lrn_layer.cpp).
    """
    x = x_BHWC.astype(jnp.float32)
    half = size // 2
    sums = jax.lax.reduce_window(
        x * x, 0.0, jax.lax.add, (1, 1, 1, size), (1, 1, 1, 1), [(0, 0)] * 3 + [(half, half)]
    )
    return (x * (1.0 + alpha / size * sums) ** -beta).astype(x_BHWC.dtype)


class Conv(nn.Conv):
    """`nn.Conv` over two axes, dense, whose bias is added by a function that may be another one."""

    add_bias: Callable[[jax.Array, jax.Array], jax.Array] = jnp.add

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        sizes: Any = self.kernel_size
        shape = (*sizes, x_BHWC.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias_C = None
        if self.use_bias:
            bias_C = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        cast: list[Any] = self.promote_dtype(x_BHWC, kernel, bias_C, dtype=self.dtype)
        x_BHWC, kernel, bias_C = cast
        convolve: Any = self.conv_general_dilated or jax.lax.conv_general_dilated
        dims = ("NHWC", "HWIO", "NHWC")
        y_BHWC = convolve(x_BHWC, kernel, self.strides, self.padding, dimension_numbers=dims)
        return y_BHWC if bias_C is None else self.add_bias(y_BHWC, bias_C)


class ConvBlock(nn.Module):
    """Convolution, then batch norm where the variant has it, then ReLU.

    Without `norm` the convolution has a bias (initially 0.2, as Caffe's), with it none. `padding`
    matters where the stride is above 1: "caffe" pads both sides alike, "same" as TensorFlow does.
    Without `relu` the ReLU is left to the caller.
    """

    features: int
    kernel: int
    stride: int = 1
    norm: Callable[..., nn.Module] | None = None  # partial(nn.BatchNorm, ...): mode already bound
    dtype: Any = jnp.float32
    padding: Literal["caffe", "same"] = "caffe"
    convolve: Callable[..., jax.Array] = jax.lax.conv_general_dilated
    add_bias: Callable[[jax.Array, jax.Array], jax.Array] = jnp.add
    relu: Callable[[jax.Array], jax.Array] | None = nn.relu

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        pad = self.kernel // 2
        x_BHWC = Conv(
            self.features,
            (self.kernel, self.kernel),
            (self.stride, self.stride),
            choose("padding", self.padding, {"same": "SAME", "caffe": [(pad, pad), (pad, pad)]}),
            use_bias=self.norm is None,
            kernel_init=caffe_xavier if self.norm is None else he_normal,
            bias_init=constant(0.2),
            dtype=self.dtype,
            conv_general_dilated=self.convolve,
            add_bias=self.add_bias,
            name="conv",
        )(x_BHWC)
        if self.norm is not None:
            x_BHWC = self.norm(name="norm")(x_BHWC)
        activated_BHWC = (self.relu or nn.relu)(x_BHWC)
        self.sow("intermediates", "output", activated_BHWC)
        return x_BHWC if self.relu is None else activated_BHWC
