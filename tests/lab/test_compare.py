import csv
import io
import json

import pytest
from matplotlib.figure import Figure
from PIL import Image

from gnet_jax.cli.main import main
from gnet_jax.lab.cost.compare import (
    BRANCHES,
    PARTS,
    block_of,
    compare_with_print,
    draw_blocks,
    layers_by,
    networks,
    part_of,
    short,
    total,
)
from gnet_jax.lab.cost.ledger import Layer
from gnet_jax.model.architecture import Choices

PAPER = Choices()


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
