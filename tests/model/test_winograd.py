from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnet_jax.ops import fast_conv
from gnet_jax.ops.fast import FAST
from gnet_jax.ops.reference import REFERENCE

PADDINGS = [((1, 1), (1, 1)), ((0, 2), (0, 0))]


@pytest.fixture
def always(monkeypatch):
    """However few the tiles are, and the channels."""
    monkeypatch.setattr(fast_conv, "MIN_TILES", 1)
    monkeypatch.setattr(fast_conv, "MIN_CHANNELS", 1)


def convolution(convolve, x, kernel, padding):
    return convolve(x, kernel, (1, 1), padding)


def loss(x, kernel, convolve, padding):
    return jnp.sum(jnp.sin(convolution(convolve, x, kernel, padding)))


def arrays(shape, filters=6):
    generator = np.random.default_rng(1)
    x = generator.normal(size=shape).astype(np.float32)
    return x, generator.normal(size=(3, 3, shape[3], filters)).astype(np.float32)


@pytest.mark.parametrize(
    ("size", "padding", "piece"),  # tiles in a piece: an image alone, some, all
    [
        ((6, 8), PADDINGS[0], 1),
        ((6, 8), PADDINGS[1], 20),
        ((5, 3), PADDINGS[0], 1000),
        ((5, 3), PADDINGS[1], 1),
        ((5, 3), PADDINGS[0], 20),
    ],
)
def test_the_convolution_and_its_gradients_are_the_plain_ones(
    size, padding, piece, always, monkeypatch
):
    monkeypatch.setattr(fast_conv, "CHUNK_TILES", piece)
    x, kernel = arrays((4, *size, 5))
    found, expected = (
        [
            jax.jit(partial(convolution, convolve, padding=padding))(x, kernel),
            *jax.jit(jax.grad(partial(loss, convolve=convolve, padding=padding), (0, 1)))(
                x, kernel
            ),
        ]
        for convolve in (FAST.convolve, REFERENCE.convolve)
    )
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= 5e-6 * np.abs(b).max()


def test_several_kernels_at_once_under_vmap_in_pieces(always, monkeypatch):
    monkeypatch.setattr(fast_conv, "CHUNK_TILES", 10)
    x, kernel = arrays((4, 6, 6, 5))
    kernels = np.stack([kernel, 2 * kernel])
    gradient = jax.grad(partial(loss, convolve=FAST.convolve, padding=PADDINGS[0]), 1)
    both = jax.jit(jax.vmap(gradient, (None, 0)))(x, kernels)
    np.testing.assert_allclose(both[1], gradient(x, kernels[1]), rtol=1e-3, atol=1e-3)


def test_a_map_smaller_than_the_kernel_stays_one_product(always, monkeypatch):
    monkeypatch.setattr(fast_conv, "winograd_convolve", None)
    x, kernel = arrays((4, 2, 2, 5))
    assert convolution(FAST.convolve, x, kernel, PADDINGS[0]).shape == (4, 2, 2, 6)


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", 0), ("tpu", 3), ("cuda", 3)])
def test_only_a_cpu_does_it_this_way(platform, convolutions):
    """The convolution itself, and its two gradients."""
    x = jax.ShapeDtypeStruct((8, 14, 14, 96), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 96, 128), jnp.float32)
    gradient = jax.grad(partial(loss, convolve=fast_conv.convolve, padding=PADDINGS[0]), (0, 1))
    text = jax.jit(gradient).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == convolutions


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((32, 14, 14, 96), jnp.float32, True),
        ((1, 56, 56, 64), jnp.float32, True),
        ((1, 28, 50, 48), jnp.float32, True),  # both at their limits
        ((1, 14, 14, 96), jnp.float32, False),  # 49 tiles
        ((64, 16, 16, 32), jnp.float32, False),  # few channels
        ((32, 14, 14, 96), jnp.bfloat16, False),
        ((32, 14, 14, 96), jnp.float64, False),
    ],
)
def test_it_is_left_where_it_does_not_pay(shape, dtype, expected):
    x = jax.ShapeDtypeStruct(shape, dtype)
    assert fast_conv.winograd_is_faster(x, PADDINGS[0]) == expected


@pytest.mark.parametrize(
    ("batch", "side", "pieces"), [(32, 56, 8), (32, 28, 2), (32, 14, 1), (7, 56, 7), (1, 256, 1)]
)
def test_a_batch_falls_into_equal_pieces_that_fit_the_caches(batch, side, pieces):
    tiles = fast_conv._tiles((side, side), PADDINGS[0])
    assert fast_conv._chunks(batch, tiles) == pieces
