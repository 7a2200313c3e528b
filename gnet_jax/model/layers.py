"""The layers of GoogLeNet, with their initial weights.

Shapes: B batch, H height, W width, C channels.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gnet_jax.errors import choose
from gnet_jax.ops.reference import REFERENCE, Ops


def caffe_xavier(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Returns weights from U(-a, a), a = sqrt(3 / fan_in): Caffe's "xavier" (caffe, filler.hpp).

    `key` is a JAX key of any kind, `shape` ends with (inputs, outputs).
    """
    bound = np.sqrt(3 / _fan_in(shape))
    return _draw(key, shape, dtype, lambda generator, s: generator.uniform(-bound, bound, s))


def he_normal(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Returns weights from N(0, 2 / fan_in) (arXiv 1502.01852), for convolutions with a norm."""
    std = np.sqrt(2 / _fan_in(shape))
    return _draw(key, shape, dtype, lambda generator, s: std * generator.standard_normal(s))


def constant(value: float) -> Callable[..., jax.Array]:
    """Returns an initialiser that fills with `value`; jnp.full would compile for each shape."""

    def fill(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        return jnp.asarray(np.full(shape, value, np.float32), dtype)

    return fill


def _fan_in(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[:-1]))


def _draw(key: jax.Array, shape: tuple[int, ...], dtype, draw) -> jax.Array:
    """Returns `draw(generator, shape)`, with NumPy's Philox generator seeded by `key`.

    NumPy draws on the host without compiling; jax.random would compile for each of 130 shapes.
    """

    def draw_on_host(key_data) -> np.ndarray:
        seed = int.from_bytes(np.asarray(key_data).tobytes(), "little")
        generator = np.random.Generator(np.random.Philox(key=seed))
        return draw(generator, shape).astype(np.float32)

    key_data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    if not isinstance(key_data, Tracer):
        return jnp.asarray(draw_on_host(key_data), dtype)
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.pure_callback(draw_on_host, result, key_data, vmap_method="sequential").astype(dtype)


def dense(features: int, dtype: Any, bias: float = 0.0, *, name: str) -> nn.Dense:
    """Returns a linear layer with Caffe's initial weights."""
    return nn.Dense(
        features, kernel_init=caffe_xavier, bias_init=constant(bias), dtype=dtype, name=name
    )


class Conv(nn.Conv):
    """`nn.Conv` over two axes, dense, computed by `ops`."""

    ops: Ops = REFERENCE

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, product_BHWC: jax.Array | None = None) -> jax.Array:
        """Returns the convolution; `product` is its result without the bias, if known."""
        sizes: Any = self.kernel_size
        shape = (*sizes, x_BHWC.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias_C = None
        if self.use_bias:
            bias_C = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        cast: list[Any] = self.promote_dtype(x_BHWC, kernel, bias_C, dtype=self.dtype)
        x_BHWC, kernel, bias_C = cast
        y_BHWC = product_BHWC
        if y_BHWC is None:
            dims = ("NHWC", "HWIO", "NHWC")
            y_BHWC = self.ops.convolve(
                x_BHWC, kernel, self.strides, self.padding, dimension_numbers=dims
            )
        return y_BHWC if bias_C is None else self.ops.add_bias(y_BHWC, bias_C)


class ConvBlock(nn.Module):
    """Convolution, then the norm if the network has one, then ReLU.

    The convolution has a bias (initially 0.2, as in Caffe) unless a norm follows. `padding` matters
    if the stride is above 1: "caffe" pads both sides equally, "same" pads as TensorFlow does.
    """

    features: int
    kernel: int
    stride: int = 1
    norm: Callable[..., nn.Module] | None = None  # partial(nn.BatchNorm, ...): mode already bound
    dtype: Any = jnp.float32
    padding: Literal["caffe", "same"] = "caffe"
    ops: Ops = REFERENCE

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, product_BHWC: jax.Array | None = None) -> jax.Array:
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
            ops=self.ops,
            name="conv",
        )(x_BHWC, product_BHWC)
        if self.norm is not None:
            x_BHWC = self.norm(name="norm")(x_BHWC)
        x_BHWC = self.ops.relu(x_BHWC)
        self.sow("intermediates", "output", x_BHWC)
        return x_BHWC


def apply_each(layers: Sequence[Any], x_BHWC: jax.Array) -> list[jax.Array]:
    """Returns the output of each layer for the same input.

    1x1 convolutions give `ops` all their kernels at once, so that it can use one wide product.
    """
    if not all(type(layer) is ConvBlock and layer.kernel == 1 for layer in layers):
        return [layer(x_BHWC) for layer in layers]
    if layers[0].is_initializing():  # there are no kernels yet
        return [layer(x_BHWC) for layer in layers]
    kernels = [layer.variables["params"]["conv"]["kernel"] for layer in layers]
    products = layers[0].ops.convolve_1x1s(x_BHWC, [k.astype(x_BHWC.dtype) for k in kernels])
    return [layer(x_BHWC, product) for layer, product in zip(layers, products, strict=True)]
