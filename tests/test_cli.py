import csv
import io
import json
import re

import pytest

from gnet_jax.cli import main


def test_summary_as_json_holds_the_counts_of_the_paper(capsys):
    assert main(["summary", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["params"] == 6_998_552
    assert found["params_with_aux"] == 13_378_280
    assert found["macs"] == 1_582_671_872
    assert found["macs_with_aux"] == 1_591_044_096
    assert found["layers"][0] == {
        "name": "conv1",
        "kind": "conv",
        "kernel": [7, 7, 3, 64],
        "stride": 2,
        "output": [112, 112, 64],
        "params": 9472,
        "macs": 118_013_952,
    }


def test_summary_as_csv_has_a_line_for_each_layer(capsys):
    assert main(["summary", "--format", "csv", "--variant", "batch_norm"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert sum(int(row["params"]) for row in rows) == 13_385_816
    assert rows[0]["kernel"] == "7x7x3x64"


def test_summary_as_a_table_shows_the_sums_and_the_worked_examples(capsys):
    assert main(["summary", "--num-classes", "10", "--aux-after"]) == 0
    text = capsys.readouterr().out
    for number in ("5,983,802", "1,581,658,112", "112,896,000", "5,268,480", "51,380,224"):
        assert number in text
    assert "auxiliary" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image-size", "20"], "images of 20x20 are too small for this net; .* is 47x47"),
        (["--aux-after", "6a"], "aux_after names '6a'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, message, capsys):
    assert main(["summary", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gnet: error: ")
    assert error.count("\n") == 1
    assert re.search(message, error)
