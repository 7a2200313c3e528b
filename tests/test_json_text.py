"""Numbers that are not finite: null in every JSON file, so that all readers accept it."""

import json
import math

import numpy as np

from gnet_jax.cli.main import main
from gnet_jax.config import json_text
from gnet_jax.lab.sweeps.report import tabulate
from gnet_jax.lab.sweeps.sweep import read_sweep
from gnet_jax.training.workdir import MetricsFile, write_json
from tests.lab.sweeps import finished_sweep

BAD = {"nan": math.nan, "inf": math.inf, "numpy": -np.inf * np.float64(1)}


def strict(text):
    """`text` as a strict reader sees it, such as JavaScript's JSON.parse."""

    def refuse(name):
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_not_finite_are_null_at_any_depth():
    found = strict(json_text({"a": [BAD, (1.5, math.nan)], "text": "NaN", "on": True}))
    nothing = dict.fromkeys(BAD)
    assert found == {"a": [nothing, [1.5, None]], "text": "NaN", "on": True}


def test_a_record_with_such_numbers_is_json(tmp_path):
    write_json(tmp_path / "run.json", {"starts": [BAD]})
    assert strict((tmp_path / "run.json").read_text()) == {"starts": [dict.fromkeys(BAD)]}


def test_a_log_with_such_numbers_is_json_and_they_are_nan_when_read(tmp_path):
    log = MetricsFile(tmp_path / "metrics.jsonl")
    log.append(1, BAD | {"train/loss": 2.0})
    (line,) = log.path.read_text().splitlines()
    assert strict(line) == {"step": 1, **dict.fromkeys(BAD), "train/loss": 2.0}
    (found,) = log.read()
    assert found["train/loss"] == 2.0
    assert all(math.isnan(found[name]) for name in BAD)


def test_a_log_of_an_older_version_is_read_and_becomes_json_on_resume(tmp_path):
    log = MetricsFile(tmp_path / "metrics.jsonl")
    log.path.write_text('{"step": 1, "train/loss": NaN}\n{"step": 2, "train/loss": Infinity}\n')
    assert math.isnan(log.read()[0]["train/loss"])
    assert log.read()[1]["train/loss"] == math.inf
    log.forget_after(1)
    assert strict(log.path.read_text()) == {"step": 1, "train/loss": None}


def test_curves_have_a_gap_where_a_number_is_not_finite(tmp_path):
    log = MetricsFile(tmp_path / "metrics.jsonl")
    for step, loss in enumerate((2.0, math.nan, math.inf, 1.0), 1):
        log.append(step, {"train/main_loss": loss, "train/main_top1": loss / 4})
    out = tmp_path / "curves.png"
    assert main(["curves", str(tmp_path), "--out", str(out)]) == 0
    assert out.stat().st_size


def test_a_report_shows_a_loss_that_was_not_finite_as_nan(tmp_path):
    finished_sweep(tmp_path)
    file = tmp_path / "b/seed-1/result.json"
    result = json.loads(file.read_text())
    result["heads"]["aux4a"]["loss"] = math.inf
    write_json(file, result)
    header, lines = tabulate(read_sweep(tmp_path))
    assert lines[1][header.index("aux4a loss")][0] == "nan \N{PLUS-MINUS SIGN} nan"
