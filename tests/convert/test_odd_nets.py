"""Files and cards of networks with parts that this project does not know."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnet_jax.config import Preprocessing, UserError
from gnet_jax.convert.export import export
from gnet_jax.convert.torchvision import to_torchvision
from gnet_jax.model.architecture import VARIANTS
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model_folder import TrainedModel, WeightsError, read_folder, write_folder
from gnet_jax.model_folder.folder import expected_shapes
from gnet_jax.ops.fast import FAST
from tests.odd_nets import (
    AveragePools,
    ExtraLayer,
    NestedThrees,
    TwoThrees,
    group_norm,
    with_block,
    with_norm,
)
from tests.tiny import tiny_arch, tiny_variables

PIXELS = Preprocessing(image_size=16, resize_to=16)


def folder_of(model) -> TrainedModel:
    names = tuple(f"class {n}" for n in range(10))
    return TrainedModel(model, tiny_variables(model), PIXELS, names, {"format": "test"})


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: with_norm(group_norm), "group_norm"),
        (lambda: with_block(TwoThrees), "params/inception_3a/b5/conv/kernel"),
        (lambda: with_block(NestedThrees), "params/inception_3a/b5/conv/kernel"),
        (lambda: with_block(ExtraLayer), "params/inception_3a/b6/conv/bias"),
    ],
)
def test_onnx_names_what_it_has_no_place_for(tmp_path, make, name):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    with pytest.raises(UserError, match=name) as caught:
        export(folder_of(make()), tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_onnx_without_the_networks_pools_is_not_kept(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    with pytest.raises(UserError, match=r"net\.onnx"):
        export(folder_of(with_block(AveragePools)), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_stablehlo_holds_any_network(tmp_path):
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    folder = folder_of(with_block(TwoThrees))
    assert export(folder, tmp_path / "net.stablehlo") <= 1e-5


def test_an_export_computes_what_the_networks_own_class_does(tmp_path):
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    from jax import export as jax_export

    class Twice(GoogLeNet):
        def __call__(self, x_BHWC, train=False):
            outputs = super().__call__(x_BHWC, train)
            return outputs._replace(logits=2 * outputs.logits)

    model = Twice(tiny_arch(), dtype=jnp.bfloat16)
    folder = dataclasses.replace(folder_of(GoogLeNet(tiny_arch())), model=model)
    assert export(folder, tmp_path / "net.stablehlo") <= 1e-5
    program = jax_export.deserialize(bytearray((tmp_path / "net.stablehlo").read_bytes()))
    x = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)
    expected = 2 * jax.jit(GoogLeNet(tiny_arch()).apply)(folder.variables, x).logits
    np.testing.assert_allclose(program.call(x), expected, rtol=1e-4, atol=1e-4)


def test_torchvisions_state_dict_names_what_it_has_no_place_for():
    arch = dataclasses.replace(VARIANTS["torchvision"], aux_after=())
    flat = dict.fromkeys(expected_shapes(GoogLeNet(arch), 64), np.zeros(1))
    with pytest.raises(WeightsError, match="params/inception_3a/b6/conv/kernel"):
        to_torchvision(arch, flat | {"params/inception_3a/b6/conv/kernel": np.zeros(1)})
    del flat["params/inception_3a/b5/conv/kernel"]
    with pytest.raises(WeightsError, match="params/inception_3a/b5/conv/kernel"):
        to_torchvision(arch, flat)


def test_the_card_of_a_folder_is_right_for_another_norm(tmp_path):
    write_folder(tmp_path / "model", folder_of(with_norm(group_norm)))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "batch norm" not in card


def test_a_network_that_its_architecture_does_not_describe_is_not_stored(tmp_path):
    class Own(GoogLeNet):
        pass

    folder = folder_of(GoogLeNet(tiny_arch()))
    ops = dataclasses.replace(FAST, relu=jnp.tanh)
    for model in (Own(tiny_arch()), GoogLeNet(tiny_arch(), ops=ops)):
        with pytest.raises(WeightsError, match="custom"):
            write_folder(tmp_path / "model", dataclasses.replace(folder, model=model))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "field", ["preprocessing.channels", "preprocessing.resize", "architecture.norm"]
)
def test_no_default_takes_the_place_of_a_field_that_is_missing(tmp_path, field):
    write_folder(tmp_path / "model", folder_of(GoogLeNet(tiny_arch())))
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    part, _, name = field.partition(".")
    del config[part][name]
    file.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=f"{field} is missing"):
        read_folder(tmp_path / "model")
