import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnet_jax.model.architecture import VARIANTS, smallest_size
from gnet_jax.model.googlenet import (
    GoogLeNet,
    abstract_variables,
    endpoints,
    googlenet,
    init,
    strip_aux,
)
from gnet_jax.ops.fast import FAST
from gnet_jax.ops.reference import REFERENCE
from tests.tiny import tiny_arch, tiny_variables


def shapes(model, size=224):
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.PRNGKey(0), x), images)


@pytest.mark.parametrize("variant", VARIANTS)
def test_kernels_are_what_their_names_say(variant):
    params = shapes(googlenet(variant))["params"]
    five = 3 if variant == "torchvision" else 5
    assert params["conv1"]["conv"]["kernel"].shape == (7, 7, 3, 64)
    assert params["conv2"]["conv"]["kernel"].shape == (3, 3, 64, 192)
    blocks = [name for name in params if name.startswith("inception")]
    assert len(blocks) == 9
    for block in blocks:
        sizes = {name: part["conv"]["kernel"].shape[:2] for name, part in params[block].items()}
        assert sizes.pop("b3") == (3, 3)
        assert sizes.pop("b5") == (five, five)
        assert set(sizes.values()) == {(1, 1)}
        assert len(sizes) == (1 if variant.startswith("naive") else 4)
    assert params["aux_4a"]["fc"]["kernel"].shape == (4 * 4 * 128, 1024)
    batch_norm = variant in ("batch_norm", "torchvision", "naive_batch_norm")
    assert ("norm" in params["conv1"]) == batch_norm
    assert ("bias" in params["conv1"]["conv"]) != batch_norm


@pytest.mark.parametrize(("variant", "cells"), [("paper", 2 * 2), ("torchvision", 4 * 4)])
def test_only_torchvisions_heads_pool_any_map_to_4x4(variant, cells):
    params = shapes(googlenet(variant), 128)["params"]  # the heads see 8x8
    assert params["aux_4a"]["fc"]["kernel"].shape == (cells * 128, 1024)


@pytest.mark.parametrize("variant", ["paper", "torchvision", "naive_batch_norm"])
def test_an_outline_of_the_network_has_the_shapes_of_all_its_variables(variant):
    """A fully connected head depends on every size on the way to it."""
    model = googlenet(variant, 7, head="fc")
    assert {"batch_stats": {}} | shapes(model, 231) == abstract_variables(model, 231)


@pytest.mark.parametrize(("variant", "ops"), [("paper", REFERENCE), ("batch_norm", FAST)])
def test_first_weights_are_those_of_the_whole_network(variant, ops):
    model, key = GoogLeNet(tiny_arch(variant), ops=ops), jax.random.PRNGKey(5)
    whole = {"batch_stats": {}} | jax.jit(model.init)(key, jnp.zeros((1, 32, 32, 3)))
    jax.tree.map(np.testing.assert_array_equal, init(model, key, 32), whole)


@pytest.mark.parametrize(
    ("size", "sizes"), [(224, (112, 56, 28, 14, 7)), (231, (116, 58, 29, 14, 7))]
)
def test_every_output_has_caffes_size(size, sizes):
    model = googlenet(aux_after=())
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    found = jax.eval_shape(lambda v, x: endpoints(model, v, x), shapes(model, size), images)
    assert len(found) == 84  # as many as Caffe has blobs after its input
    names = ("conv1/7x7_s2", "pool1/3x3_s2", "inception_3a/output", "pool3/3x3_s2")
    for name, side in zip((*names, "inception_5b/output"), sizes, strict=True):
        assert found[name].shape[1:3] == (side, side), name
    assert found["pool5/7x7_s1"].shape == (1, 1024)


def test_the_return_type_does_not_depend_on_the_mode():
    model, x = GoogLeNet(tiny_arch()), jnp.zeros((2, 16, 16, 3))
    variables = tiny_variables(model)
    keys = {"dropout": jax.random.PRNGKey(0)}
    training = jax.eval_shape(lambda: model.apply(variables, x, train=True, rngs=keys))
    inference = jax.eval_shape(lambda: model.apply(variables, x))
    assert training.logits.shape == inference.logits.shape == (2, 10)
    assert [a.shape for a in training.aux_logits] == [(2, 10)]
    assert inference.aux_logits == ()


def test_inference_has_no_operation_and_no_parameter_of_an_aux_head():
    model, x = GoogLeNet(tiny_arch(), ops=REFERENCE), jnp.zeros((2, 16, 16, 3))
    variables = tiny_variables(model)

    def lowered(**call):
        keys = {"dropout": jax.random.PRNGKey(0)}
        return jax.jit(lambda v: model.apply(v, x, rngs=keys, **call)).lower(variables)

    training, inference = lowered(train=True), lowered()
    assert "aux_4a" in training.as_text(debug_info=True)
    assert "aux_4a" not in inference.as_text(debug_info=True)
    blocks = 3 + 6 * len(model.arch.widths)
    assert inference.as_text().count("stablehlo.convolution") == blocks
    assert training.as_text().count("stablehlo.convolution") == blocks + 1
    stripped = {"params": strip_aux(variables["params"])}
    assert not any("aux" in name for name in stripped["params"])
    apply = jax.jit(model.apply)
    np.testing.assert_array_equal(apply(stripped, x).logits, apply(variables, x).logits)


