import dataclasses
import io
import json

import flax.linen as nn
import pytest
from rich.console import Console

from gnet_jax.lab.cost.ledger import (
    csv_text,
    ledger,
    ledger_csv,
    ledger_table,
    network_ledger,
    number_table,
    worked_examples,
)
from gnet_jax.model.googlenet import googlenet

# (params, params with aux, multiply-adds, multiply-adds with aux); None where nobody states it
PAPER_MACS = (1_582_671_872, 1_591_044_096)
VARIANT_COUNTS = {
    "paper": (6_998_552, 13_378_280, *PAPER_MACS),
    "batch_norm": (7_005_832, 13_385_816, *PAPER_MACS),
    "torchvision": (6_624_904, 13_004_888, 1_498_376_192, 1_506_748_416),
    "google_release": (7_066_380, 13_461_996, 1_584_881_536, 1_593_261_952),
    "naive": (97_526_008, None, 12_568_061_056, None),
}
REDUCTION_COUNTS = {
    0.25: (3_697_160, 914_252_288),
    1.5: (9_199_480, 2_028_284_928),
    4: (20_204_120, 4_256_350_208),
}


@pytest.mark.parametrize("variant", VARIANT_COUNTS)
def test_every_variant_has_its_published_counts(variant):
    costs = network_ledger(googlenet(variant), 224)
    found = (costs.params, costs.params_with_aux, costs.macs, costs.macs_with_aux)
    for value, expected in zip(found, VARIANT_COUNTS[variant], strict=True):
        assert expected in (None, value)


@pytest.mark.parametrize("factor", REDUCTION_COUNTS)
def test_scaled_reductions_have_their_counts(factor):
    costs = network_ledger(googlenet(reduction_factor=factor), 224)
    assert (costs.params, costs.macs) == REDUCTION_COUNTS[factor]


def test_ten_classes_have_their_counts():
    costs = network_ledger(googlenet(num_classes=10), 224)
    assert (costs.params, costs.params_with_aux) == (5_983_802, 10_334_030)
    assert (costs.macs, costs.macs_with_aux) == (1_581_658_112, 1_588_002_816)


def test_the_worked_examples_of_the_paper_come_out():
    assert [cost for _, cost in worked_examples()] == [112_896_000, 5_268_480, 51_380_224, 0]


def test_a_fully_connected_head_costs_what_average_pooling_saved():
    extra = network_ledger(googlenet(head="fc"), 224).params - 6_998_552
    assert extra == 51_380_224 + 1024


def test_the_ledger_has_a_row_for_every_layer_and_goes_to_json():
    costs = network_ledger(googlenet(), 224)
    rows = {layer.name: layer for layer in costs.layers}
    assert len(rows) == 58 + 6  # 57 convolutions, the classifier, two heads of three layers
    assert rows["conv1"].kernel == (7, 7, 3, 64)
    assert rows["conv1"].stride == 2
    assert rows["inception_3a/b5"].output == (28, 28, 32)
    assert rows["aux_4a/fc"].params == 2048 * 1024 + 1024
    read = json.loads(json.dumps(dataclasses.asdict(costs)))
    assert sum(row["macs"] for row in read["layers"]) == read["macs_with_aux"]


def test_the_table_has_the_facts_of_each_layer_in_their_columns():
    table = ledger_table(network_ledger(googlenet(num_classes=10), 224), "title")
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert list(columns) == ["layer", "kernel", "output", "parameters", "multiply-adds"]
    rows = {cells[0]: cells[1:] for cells in zip(*columns.values(), strict=True)}
    assert rows["conv1"] == ("7x7/2", "112x112x64", "9,472", "118,013,952")
    assert rows["aux_4a/conv *"] == ("1x1/1", "4x4x128", "65,664", "1,048,576")
    assert rows["aux_4a/fc *"] == ("linear", "1024", "2,098,176", "2,097,152")
    assert rows["inference"] == ("", "", "5,983,802", "1,581,658,112")
    totals = rows["training (with * auxiliary heads)"]
    assert totals == ("", "", "10,334,030", "1,588,002,816")


def test_a_narrow_terminal_folds_numbers_and_keeps_names_whole():
    table = number_table("title", "layer", "parameters")
    table.add_row("inception_3a/reduce3", "123,456,789")
    console = Console(file=io.StringIO(), width=32)
    console.print(table)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "inception_3a/reduce3" in text
    numbers = "".join(line.split("│")[2].strip() for line in text.splitlines() if "│" in line)
    assert numbers == "123,456,789"


def test_the_csv_has_a_line_for_each_layer_with_its_facts_in_their_columns():
    layers = [nn.Conv(4, (3, 3), strides=(1, 2)), nn.LayerNorm(), nn.Dense(2)]
    assert ledger_csv(ledger(nn.Sequential(layers), (8, 8, 3))) == (
        "name,kind,kernel,stride,output,params,macs\n"
        "layers_0,conv,3x3x3x4,2,8x4x4,112,3456\n"
        "layers_1,norm,,1,8x4x4,8,0\n"
        "layers_2,linear,4x2,1,8x4x2,10,256\n"
    )
    assert csv_text([{"a": 1}], ("b", "a")) == "b,a\n,1\n"


def test_totals_stand_apart_and_without_auxiliary_heads_there_is_only_one():
    table = ledger_table(ledger(nn.Sequential([nn.Dense(2), nn.Dense(3)]), (4,)), "a title")
    assert list(table.columns[0].cells) == ["layers_0", "layers_1", "inference"]
    assert [row.end_section for row in table.rows] == [False, True, False]
    assert table.title == "a title"
    assert [column.justify for column in table.columns] == ["left", *["right"] * 4]
