"""The layers of GoogLeNet, their initialisers, and their parameters' roles (kernel, bias, norm).

Shapes: B batch, H height, W width, C channels.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.core import Tracer

from gnet_jax.errors import UserError, choose
from gnet_jax.ops.fast import constant
from gnet_jax.ops.reference import REFERENCE, Ops


def caffe_xavier(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Returns weights from U(-a, a), a = sqrt(3 / fan_in), as in Caffe's "xavier" (filler.hpp)."""
    bound = np.sqrt(3 / math.prod(shape[:-1]))
    return _draw(key, shape, dtype, lambda generator, s: generator.uniform(-bound, bound, s))


def he_normal(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Returns weights from N(0, 2 / fan_in) (arXiv 1502.01852), for convolutions with a norm."""
    std = np.sqrt(2 / math.prod(shape[:-1]))
    return _draw(key, shape, dtype, lambda generator, s: std * generator.standard_normal(s))


def _draw(key: jax.Array, shape: tuple[int, ...], dtype, draw) -> jax.Array:
    """Call `draw` with a NumPy generator; jax.random would compile 130 programs, one per shape."""

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
    """Returns a linear layer that is initialised as in Caffe; `bias` is the initial bias."""
    return nn.Dense(
        features, kernel_init=caffe_xavier, bias_init=constant(bias), dtype=dtype, name=name
    )


class Conv(nn.Conv):
    """A 2D `nn.Conv`, without groups or dilation, that is computed by `ops`.

    It has the parameter "bias", but `ConvBlock` adds it, so that a max pool can come before.
    """

    ops: Ops = REFERENCE

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, product_BHWC: jax.Array | None = None) -> jax.Array:
        """Returns the convolution of `x` without the bias; this is `product`, if that is given."""
        sizes: Any = self.kernel_size
        kernel = self.param("kernel", self.kernel_init, (*sizes, x_BHWC.shape[-1], self.features))
        if self.use_bias:
            self.param("bias", self.bias_init, (self.features,))
        if product_BHWC is not None:
            return product_BHWC
        cast: list[Any] = self.promote_dtype(x_BHWC, kernel, dtype=self.dtype)
        return self.ops.convolve(*cast, self.strides, self.padding)


class ConvBlock(nn.Module):
    """A convolution with a bias (initially 0.2, as in Caffe) or a norm, and a ReLU.

    With a stride above 1, padding "caffe" pads both sides equally; "same" pads as TensorFlow does.
    `pool` is the window and stride of a max pool that follows.
    """

    features: int
    kernel: int
    stride: int = 1
    norm: Callable[..., nn.Module] | None = None  # a norm with train mode already bound
    dtype: Any = jnp.float32
    padding: Literal["caffe", "same"] = "caffe"
    pool: tuple[int, int] | None = None
    ops: Ops = REFERENCE

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, product_BHWC: jax.Array | None = None) -> jax.Array:
        pad = self.kernel // 2
        conv = Conv(
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
        )
        x_BHWC = conv(x_BHWC, product_BHWC)
        if self.norm is not None:
            x_BHWC = self.norm(name="norm")(x_BHWC)

        def finish(x_BHWC: jax.Array) -> jax.Array:
            if self.norm is None:
                bias_C = conv.get_variable("params", "bias")
                x_BHWC = self.ops.add_bias(x_BHWC, bias_C.astype(x_BHWC.dtype))
            return self.ops.relu(x_BHWC)

        activated_BHWC = finish(x_BHWC)
        self.sow("intermediates", "output", activated_BHWC)
        if self.pool is None:
            return activated_BHWC
        # The result is the same with the bias and the ReLU last, where there are fewer elements.
        return finish(self.ops.max_pool(x_BHWC, *self.pool))


def apply_each(layers: Sequence[Any], x_BHWC: jax.Array) -> list[jax.Array]:
    """Returns the outputs of `layers` for one input. If all are 1x1, by one matrix product."""
    pointwise = all(type(layer) is ConvBlock and layer.kernel == 1 for layer in layers)
    if not pointwise or layers[0].is_initializing():  # while initialising, no kernels exist
        return [layer(x_BHWC) for layer in layers]
    kernels = [layer.variables["params"]["conv"]["kernel"] for layer in layers]
    products = layers[0].ops.convolve_1x1s(x_BHWC, [k.astype(x_BHWC.dtype) for k in kernels])
    return [layer(x_BHWC, product) for layer, product in zip(layers, products, strict=True)]


Role = Literal["kernel", "bias", "norm"]


def roles(names: Iterable[str], where: str) -> Mapping[str, Role]:
    """Returns the roles of the parameters `names` of one module; `where` is the module's path.

    Raises UserError for parameters that are neither those of a layer nor those of a norm.
    """
    own = set(names)
    if own in ({"kernel"}, {"kernel", "bias"}):
        return {"kernel": "kernel", "bias": "bias"}
    if own in ({"scale"}, {"scale", "bias"}):
        return {"scale": "norm", "bias": "norm"}
    odd = sorted(own - {"kernel", "bias", "scale"}) or sorted(own - {"kernel"})
    name = "/".join(filter(None, (where, odd[0])))
    known = "a layer has a kernel and a bias; a norm has a scale and a bias"
    raise UserError(
        f"unknown parameter {name!r} of a module with {', '.join(sorted(own))}; {known}"
    )


def roles_by_path(params: Mapping[str, Any]) -> dict[tuple[str, ...], Role]:
    """Returns the role of every parameter in a tree, by path. Raises UserError as `roles` does."""
    paths: Any = traverse_util.flatten_dict(dict(params))
    found = {}
    for *module, name in paths:
        beside = [other for *place, other in paths if place == module]
        found[*module, name] = roles(beside, "/".join(module))[name]
    return found