@pytest.mark.parametrize("places", [(), ("4b",), ("3b", "4a", "4e")])
def test_aux_heads_stand_where_they_are_put(places):
    params = shapes(googlenet(aux_after=places))["params"]
    assert [name for name in params if name.startswith("aux")] == [f"aux_{p}" for p in places]


def test_bfloat16_keeps_parameters_logits_and_statistics_in_float32():
    model = GoogLeNet(tiny_arch("batch_norm"), dtype=jnp.bfloat16)
    x = jnp.zeros((2, 16, 16, 3))
    keys = {"dropout": jax.random.PRNGKey(0)}
    variables = tiny_variables(model)
    outputs, updated = jax.eval_shape(
        lambda: model.apply(variables, x, train=True, rngs=keys, mutable=["batch_stats"])
    )
    found = jax.eval_shape(lambda: endpoints(model, variables, x))
    assert found["inception_5a/output"].dtype == jnp.bfloat16
    for leaf in jax.tree.leaves((variables, outputs, updated, found["pool5/7x7_s1"])):
        assert leaf.dtype == jnp.float32
    text = jax.jit(lambda v: model.apply(v, x)).lower(variables).as_text()
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert convolutions
    assert all("bf16" in line for line in convolutions)


def test_biases_begin_at_caffes_values():
    params = tiny_variables(GoogLeNet(tiny_arch()))["params"]
    assert set(np.unique(params["inception_4a"]["b5"]["conv"]["bias"])) == {np.float32(0.2)}
    assert set(np.unique(params["aux_4a"]["fc"]["bias"])) == {np.float32(0.2)}
    for classifier in (params["aux_4a"]["classifier"], params["classifier"]):
        assert not classifier["bias"].any()


def test_an_image_too_small_is_refused_with_the_smallest_size():
    model = googlenet(aux_after=())
    smallest = smallest_size(model.arch)
    with pytest.raises(ValueError, match=f"smallest that works is {smallest}x{smallest}, or less"):
        init(model, jax.random.PRNGKey(0), smallest - 1)
    assert shapes(model, smallest)
    key, images = jax.random.PRNGKey(0), jnp.zeros((1, smallest, smallest - 1, 3))
    with pytest.raises(ValueError, match=f"of {smallest}x{smallest - 1} are too small"):
        jax.eval_shape(model.init, key, images)
    with pytest.raises(ValueError, match=f"of {smallest - 1}x{smallest} are too small"):
        jax.eval_shape(model.init, key, images.swapaxes(1, 2))
    with_heads = googlenet(num_classes=10)
    assert smallest < smallest_size(with_heads.arch)
    variables = abstract_variables(with_heads, 64)
    images = jax.ShapeDtypeStruct((1, smallest, smallest, 3), jnp.float32)
    assert jax.eval_shape(with_heads.apply, variables, images).logits.shape == (1, 10)
    with pytest.raises(ValueError, match=r"takes \(batch, height, width, 3\)"):
        jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), jnp.zeros((1, 64, 64, 1))))


def test_endpoints_cost_nothing_unless_asked_for():
    model = GoogLeNet(tiny_arch())
    variables = tiny_variables(model)
    images = np.random.default_rng(1).normal(size=(1, 16, 16, 3)).astype(np.float32)
    outputs = jax.jit(model.apply)(variables, images)
    found = jax.jit(partial(endpoints, model))(variables, images)
    assert isinstance(outputs.logits, jax.Array)
    np.testing.assert_array_equal(found["loss3/classifier"], outputs.logits)
    assert float(found["prob"].sum()) == pytest.approx(1, abs=1e-6)
    assert found["conv1/7x7_s2"].min() == 0


def test_naive_blocks_pass_the_pool_through():
    model = GoogLeNet(tiny_arch("naive"))
    variables = tiny_variables(model)
    found = jax.jit(partial(endpoints, model))(variables, jnp.ones((1, 16, 16, 3)))
    w = model.arch.widths["3a"]
    into = found["pool2/3x3_s2"].shape[-1]
    assert found["inception_3a/output"].shape[-1] == w.b1 + w.b3 + w.b5 + into
    assert found["inception_3a/pool"].shape[-1] == into


def test_the_dtype_and_the_operations_are_chosen_by_keyword():
    assert googlenet() == GoogLeNet(VARIANTS["paper"], dtype=jnp.float32, ops=FAST)
    other = googlenet("batch_norm", 7, dtype=jnp.bfloat16, ops="reference")
    arch = dataclasses.replace(VARIANTS["batch_norm"], num_classes=7)
    assert other == GoogLeNet(arch, dtype=jnp.bfloat16, ops=REFERENCE)
