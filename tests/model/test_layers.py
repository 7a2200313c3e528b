from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnet_jax.model.architecture import VARIANTS, Architecture
from gnet_jax.model.layers import ConvBlock, caffe_xavier, he_normal
from gnet_jax.ops.reference import (
    adaptive_average_pool,
    average_pool,
    local_response_norm,
    max_pool,
)
from gnet_jax.ops.sizes import conv_size, pooled_size, same_padding

GENERATOR = np.random.default_rng(0)


def caffe_pool(x, window, stride, pad, reduce):
    """Caffe's pooling_layer.cpp in plain loops, over one (H, W) map."""
    size = x.shape[0]
    out = int(np.ceil((size + 2 * pad - window) / stride)) + 1
    if pad and (out - 1) * stride >= size + pad:
        out -= 1
    result = np.empty((out, out), x.dtype)
    for i in range(out):
        for j in range(out):
            top, left = i * stride - pad, j * stride - pad
            rows = slice(max(top, 0), min(top + window, size))
            columns = slice(max(left, 0), min(left + window, size))
            result[i, j] = reduce(x[rows, columns])
    return result


@pytest.mark.parametrize("size", [7, 8, 9, 14, 15])
@pytest.mark.parametrize(("window", "stride", "pad"), [(3, 2, 0), (2, 2, 0), (3, 1, 1)])
def test_max_pool_is_caffes_at_every_size(size, window, stride, pad):
    x = GENERATOR.normal(size=(size, size)).astype(np.float32) - 3  # zero padding would show
    found = max_pool(jnp.asarray(x[None, :, :, None]), window, stride, pad)[0, :, :, 0]
    np.testing.assert_array_equal(found, caffe_pool(x, window, stride, pad, np.max))


@pytest.mark.parametrize("size", [4, 7, 8, 9, 14, 18])
def test_average_pool_is_caffes_at_every_size(size):
    x = GENERATOR.normal(size=(size, size)).astype(np.float32)
    found = average_pool(jnp.asarray(x[None, :, :, None]), 5, 3)[0, :, :, 0]
    np.testing.assert_allclose(found, caffe_pool(x, 5, 3, 0, np.mean), rtol=1e-5, atol=1e-6)


def test_a_padded_pool_does_not_begin_after_the_image():
    assert pooled_size(2, 2, 2, pad=1) == 2
    assert pooled_size(3, 2, 2, pad=1) == 2  # ceil gives 3; the third would see padding alone


