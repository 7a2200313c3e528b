import csv
import io
import json

import pytest
from matplotlib.figure import Figure
from PIL import Image

from gnet_jax.cli.main import main
from gnet_jax.lab.cost import compare
from gnet_jax.lab.cost.compare import (
    BRANCHES,
    PARTS,
    block_of,
    compare_rows,
    compare_tables,
    compare_with_print,
    draw_blocks,
    layers_by,
    networks,
    part_of,
    print_table,
    short,
    total,
)
from gnet_jax.lab.cost.ledger import Layer, Ledger
from gnet_jax.model.architecture import Choices

PAPER = Choices()


def costs_of(**layers):
    """The costs of a network of layers, given as (parameters, multiply-adds, output units)."""
    found = [
        Layer(name.replace("__", "/"), "conv", (), 1, (units,), params, macs)
        for name, (params, macs, units) in layers.items()
    ]
    return Ledger(0, 0, 0, 0, tuple(found))  # the comparison adds the layers up by itself


SMALL = {
    "one": costs_of(fc=(7, 5000, 2), conv1=(1500, 20, 3), aux_4a__fc=(400, 90, 5)),
    "two": costs_of(inception_3a__own=(6, 8, 10), inception_3a__b1=(30, 10**6, 4)),
}


@pytest.fixture(scope="module")
def ledgers():
    words = ("paper", "naive", "reductions=0.25,2", "head=fc", "aux=none")
    return networks(words, 224, PAPER)


def test_the_parts_add_up_to_the_whole(ledgers):
    assert list(ledgers) == [
        "paper", "naive", "reductions=0.25", "reductions=2", "head=fc", "aux=none",
    ]  # fmt: skip
    for ledger in ledgers.values():
        parts = layers_by(ledger, part_of)
        assert set(parts) <= set(PARTS)
        parts.pop("aux heads", None)
        sums = (sum(total(parts[name], what) for name in parts) for what in ("params", "macs"))
        assert tuple(sums) == (ledger.params, ledger.macs)


def test_each_part_costs_what_its_layers_do(ledgers):
    paper, naive = (layers_by(ledgers[name], part_of) for name in ("paper", "naive"))
    assert total(paper["stem"], "macs") == 118_013_952 + 359_661_568
    assert total(paper["classifier"], "params") == 1_025_000
    assert "reductions" not in naive
    assert "pool projections" not in naive
    assert "aux heads" not in layers_by(ledgers["aux=none"], part_of)
    fc = layers_by(ledgers["head=fc"], part_of)["classifier"]
    assert total(fc, "params") == 1_025_000 + 51_380_224 + 1024
    assert total(paper["classifier"], "activation_bytes") == 4 * 1000
    quarter = layers_by(ledgers["reductions=0.25"], part_of)
    small, large = (total(p["reductions"], "activation_bytes") for p in (quarter, paper))
    assert small * 4 == large


def test_a_layer_of_ones_own_is_a_part_of_its_own():
    names = ("inception_3a/b1", "inception_3a/own", "own/b1", "inception_3a", "conv1", "fc")
    layers = [Layer(name, "conv", (1, 1, 1, 1), 1, (1, 1, 1), 1, 1) for name in names]
    found = [part_of(layer) for layer in layers]
    assert found == [BRANCHES["b1"], "own", "own/b1", "inception_3a", "stem", "classifier"]
    blocks = [block_of(layer) for layer in layers]
    assert blocks == ["3a", "3a", "own/b1", "inception_3a", "stem", "classifier"]


def test_words_joined_hold_together():
    found = networks(["batch_norm+reductions=0.5,2", "width=0.5+aux=4a"], 64, PAPER)
    assert list(found) == [
        "batch_norm+reductions=0.5",
        "batch_norm+reductions=2",
        "width=0.5+aux=4a",
    ]
    assert [layer.name for layer in found["width=0.5+aux=4a"].layers if layer.is_aux] == [
        "aux_4a/conv", "aux_4a/fc", "aux_4a/classifier",
    ]  # fmt: skip


