"""Initial weights, drawn by NumPy on the host: nothing is compiled, so a full net takes a second.

Drawing the same weights by jax.random costs one compiled generator for each of 130 shapes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def _drawn(key: jax.Array, shape: tuple[int, ...], dtype, draw) -> jax.Array:
    """`draw(generator, shape)` from a Philox stream that `key` selects, traced or not."""

    def on_host(key_data) -> np.ndarray:
        seed = int.from_bytes(np.asarray(key_data).tobytes(), "little")
        generator = np.random.Generator(np.random.Philox(key=seed))
        return draw(generator, shape).astype(np.float32)

    key_data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    if not isinstance(key_data, Tracer):
        return jnp.asarray(on_host(key_data), dtype)
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.pure_callback(on_host, result, key_data, vmap_method="sequential").astype(dtype)


def constant(value: float) -> Callable[..., jax.Array]:
    """An initializer that fills with `value`; jnp.full would be compiled for each shape."""

    def filled(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        return jnp.asarray(np.full(shape, value, np.float32), dtype)

    return filled


def _fan_in(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[:-1]))


def caffe_xavier(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Weights from U(-a, a), a = sqrt(3 / fan_in): Caffe's "xavier" filler (caffe, filler.hpp).

    `key` is a JAX key of any kind, `shape` ends with (inputs, outputs).
    """
    bound = np.sqrt(3 / _fan_in(shape))
    return _drawn(key, shape, dtype, lambda generator, s: generator.uniform(-bound, bound, s))


def he_normal(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Weights from N(0, 2 / fan_in) (arXiv 1502.01852), for the variants with batch norm."""
    std = np.sqrt(2 / _fan_in(shape))
    return _drawn(key, shape, dtype, lambda generator, s: std * generator.standard_normal(s))