@pytest.mark.parametrize("size", [2, 4, 5, 7, 14])
def test_adaptive_average_pool_averages_the_cells_of_torch(size):
    x = GENERATOR.normal(size=(size, size)).astype(np.float32)
    found = adaptive_average_pool(jnp.asarray(x[None, :, :, None]), 4)[0, :, :, 0]
    for i in range(4):
        for j in range(4):
            rows = slice(i * size // 4, -(-(i + 1) * size // 4))
            columns = slice(j * size // 4, -(-(j + 1) * size // 4))
            assert found[i, j] == pytest.approx(x[rows, columns].mean(), abs=1e-5)


@pytest.mark.parametrize(
    ("variant", "half", "alpha", "power"),
    [("paper", 2, 1e-4 / 5, 0.75), ("google_release", 4, 1e-4 / 9, 0.5)],
)
def test_local_response_norm_is_caffes_or_googles(variant, half, alpha, power):
    x = 50 * GENERATOR.normal(size=(2, 3, 3, 11)).astype(np.float32)
    expected = np.empty_like(x)
    for c in range(11):
        near = x[..., max(0, c - half) : c + half + 1]
        expected[..., c] = x[..., c] * (1 + alpha * (near**2).sum(-1)) ** -power
    found = local_response_norm(jnp.asarray(x), VARIANTS[variant].lrn)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_local_response_norm_sums_in_float32():
    x = jnp.full((1, 1, 1, 8), 300.0, jnp.bfloat16)
    found = local_response_norm(x, Architecture().lrn)
    assert found.dtype == jnp.bfloat16
    inside = 300 * (1 + 1e-4 / 5 * 5 * 300**2) ** -0.75
    assert float(found[0, 0, 0, 4]) == pytest.approx(inside, rel=2**-8)


@pytest.mark.parametrize(("size", "expected"), [(224, 112), (227, 114), (231, 116), (299, 150)])
def test_the_first_convolution_pads_three_on_each_side(size, expected):
    block = ConvBlock(2, 7, 2)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    outputs, variables = jax.eval_shape(
        lambda x: block.init_with_output(jax.random.PRNGKey(0), x), x
    )
    assert outputs.shape == (1, expected, expected, 2)
    assert variables["params"]["conv"]["kernel"].shape == (7, 7, 3, 2)


def test_the_first_output_of_a_strided_convolution_sees_three_padded_pixels():
    """SAME would pad two on this side: the value below is what tells them apart."""
    block = ConvBlock(1, 7, 2)
    params = {"conv": {"kernel": jnp.ones((7, 7, 1, 1)), "bias": jnp.zeros(1)}}
    found = block.apply({"params": params}, jnp.ones((1, 8, 8, 1)))
    assert np.asarray(found)[0, 0, 0, 0] == 16  # 4 x 4 pixels under a 7x7 window


def test_tensorflows_padding_moves_the_windows_and_keeps_the_sizes():
    params = {"conv": {"kernel": jnp.ones((7, 7, 1, 1)), "bias": jnp.zeros(1)}}
    block = ConvBlock(1, 7, 2, padding="same")
    for size, seen in ((8, 5), (9, 4)):  # (2, 3) padded pixels, and (3, 3) as Caffe
        found = block.apply({"params": params}, jnp.ones((1, size, size, 1)))
        assert np.asarray(found)[0, 0, 0, 0] == seen**2
        low, high = same_padding(size, 7, 2)
        assert found.shape[1] == (low + size + high - 7) // 2 + 1
        assert found.shape[1] == conv_size(size, 7, stride=2, pad=3)
        assert low == 7 - seen


@pytest.mark.parametrize("norm", [None, partial(nn.BatchNorm, use_running_average=False)])
def test_a_max_pool_before_the_bias_changes_neither_the_result_nor_the_gradients(norm):
    """The weights are small whole numbers, so that windows have equal maxima."""
    pooled, whole = (ConvBlock(5, 3, norm=norm, pool=pool) for pool in ((3, 2), None))
    x = jnp.asarray(GENERATOR.integers(-3, 4, (2, 7, 8, 3)), jnp.float32)
    variables = pooled.init(jax.random.PRNGKey(0), x)
    kernel = GENERATOR.integers(-2, 3, (3, 3, 3, 5)).astype(np.float32)
    variables["params"]["conv"]["kernel"] = kernel
    if norm is None:
        variables["params"]["conv"]["bias"] = jnp.arange(-2.0, 3.0)
    dy = jnp.asarray(GENERATOR.integers(1, 100, (2, 3, 4, 5)), jnp.float32)

    def loss(params, block, pool):
        y, _ = block.apply(variables | {"params": params}, x, mutable=["batch_stats"])
        return jnp.sum(dy * pool(y))

    found = jax.grad(loss)(variables["params"], pooled, lambda y: y)
    expected = jax.grad(loss)(variables["params"], whole, lambda y: max_pool(y, 3, 2))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-3), found, expected)
    outputs, state = pooled.apply(variables, x, mutable=["intermediates", "batch_stats"])
    (recorded,) = state["intermediates"]["output"]
    np.testing.assert_array_equal(outputs, max_pool(recorded, 3, 2))


def test_initial_weights_have_the_stated_spread_and_are_the_same_traced_or_not():
    key, shape = jax.random.PRNGKey(3), (5, 5, 20, 400)
    for draw, bound in ((caffe_xavier, np.sqrt(3 / 500)), (he_normal, None)):
        weights = np.asarray(draw(key, shape))
        variance = 1 / 500 if bound else 2 / 500
        assert weights.var() == pytest.approx(variance, rel=0.02)
        if bound:
            assert abs(weights).max() <= bound
        np.testing.assert_array_equal(weights, jax.jit(lambda k, d=draw: d(k, shape))(key))
        assert (np.asarray(draw(jax.random.PRNGKey(4), shape)) != weights).mean() > 0.99


def test_a_key_gives_the_same_weights_in_every_version():
    """NumPy's Philox generator with the key's 64 bits, the first word first."""
    generator = np.random.Generator(np.random.Philox(key=5 * 2**32 + 7))
    key = jnp.asarray([7, 5], jnp.uint32)
    expected = np.float32(generator.uniform(-1, 1, (3, 2)))
    np.testing.assert_array_equal(caffe_xavier(key, (3, 2)), expected)