def test_table_1_differs_from_the_print_where_it_is_known_to():
    rows = {row.layer: row for row in compare_with_print()}
    params = [name for name, row in rows.items() if not row.params_agree]
    assert params == ["conv1", "4a", "4b", "4c", "4d", "4e", "5a", "5b"]
    assert [name for name, row in rows.items() if not row.ops_agree] == ["conv1", "5a"]
    assert all(bool(row.reason) == (name in params) for name, row in rows.items())
    assert "204 channels" in rows["4a"].reason


@pytest.mark.parametrize(
    ("value", "text"),
    [(999, "999"), (1000, "1 k"), (9_472, "9.472 k"), (10**6, "1 M"), (10**9, "1 G"), (0, "0")],
)
def test_costs_are_shortened_to_four_digits(value, text):
    assert short(value) == text


def test_blocks_are_drawn_from_the_stem_to_the_heads(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    draw_blocks(networks(("paper",), 224, PAPER), tmp_path / "blocks.png")
    macs, params = drawn[0].axes
    labels = [label.get_text() for label in params.get_xticklabels()]
    assert labels == ["stem", "3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b", "head", "aux"]
    assert macs.patches[-2].get_height() == pytest.approx(1.024)
    assert params.patches[-2].get_height() == pytest.approx(1.025)
    middles = [bar.get_x() + bar.get_width() / 2 for bar in macs.patches]
    assert middles == pytest.approx(range(12))


def test_the_comparison_is_printed_in_three_formats_and_drawn(tmp_path, capsys):
    out = tmp_path / "blocks.png"
    options = ["--compare", "paper", "naive", "--picture", str(out)]
    assert main(["summary", *options]) == 0
    text = capsys.readouterr().out
    for figure in ("1.583 G", "12.57 G", "97.53 M", "5.539 G", "1072K", "1018.0K *"):
        assert figure in text
    with Image.open(out) as picture:
        assert picture.size == (1350, 960)
    assert main(["summary", *options[:3], "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    whole = [int(row["macs"]) for row in rows if row["part"] == "inference"]
    assert whole == [1_582_671_872, 12_568_061_056]
    assert main(["summary", *options[:2], "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["networks"][0]["part"] == "stem"
    assert found["table_1"][0]["printed_ops"] == 34


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("vgg", "'vgg'"),
        ("depth=2", "'depth=2'"),
        ("reductions=wide", "'wide'"),
        ("reductions=-1", "reduction_factor is -1.0"),
        ("aux=5a", "aux is '5a'"),
        ("head=max", "head is 'max'"),
        ("paper+naive", "--compare paper+naive: variant"),
        ("naive+width=1+width=2", "width_multiplier"),
    ],
)
def test_a_word_that_names_no_network_is_told_why(word, message, capsys):
    assert main(["summary", "--compare", "paper", word]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert main(["summary", "--picture", "x.png"]) == 2


def test_the_tables_have_each_parts_cost_in_its_column():
    params, macs, memory = compare_tables(SMALL, 32)
    assert [str(column.header) for column in params.columns] == [
        "network", "total", "stem", "reduce", "1x1", "3x3", "5x5", "proj", "head", "aux", "own",
    ]  # fmt: skip
    cells = [list(zip(*(c.cells for c in table.columns), strict=True)) for table in (params, macs)]
    assert cells[0] == [
        ("one", "1.507 k", "1.5 k", "0", "0", "0", "0", "0", "7", "400", "0"),
        ("two", "36", "0", "0", "30", "0", "0", "0", "0", "0", "6"),
    ]
    assert cells[1] == [
        ("one", "5.02 k", "20", "0", "0", "0", "0", "0", "5 k", "90", "0"),
        ("two", "1 M", "0", "0", "1 M", "0", "0", "0", "0", "0", "8"),
    ]
    assert list(memory.columns[1].cells) == ["20", "56"]
    titles = [str(table.title) for table in (params, macs, memory)]
    assert ["32x32" in title for title in titles] == [False, True, True]
    assert [title.split()[0] for title in titles] == ["parameters", "multiply-adds", "activation"]


def test_the_rows_have_exact_costs_in_the_order_of_the_parts():
    rows = [tuple(row.values()) for row in compare_rows(SMALL)]
    assert rows == [
        ("one", "stem", 1500, 20, 12), ("one", "classifier", 7, 5000, 8),
        ("one", "aux heads", 400, 90, 20), ("one", "inference", 1507, 5020, 20),
        ("two", "1x1", 30, 10**6, 16), ("two", "own", 6, 8, 40),
        ("two", "inference", 36, 1_000_008, 56),
    ]  # fmt: skip
    assert list(compare_rows(SMALL)[0]) == ["network", "part", "params", "macs", "activation_bytes"]


def test_networks_have_the_given_size_and_the_base_they_change():
    (costs,) = networks(["aux=none"], 64, Choices(head="fc")).values()
    rows = {layer.name: layer for layer in costs.layers}
    assert rows["conv1"].output == (32, 32, 64)
    assert "fc" in rows


def test_bars_stand_side_by_side_with_the_millions_of_each_block(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(compare, "save", lambda figure, *_, **__: drawn.append(figure))
    million = 10**6
    costs = costs_of(conv1=(2 * million, 3 * million, 1), inception_3a__b1=(million, million, 1))
    draw_blocks({"a": costs, "b": SMALL["one"], "c": SMALL["two"]}, tmp_path / "b.png")
    above, below = drawn[0].axes
    assert [bars.get_label() for bars in above.containers] == ["a", "b", "c"]
    left, middle, right = ([bar.get_x() for bar in bars] for bars in above.containers)
    width = above.patches[0].get_width()
    assert [place + width / 2 for place in middle] == pytest.approx(range(4))
    assert [b - a for a, b in zip(left + middle, middle + right, strict=True)] == pytest.approx(
        [width] * 8
    )
    assert 0.2 < width < 1 / 3  # so that blocks are apart
    blocks = [label.get_text() for label in below.get_xticklabels()]
    heights = [
        dict(zip(blocks, (bar.get_height() for bar in axes.containers[0]), strict=True))
        for axes in (above, below)
    ]
    assert heights == [
        {"stem": 3, "3a": 1, "head": 0, "aux": 0}, {"stem": 2, "3a": 1, "head": 0, "aux": 0},
    ]  # fmt: skip
    assert [axes.get_ylabel().split(",")[0] for axes in (above, below)] == [
        "multiply-adds", "parameters",
    ]  # fmt: skip
    assert not above.spines["top"].get_visible()


def test_networks_of_the_same_colour_differ_in_their_hatching(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(compare, "save", lambda figure, *_, **__: drawn.append(figure))
    monkeypatch.setattr(compare, "COLOURS", ("blue", "red"))
    draw_blocks({str(n): SMALL["two"] for n in range(9)}, tmp_path / "b.png")
    hatches = [bars[0].get_hatch() or "" for bars in drawn[0].axes[0].containers]
    assert hatches == ["", "", "////", "////", "....", "....", "xxxx", "xxxx", ""]


def test_table_1_has_the_printed_numbers_beside_the_counted():
    rows = {row.layer: row for row in compare_with_print()}
    assert sum(row.printed_params for row in rows.values()) == pytest.approx(6797.7)
    assert sum(row.printed_ops for row in rows.values()) == 1502
    assert rows["conv1"][1:7] == (2.7, 7 * 7 * 3 * 64 / 1024, 34, 118.013952, False, False)
    assert rows["conv2"][1:] == (112, 112.0, 360, 359.661568, True, True, "")
    assert rows["linear"][1:] == (1000, 1000.0, 1, 1.024, True, True, "")
    assert rows["4c"][1:7] == (463, 497.5, 100, 99.85024, False, True)
    table = print_table([rows["conv1"], rows["linear"]])
    assert [str(column.header) for column in table.columns][:5] == [
        "layer", "params printed", "counted", "ops printed", "counted",
    ]  # fmt: skip
    assert list(zip(*(column.cells for column in table.columns), strict=True)) == [
        ("conv1", "2.7K", "9.2K *", "34M", "118.0M *", rows["conv1"].reason),
        ("linear", "1000K", "1000.0K", "1M", "1.0M", ""),
    ]
