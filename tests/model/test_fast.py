import dataclasses
import re
from functools import partial

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pytest

from gnet_jax.model.architecture import VARIANTS
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.ops import fast, fast_conv, reference
from gnet_jax.ops.fast import FAST
from gnet_jax.ops.reference import REFERENCE
from gnet_jax.training.sharding import data_mesh, replicated, split
from tests.tiny import tiny_arch, tiny_variables

GENERATOR = np.random.default_rng(0)
START = GENERATOR.bit_generator.state
POOLS = [(3, 2, 0), (2, 2, 0), (3, 1, 1), (2, 2, 1), (3, 3, 1), (2, 3, 0), (12, 1, 5)]
# JAX 0.7 has it in another place.
enable_x64 = (jax if hasattr(jax, "enable_x64") else jax.experimental).enable_x64
PAPERS_LRN, GOOGLES_LRN = (VARIANTS[name].lrn for name in ("paper", "google_release"))
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 2**-7}  # of the largest value


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    GENERATOR.bit_generator.state = START


def with_gradient(function, x, dy):
    @jax.jit
    def run(x, dy):
        y, pullback = jax.vjp(function, x)
        return y, pullback(dy.astype(y.dtype))[0]

    return run(x, dy)


def assert_close(found, expected, tolerance=1e-5):
    """Differences as shares of an array's largest value, or of a hundredth of the largest of all.

    The latter is for a single number that is a sum of large ones.
    """
    expected = [np.asarray(b, np.float32) for b in jax.tree.leaves(expected)]
    floor = max(np.abs(b).max() for b in expected) / 100
    for a, b in zip(jax.tree.leaves(found), expected, strict=True):
        a = np.asarray(a, np.float32)
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), floor)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize(("window", "stride", "pad"), POOLS)
def test_max_pool_and_its_gradient_are_the_plain_ones(size, window, stride, pad):
    """With ties: every value is 0, 1 or 2, and the same of equal maxima gets the gradient."""
    x = jnp.asarray(GENERATOR.integers(0, 3, (2, size, size + 3, 5)), jnp.float32) - 1.5
    args = (window, stride, pad)
    shape = jax.eval_shape(lambda x: reference.max_pool(x, *args), x).shape
    dy = jnp.asarray(GENERATOR.integers(1, 100, shape), jnp.float32)
    found = with_gradient(lambda x: fast.max_pool(x, *args), x, dy)
    expected = with_gradient(lambda x: reference.max_pool(x, *args), x, dy)
    jax.tree.map(np.testing.assert_array_equal, found, expected)  # exact in any order


def test_max_pool_passes_on_what_is_not_a_number():
    x = jnp.zeros((1, 8, 8, 2)).at[0, 3, 4, 1].set(jnp.nan)
    found, expected = fast.max_pool(x, 3, 2), reference.max_pool(x, 3, 2)
    assert np.isnan(found).sum() == 2
    np.testing.assert_array_equal(found, expected)


