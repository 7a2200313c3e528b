"""How the network is put together, by literal values; nothing is compiled."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnet_jax.model.architecture import architecture
from gnet_jax.model.blocks import InceptionBlock, NaiveInceptionBlock
from gnet_jax.model.googlenet import GoogLeNet, every_head, googlenet, init
from gnet_jax.model.layers import ConvBlock, apply_each, caffe_xavier, he_normal
from gnet_jax.model.widths import Widths
from gnet_jax.ops.reference import REFERENCE, average_pool, max_pool


def called(model: GoogLeNet, size: int = 224, train: bool = True) -> list[nn.Module]:
    """Returns the modules in the order of their calls."""
    modules = []

    def record(call_next, args, kwargs, context):
        if context.method_name == "__call__":
            modules.append(context.module)
        return call_next(*args, **kwargs)

    def forward(x):
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        return model.init(keys, x, train=train)

    with nn.intercept_methods(record):
        jax.eval_shape(forward, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    return modules


def test_every_head_has_its_own_dropout_rate():
    arch = architecture(dropout=0.11, aux_dropout=0.22)
    found = {"/".join(m.path): m for m in called(GoogLeNet(arch)) if isinstance(m, nn.Dropout)}
    assert {path: m.rate for path, m in found.items()} == {
        "aux_4a/Dropout_0": 0.22,
        "aux_4d/Dropout_0": 0.22,
        "Dropout_0": 0.11,
    }
    assert not any(m.deterministic for m in found.values())
    still = [m for m in called(GoogLeNet(arch), train=False) if isinstance(m, nn.Dropout)]
    assert all(m.deterministic for m in still)


def test_a_head_reads_the_block_that_it_is_named_after():
    order = [m.name for m in called(googlenet(aux_after=("3b", "4d"))) if len(m.path) == 1]
    assert [name for name in order if name.startswith(("inception", "aux"))] == [
        "inception_3a", "inception_3b", "aux_3b", "inception_4a", "inception_4b", "inception_4c",
        "inception_4d", "aux_4d", "inception_4e", "inception_5a", "inception_5b",
    ]  # fmt: skip


@pytest.mark.parametrize("train", [False, True])
def test_batch_norm_keeps_nine_tenths_and_follows_the_mode(train):
    model = googlenet("batch_norm").clone(axis_name="batch")
    norms = [m for m in called(model, train=train) if m.name == "norm"]
    assert len(norms) == 57 + 2
    for norm in norms:
        assert (norm.momentum, norm.epsilon, norm.axis_name) == (0.9, 1e-3, "batch")
        assert norm.use_running_average is not train


def test_the_stem_and_the_pools_come_in_the_papers_order():
    steps = []

    def note(name, function):
        def noted(x, *args, **options):
            steps.append((name, x.shape[1], *args, *options.values()))
            return function(x, *args, **options)

        return noted

    ops = dataclasses.replace(
        REFERENCE,
        max_pool=note("max", max_pool),
        local_response_norm=note("lrn", lambda x, lrn: x),
        relu=note("relu", nn.relu),
    )
    model = GoogLeNet(architecture(aux_after=()), ops=ops)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    assert steps[:8] == [
        ("relu", 112),  # recorded, but not used
        ("max", 112, 3, 2), ("relu", 56), ("lrn", 56, model.arch.lrn), ("relu", 56), ("relu", 56),
        ("lrn", 56, model.arch.lrn), ("max", 56, 3, 2),
    ]  # fmt: skip
    pools = [step for step in steps[8:] if step[0] == "max"]
    inner = {side: ("max", side, 3, 1, 1) for side in (28, 14, 7)}
    assert pools == [
        *[inner[28]] * 2, ("max", 28, 3, 2), *[inner[14]] * 5, ("max", 14, 3, 2), *[inner[7]] * 2,
    ]  # fmt: skip


WIDTHS = Widths(b1=1, reduce3=2, b3=3, reduce5=4, b5=5, pool_proj=6)
CODES = {"b1": 10, "reduce3": 20, "b3": 30, "reduce5": 40, "b5": 50, "pool_proj": 60}


@pytest.mark.parametrize("kernel", [5, 3])
def test_branches_are_concatenated_in_the_papers_order(kernel):
    inputs = {}

    def conv(features, size, name):
        def layer(x):
            inputs[name] = (size, float(x[0, 0, 0, 0]))
            return jnp.full((*x.shape[:3], features), CODES[name])

        return layer

    x = jnp.asarray(np.arange(9.0).reshape(1, 3, 3, 1))
    y, _ = InceptionBlock(WIDTHS, conv, kernel).init_with_output(jax.random.key(0), x)
    assert y[0, 0, 0].tolist() == [10] + [30] * 3 + [50] * 5 + [60] * 6
    assert inputs == {
        "b1": (1, 0), "reduce3": (1, 0), "reduce5": (1, 0), "b3": (3, 20), "b5": (kernel, 40),
        "pool_proj": (1, 4),  # the largest of the 2x2 pixels under the window of the corner
    }  # fmt: skip
    y, _ = NaiveInceptionBlock(WIDTHS, conv, kernel).init_with_output(jax.random.key(0), x)
    assert y[0, 0, 0].tolist() == [10] + [30] * 3 + [50] * 5 + [4]


@pytest.mark.parametrize(
    ("draw", "shape", "variance"),
    [
        (caffe_xavier, (3, 3, 10, 900), 1 / 90),
        (caffe_xavier, (30, 4000), 1 / 30),
        (he_normal, (3, 3, 10, 900), 2 / 90),
    ],
)
def test_the_spread_of_initial_weights_is_by_the_inputs(draw, shape, variance):
    assert np.var(draw(jax.random.key(0), shape)) == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize(("norm", "variance"), [(None, 1 / 90), (nn.BatchNorm, 2 / 90)])
def test_convolutions_begin_as_their_norm_wants(norm, variance):
    norm = None if norm is None else partial(norm, use_running_average=True)
    variables = ConvBlock(900, 3, norm=norm).init(jax.random.key(0), jnp.zeros((1, 1, 1, 10)))
    kernel = variables["params"]["conv"]["kernel"]
    assert np.var(kernel) == pytest.approx(variance, rel=0.05)
    assert ("bias" in variables["params"]["conv"]) == (norm is None)


def test_hidden_layers_end_with_a_relu():
    """With a hidden layer that is -1 before the ReLU, the logits are the classifier's biases."""
    arch = architecture(
        "paper", 4, blocks=("3a",), aux_after=("3a",), stem="small", head="fc", width_multiplier=0.1
    )
    model = GoogLeNet(arch)
    variables = init(model, jax.random.key(0), 8)
    for head in (variables["params"], variables["params"]["aux_3a"]):
        head["fc"] = {name: 0 * x - (name == "bias") for name, x in head["fc"].items()}
        head["classifier"]["bias"] = jnp.arange(4.0)
    outputs = every_head(model, variables, np.ones((1, 8, 8, 3), np.float32))
    for logits in (outputs.logits, *outputs.aux_logits):
        assert logits.tolist() == [[0, 1, 2, 3]]
    assert len(outputs.aux_logits) == 1


def test_layers_of_one_input_need_not_be_1x1():
    class Several(nn.Module):
        @nn.compact
        def __call__(self, x):
            layers = [ConvBlock(2, kernel, name=f"conv{kernel}") for kernel in (3, 1)]
            return apply_each(layers, x)

    x = jnp.ones((1, 3, 3, 1))
    variables = jax.tree.map(jnp.ones_like, Several().init(jax.random.key(0), x))
    three, one = Several().apply(variables, x)
    assert three[0, :2, :2, 0].tolist() == [[5, 7], [7, 10]]  # pixels in the window, and the bias
    assert one[0, 1, 1, 0] == 2


def test_the_last_window_of_a_pool_may_hang_over_the_border():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    assert max_pool(x, 3, 2)[0, :, :, 0].tolist() == [[10, 11], [14, 15]]  # 1x1 if rounded down
    assert average_pool(x, 3, 2)[0, :, :, 0].tolist() == [[5, 6.5], [11, 12.5]]
