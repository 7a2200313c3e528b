"""What is derived from a network is right for parts that this project does not know."""

import dataclasses
import json
import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gnet_jax.config import Preprocessing, UserError
from gnet_jax.inference.cam import ActivationMapper
from gnet_jax.lab.cost.compare import (
    compare_rows,
    compare_tables,
    draw_blocks,
    layers_by,
    part_of,
    total,
)
from gnet_jax.lab.cost.ledger import ledger, ledger_csv, ledger_table, network_ledger
from gnet_jax.lab.look.inside import draw_inside
from gnet_jax.model.googlenet import GoogLeNet, abstract_variables, endpoints
from gnet_jax.model_folder import TrainedModel
from tests.odd_nets import (
    ExtraLayer,
    Gain,
    NestedThrees,
    Shared,
    TwoThrees,
    group_norm,
    with_block,
    with_norm,
)
from tests.tiny import tiny_arch, tiny_variables

PIXELS = Preprocessing(image_size=16, resize_to=16, mean=(99, 99, 99), std=(50, 50, 50))
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
BLOCKS = [TwoThrees, NestedThrees, ExtraLayer]
NEW_PARTS = {TwoThrees: {"b5a", "b5b"}, NestedThrees: {"b5/first", "b5/second"}, ExtraLayer: {"b6"}}


def size_of(model) -> int:
    params = abstract_variables(model, 16)["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def endpoint_names(model) -> set[str]:
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    variables = abstract_variables(model, 16)
    return set(jax.eval_shape(partial(endpoints, model), variables, image))


def folder_of(model) -> TrainedModel:
    names = tuple(f"class {n}" for n in range(10))
    return TrainedModel(model, tiny_variables(model), PIXELS, names, {"format": "test"})


def test_a_group_norm_counts_with_its_convolution():
    model = with_norm(group_norm)
    costs = network_ledger(model, 16)
    assert costs.params_with_aux == size_of(model)
    rows = {layer.name: layer for layer in costs.layers}
    assert rows["conv1"].params == math.prod(rows["conv1"].kernel) + 2 * 4
    assert rows["inception_3a/b5"].params == math.prod(rows["inception_3a/b5"].kernel) + 2 * 2
    batch_norm = network_ledger(GoogLeNet(tiny_arch("batch_norm")), 16)
    assert (costs.params, costs.macs) == (batch_norm.params, batch_norm.macs)


@pytest.mark.parametrize("block", BLOCKS)
def test_layers_that_are_not_known_are_parts_of_their_own(block, tmp_path):
    model = with_block(block)
    costs = network_ledger(model, 16)
    assert costs.params_with_aux == size_of(model)
    parts = layers_by(costs, part_of)
    assert set(parts) - {"5x5"} == NEW_PARTS[block] | {
        "stem", "reductions", "1x1", "3x3", "pool projections", "classifier", "aux heads",
    }  # fmt: skip
    stem = sum(layer.params for layer in costs.layers if layer.name.startswith("conv"))
    assert total(parts["stem"], "params") == stem
    (params, *_) = compare_tables({"odd": costs}, 16)
    header = [str(column.header) for column in params.columns]
    assert set(header) >= NEW_PARTS[block]
    rows = {row["part"]: row["params"] for row in compare_rows({"odd": costs})}
    assert rows.pop("inference") == sum(rows.values()) - rows["aux heads"]
    draw_blocks({"odd": costs}, tmp_path / "blocks.png")


def test_a_layer_that_is_used_twice_costs_its_products_twice():
    model = with_block(Shared)
    costs = network_ledger(model, 16)
    assert costs.params_with_aux == size_of(model)
    rows = [layer for layer in costs.layers if layer.name == "inception_3a/b5"]
    assert [bool(layer.params) for layer in rows] == [True, False]
    assert rows[0].macs == rows[1].macs > 0
    assert {"inception_3a/5x5", "inception_3a/b5 (2)"} <= endpoint_names(model)


def test_a_norm_by_itself_is_a_row_without_products():
    costs = ledger(nn.Sequential([nn.Conv(4, (3, 3)), nn.LayerNorm(), nn.Dense(2)]), (8, 8, 3))
    assert [(each.kind, each.params, each.macs) for each in costs.layers] == [
        ("conv", 27 * 4 + 4, 64 * 27 * 4), ("norm", 8, 0), ("linear", 10, 64 * 8),
    ]  # fmt: skip
    assert "norm" in ledger_csv(costs)
    assert list(ledger_table(costs, "").columns[1].cells)[:3] == ["3x3/1", "norm", "linear"]


class Table(nn.Module):
    def setup(self):
        self.table = self.param("kernel", nn.initializers.ones, (2, 2))

    def look_up(self, x):
        return x @ self.table


class Reader(nn.Module):
    """Its parameter is that of a module which is never called, but by another method."""

    @nn.compact
    def __call__(self, x):
        return Table(name="table").look_up(x)


class Twofold(nn.Dense):
    """A layer that calls its parent's `__call__` from its own."""

    @nn.compact
    def __call__(self, inputs):
        return 2 * super().__call__(inputs)


def test_a_layer_that_extends_another_is_counted_once():
    (layer,) = ledger(Twofold(4), (3,)).layers
    assert (layer.params, layer.macs) == (16, 12)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.Sequential([nn.Conv(2, (1, 1)), Gain()]), "layers_1/gain"),
        (nn.Sequential([nn.ConvTranspose(2, (3, 3))]), "layers_0, a ConvTranspose"),
        (Reader(), "table/kernel"),
    ],
)
def test_a_layer_of_unknown_cost_is_refused_by_name(module, name):
    with pytest.raises(UserError, match=name) as caught:
        ledger(module, (8, 8, 2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("block", "names"),
    [
        (TwoThrees, {"b5a", "b5b", "3x3"}),
        (NestedThrees, {"b5/first", "b5/second", "3x3"}),
        (ExtraLayer, {"5x5", "b6"}),
    ],
)
def test_endpoints_that_caffe_lacks_have_their_own_names(block, names):
    found = endpoint_names(with_block(block))
    assert {f"inception_3a/{name}" for name in names} <= found
    assert ("inception_3a/5x5" in found) == ("5x5" in names)


def test_inspect_draws_a_network_with_other_layers(tmp_path):
    folder = folder_of(with_block(TwoThrees))
    drawn = draw_inside(folder, PHOTO, tmp_path, ["inception_3a/b5b"])
    assert {file.name for file in drawn} == {"filters.png", "heads.png", "inception_3a-b5b.png"}


def test_the_ledger_of_an_odd_network_goes_to_json():
    costs = network_ledger(with_block(NestedThrees), 16)
    read = json.loads(json.dumps(dataclasses.asdict(costs)))
    assert sum(row["params"] for row in read["layers"]) == read["params_with_aux"]


class OtherHead(GoogLeNet):
    """The main head sees the square of the last block's output, through the same parameters."""

    def _average_pool(self, x):
        return super()._average_pool(x * x)


def test_the_maps_of_heads_are_of_the_networks_own_head():
    folder = dataclasses.replace(folder_of(GoogLeNet(tiny_arch())), model=OtherHead(tiny_arch()))
    x = (np.asarray(PHOTO, np.float32)[None] - 99) / 50
    logits = np.asarray(jax.jit(folder.model.apply)(folder.variables, x).logits[0])
    odds = np.exp(logits - logits.max())
    found = ActivationMapper(folder)(PHOTO, 3)["main"]
    assert found.guess["probability"] == pytest.approx(float(odds[3] / odds.sum()), rel=1e-4)