def test_average_pools_of_double_precision_are_not_rounded_to_single():
    x = GENERATOR.normal(size=(1, 7, 7, 2))
    with enable_x64(True):
        whole = reference.average_pool(jnp.asarray(x), 7, 1)
        part = reference.adaptive_average_pool(jnp.asarray(x), 2)[0, 0, 1]
    np.testing.assert_allclose(whole[0, 0, 0], x[0].mean((0, 1)), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(part, x[0, :4, 3:].mean((0, 1)), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("lrn", [PAPERS_LRN, GOOGLES_LRN, (11, 2.0, 1e-3, 1.25)])
@pytest.mark.parametrize(
    ("channels", "dtype"), [(3, jnp.float32), (11, jnp.float32), (64, jnp.bfloat16)]
)
def test_local_response_norm_and_its_gradient_are_the_plain_ones(channels, dtype, lrn):
    x = jnp.asarray(100 * GENERATOR.normal(size=(2, 3, 4, channels)), dtype)
    dy = jnp.asarray(GENERATOR.normal(size=x.shape), dtype)
    found = with_gradient(partial(fast.local_response_norm, lrn=lrn), x, dy)
    expected = with_gradient(partial(reference.local_response_norm, lrn=lrn), x, dy)
    assert [a.dtype for a in found] == [dtype, dtype]
    assert_close(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("half", [2, 4])
def test_both_ways_to_sum_over_channels_give_the_same(half):
    x = jnp.asarray(GENERATOR.normal(size=(2, 3, 4, 11)), jnp.float32)
    expected = [x[..., max(0, c - half) : c + half + 1].sum(-1) for c in range(11)]
    for found in (fast._banded_sum(x, 2 * half + 1), fast._shifted_sum(x, 2 * half + 1)):
        np.testing.assert_allclose(found, np.stack(expected, -1), rtol=1e-5, atol=1e-5)


def test_relu_and_its_gradient_are_the_plain_ones():
    x = jnp.asarray([-2.0, -0.0, 0.0, 3.0, jnp.inf, jnp.nan])
    dy = jnp.arange(1.0, 7.0)
    for a, b in zip(
        with_gradient(fast.relu, x, dy), with_gradient(jax.nn.relu, x, dy), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def loss_of(model, variables, x, *, weight=1.0):
    outputs, _ = model.apply(
        variables, x, train=True, rngs={"dropout": jax.random.PRNGKey(1)}, mutable=["batch_stats"]
    )
    return weight * sum(
        jnp.sum(jnp.sin(logits)) for logits in (outputs.logits, *outputs.aux_logits)
    )


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [("paper", jnp.float32), ("naive", jnp.float32), ("batch_norm", jnp.float64)],
)
def test_the_network_and_all_its_gradients_are_the_plain_ones(variant, dtype):
    """The gradients with respect to every parameter and to the image.

    Batch norm over few pixels magnifies rounding tenfold, so there it is taken out of the way.
    """
    with enable_x64(dtype == jnp.float64):
        (found, of_found), (expected, of_expected) = (
            jax.jit(jax.value_and_grad(partial(loss_of, model), (0, 1)))(
                jax.tree.map(lambda x: jnp.asarray(x, dtype), tiny_variables(model)),
                jnp.asarray(IMAGES, dtype),
            )
            for model in (
                GoogLeNet(TWO_BLOCKS[variant], dtype, ops=ops) for ops in (FAST, REFERENCE)
            )
        )
    assert_close(found, expected)
    assert_close(of_found[0]["params"], of_expected[0]["params"])
    assert_close(of_found[1], of_expected[1])
    assert np.abs(of_expected[1]).max() > 0


TWO_BLOCKS = {
    variant: dataclasses.replace(arch, widths={name: arch.widths[name] for name in ("3a", "4a")})
    for variant in ("paper", "naive", "batch_norm")
    for arch in [tiny_arch(variant)]
}
IMAGES = np.random.default_rng(5).normal(size=(3, 16, 16, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("size", "rows", "columns", "dtype"),
    [
        ((4, 4), (2, 2), (2, 2), jnp.float32),
        ((4, 4), (0, 3), (2, 2), jnp.bfloat16),
        ((2, 3), (4, 1), (2, 2), jnp.float32),
        ((1, 1), (2, 2), (2, 2), jnp.float32),
        ((4, 9), (0, 3), (0, 1), jnp.float32),
        ((3, 4), (4, 1), (2, 2), jnp.float32),
    ],
)
def test_a_kernel_larger_than_the_map_and_its_gradients_are_the_plain_ones(
    size, rows, columns, dtype
):
    x = jnp.asarray(GENERATOR.normal(size=(3, *size, 5)), dtype)
    k = jnp.asarray(GENERATOR.normal(size=(5, 5, 5, 6)), dtype)
    results = []
    for ops in (FAST, REFERENCE):

        @jax.jit
        def run(x, k, convolve=ops.convolve):
            y, pullback = jax.vjp(partial(convolution, convolve, padding=[rows, columns]), x, k)
            return y, pullback(jnp.cos(y))

        results.append(run(x, k))
    assert_close(*results, TOLERANCE[dtype])


def test_the_gradient_of_a_kernel_larger_than_the_map_is_summed_in_float32():
    x, k = jnp.ones((1, 4, 4, 1), jnp.bfloat16), jnp.ones((5, 5, 1, 1), jnp.bfloat16)
    dy = jnp.ones((1, 4, 4, 1), jnp.bfloat16).at[0, 0, 0].set(256)  # in bfloat16, 256 + 1 is 256
    pullback = jax.vjp(partial(convolution, FAST.convolve, x, padding=[(2, 2)] * 2), k)[1]
    assert float(pullback(dy)[0][2, 2, 0, 0]) == 272  # 271


@pytest.mark.parametrize(
    ("platform", "side", "convolves"), [("cpu", 4, False), ("cpu", 5, True), ("tpu", 4, True)]
)
def test_only_a_cpu_takes_a_small_map_for_a_product(platform, side, convolves):
    x = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    k = jax.ShapeDtypeStruct((5, 5, 3, 4), jnp.float32)
    gradient = jax.grad(partial(convolved, convolve=fast_conv.convolve, padding=[(2, 2)] * 2), 1)
    text = jax.jit(gradient).trace(x, k).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" in text) == convolves


@pytest.mark.parametrize("image_by_image", [True, False])
@pytest.mark.parametrize("places", [(16, 256, 256), (3, 7, 7)])
def test_many_numbers_are_summed_to_the_last_digits(places, image_by_image):
    # One after the other, a sum of a million float32 numbers is wrong in its fourth digit.
    x = jnp.concatenate([jnp.full((*places, 1), 0.1), jnp.full((*places, 1), 3.3)], axis=-1)
    (found,) = jax.jit(partial(fast.sum_pixels, image_by_image=image_by_image))(x)
    expected = np.asarray(x, np.float64).sum(axis=(0, 1, 2))
    np.testing.assert_allclose(found, expected, rtol=2e-6)


@pytest.mark.parametrize(
    ("use_running_average", "momentum"), [(False, 0.9), (False, 0.0), (True, 0.9)]
)
def test_batch_norm_its_gradients_and_its_statistics_are_flaxs(use_running_average, momentum):
    x = jnp.asarray(3 + 2 * GENERATOR.normal(size=(4, 3, 5, 7)), jnp.float32)
    results = []
    for ops in (FAST, REFERENCE):
        norm = ops.batch_norm(
            use_running_average=use_running_average,
            momentum=momentum,
            epsilon=1e-3,
            dtype=jnp.float32,
        )
        variables = dict(norm.init(jax.random.PRNGKey(0), x))
        variables["params"] = {"scale": jnp.full(7, 1.5), "bias": jnp.full(7, -0.5)}
        variables["batch_stats"] = {"mean": jnp.full(7, 0.3), "var": jnp.full(7, 1.7)}

        def loss(params, x, norm=norm, variables=variables):
            y, new = norm.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)), (y, new)

        gradient = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        results.append(gradient(variables["params"], x))
    assert_close(*results, 1e-5)


def test_batch_norm_over_several_devices_is_that_of_the_whole_batch():
    x = 3 + GENERATOR.normal(size=(2, 2, 3, 3, 4)).astype(np.float32)  # axis 0: the devices
    scale, bias = np.full(4, 1.5, np.float32), np.full(4, 0.5, np.float32)

    def normalize(x):
        return fast.normalize(x, scale, bias, 1e-3, "device")

    y, mean, var = jax.vmap(normalize, axis_name="device")(x)
    np.testing.assert_allclose(mean[1], x.mean((0, 1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(var[1], x.var((0, 1, 2, 3)), rtol=1e-4)
    expected = (x - np.asarray(mean[0])) / np.sqrt(np.asarray(var[0]) + 1e-3) * 1.5 + 0.5
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_batch_norm_of_bfloat16_has_float32_statistics():
    x = jnp.asarray(5 + GENERATOR.normal(size=(4, 6, 6, 3)), jnp.bfloat16)
    _, mean, var = fast.normalize(x, jnp.ones(3), jnp.zeros(3), 1e-3, None)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-4)


def grouped(group):
    norm = FAST.batch_norm(False, 0.0, 1e-3, jnp.float32, group=group)
    scale, bias = jnp.linspace(0.5, 2, 7), jnp.linspace(-1, 1, 7)

    def loss(params, x):
        variables = {"params": params, "batch_stats": {"mean": jnp.zeros(7), "var": jnp.ones(7)}}
        y, new = norm.apply(variables, x, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y)), (y, new["batch_stats"])

    return partial(jax.value_and_grad(loss, (0, 1), has_aux=True), {"scale": scale, "bias": bias})


def test_batch_norm_over_groups_is_that_of_each_group_alone():
    """The loss and the parameters' gradients are sums, the statistics are means of the groups'."""
    x = jnp.asarray(3 + 2 * GENERATOR.normal(size=(6, 3, 5, 7)), jnp.float32)
    (loss, (y, stats)), (d_params, dx) = grouped(2)(x)
    parts = [grouped(None)(x[i : i + 2]) for i in (0, 2, 4)]
    each = [(*value, *gradient) for value, gradient in parts]
    losses, outputs, d_each, dx_each = zip(*each, strict=True)
    assert_close(loss, sum(losses), 1e-5)
    assert_close(y, jnp.concatenate([output for output, _ in outputs]), 1e-5)
    mean = jax.tree.map(lambda *a: sum(a) / 3, *[own for _, own in outputs])
    assert_close(stats, mean, 1e-5)
    assert_close(d_params, jax.tree.map(lambda *a: sum(a), *d_each), 1e-5)
    assert_close(dx, jnp.concatenate(dx_each), 1e-5)


def test_one_group_of_all_images_is_plain_batch_norm():
    x = jnp.asarray(3 + 2 * GENERATOR.normal(size=(4, 3, 5, 7)), jnp.float32)
    assert_close(grouped(4)(x), grouped(None)(x), 1e-6)


def collectives(group, images=16):
    """The collectives of a gradient of batch norm whose images are split over eight devices."""
    mesh = data_mesh()
    x = jax.ShapeDtypeStruct((images, 2, 2, 7), jnp.float32, sharding=split(mesh))
    out = ((replicated(mesh), split(mesh)), replicated(mesh), split(mesh))

    def step(x):
        (_, (y, stats)), (d_params, dx) = grouped(group)(x)
        return (stats, y), d_params, dx

    text = jax.jit(step, out_shardings=out).lower(x).compile().as_text()
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    return re.findall(rf"= .*? ({kinds})(?:-start)?\(", text)


def test_groups_within_a_device_need_no_exchange_before_their_outputs():
    """Only the statistics and the parameters' gradients are exchanged, all at once."""
    assert collectives(2) == ["all-reduce"]
    assert collectives(1) == ["all-reduce"]
    assert len(collectives(None)) > 1
    assert len(collectives(4)) > 1


def test_the_result_of_groups_does_not_depend_on_the_devices():
    x = np.float32(3 + 2 * GENERATOR.normal(size=(16, 2, 2, 7)))
    for group in (2, 4, 16):
        alone = jax.jit(grouped(group))(x)
        spread = jax.jit(grouped(group))(jax.device_put(x, split(data_mesh())))
        assert_close(alone, spread, 1e-5)


def test_the_variance_of_equal_values_is_not_negative():
    x = jnp.broadcast_to(jnp.linspace(100, 9000, 64), (3, 7, 7, 64))
    y, _, var = fast.normalize(x, jnp.ones(64), jnp.zeros(64), 1e-3, None)
    assert var.min() >= 0
    assert np.isfinite(y).all()


def convolution(convolve, x, kernel, padding):
    return convolve(x, kernel, (1, 1), padding)


def convolved(x, kernel, convolve, padding):
    y = convolution(convolve, x, kernel, padding)
    return jnp.sum(jnp.sin(y.astype(jnp.float32)))


@pytest.mark.parametrize(
    ("strides", "padding"),
    [((2, 2), [(1, 1), (1, 1)]), ((1, 2), [(1, 1), (1, 1)]), ((1, 1), "SAME")],
)
def test_other_convolutions_are_left_to_xla(strides, padding, monkeypatch):
    monkeypatch.setattr(fast_conv, "MIN_TILES", 0)
    monkeypatch.setattr(fast_conv, "MIN_CHANNELS", 0)
    x = jnp.asarray(GENERATOR.normal(size=(16, 6, 6, 3)), jnp.float32)
    k = jnp.asarray(GENERATOR.normal(size=(3, 3, 3, 3)), jnp.float32)
    np.testing.assert_array_equal(
        fast_conv.convolve(x, k, strides, padding), REFERENCE.convolve(x, k, strides, padding)
    )


@pytest.mark.parametrize("padding", [[(0, 0), (0, 0)], [(1, 1), (1, 1)], [(0, 1), (0, 0)]])
def test_a_1x1_convolution_may_be_padded(padding):
    x = jnp.asarray(GENERATOR.normal(size=(2, 4, 4, 3)), jnp.float32)
    k = jnp.asarray(GENERATOR.normal(size=(1, 1, 3, 5)), jnp.float32)
    expected = REFERENCE.convolve(x, k, (1, 1), padding)
    assert_close(fast_conv.convolve(x, k, (1, 1), padding), expected)


def test_a_1x1_convolution_is_a_matrix_product():
    x, k = jnp.zeros((2, 4, 4, 3)), jnp.zeros((1, 1, 3, 5))
    text = str(jax.make_jaxpr(lambda x: fast_conv.convolve(x, k, (1, 1), [(0, 0), (0, 0)]))(x))
    assert "dot_general" in text
    assert "conv_general_dilated" not in text


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_bias_is_added_and_its_gradient_is_a_sum_in_float32(dtype):
    x = jnp.asarray(GENERATOR.normal(size=(4, 5, 6, 7)), dtype)
    bias = jnp.asarray(GENERATOR.normal(size=7), dtype)
    y, pullback = jax.vjp(FAST.add_bias, x, bias)
    dx, d_bias = pullback(jnp.cos(y))
    np.testing.assert_array_equal(y, REFERENCE.add_bias(x, bias))
    np.testing.assert_array_equal(dx, jnp.cos(y))
    assert d_bias.dtype == dtype
    assert_close(d_bias, jnp.sum(jnp.cos(y), (0, 1, 2), jnp.float32), TOLERANCE[dtype])


def test_several_networks_train_at_once_under_vmap():
    model = GoogLeNet(dataclasses.replace(TWO_BLOCKS["paper"], aux_after=()))
    variables = tiny_variables(model)
    two = jax.tree.map(lambda x: jnp.stack([x, 0.9 * x]), variables)
    gradient = jax.grad(partial(loss_of, model), (0, 1))
    both = jax.jit(jax.vmap(gradient, (0, None)))(two, IMAGES)
    second = jax.jit(gradient)(jax.tree.map(lambda x: x[1], two), IMAGES)
    assert_close(jax.tree.map(lambda x: x[1], both), second, 1e-4)


def lowered_for(platform, ops):
    def loss(x):
        return jnp.sum(ops.max_pool(x, 3, 2) ** 2)

    traced = jax.jit(jax.grad(loss)).trace(jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32))
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_the_platform_compiled_for_decides_and_not_the_one_compiled_on():
    slow = "select_and_scatter"
    assert slow in lowered_for("cpu", REFERENCE)
    assert slow not in lowered_for("cpu", FAST)
    assert slow in lowered_for("tpu", FAST)


def test_on_a_tpu_the_gradient_of_lrn_sums_by_a_product():
    x = jax.ShapeDtypeStruct((2, 3, 4, 16), jnp.bfloat16)
    traced = jax.jit(jax.grad(lambda x: jnp.sum(fast.local_response_norm(x, PAPERS_LRN)))).trace(x)
    assert "dot_general" in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "dot_general" not in traced.lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize(("platform", "barriers"), [("cpu", 0), ("tpu", 1), ("cuda", 1)])
def test_only_accelerators_keep_the_output_of_relu_behind_a_barrier(platform, barriers):
    x = jax.ShapeDtypeStruct((2, 3, 4, 16), jnp.float32)
    traced = jax.jit(jax.grad(lambda x: jnp.sum(fast.relu(x)))).trace(x)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("optimization_barrier") == barriers
