import dataclasses
import math
import statistics

import pytest

from gnet_jax.lab.sweeps.sweep import (
    Row,
    failures,
    mean_and_spread,
    pareto_front,
    read_rows,
    read_sweep,
    results_table,
    runs_csv,
    tabulate,
)
from tests.lab.sweeps import finished_sweep


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return read_rows(read_sweep(finished_sweep(tmp_path_factory.mktemp("sweep"))))


def test_a_row_holds_the_results_of_its_seeds(rows):
    assert [sorted(row.done) for row in rows] == [[0, 1, 2], [0, 1], [0, 2], [0, 1, 2]]
    assert [row.missing for row in rows] == [[], [], [1], []]
    assert [sorted(row.failed) for row in rows] == [[], [2], [], []]
    assert failures(rows) == ["b, seed 2: TrainingError: step 2: the loss is nan"]
    assert rows[3].values("top1") == pytest.approx([0.7, 0.71, 0.75])
    assert rows[3].top1 == pytest.approx(0.72)
    assert rows[1].values("heads", "aux4a", "top1") == pytest.approx([0.5, 0.51])
    assert rows[0].values("heads", "aux4a", "top1") == []


def test_the_spread_is_the_sample_standard_deviation_and_none_of_one_run():
    assert mean_and_spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_and_spread([0.5, 0.7])[1] == pytest.approx(0.2 / math.sqrt(2))
    assert mean_and_spread([4.0]) == (4.0, None)
    assert all(math.isnan(value) for value in mean_and_spread([math.nan, 1.0]))


def test_the_pareto_front_leaves_out_beaten_rows(rows):
    assert [row.name for row in pareto_front(rows, "macs")] == ["a", "b", "d"]
    assert [row.name for row in pareto_front(rows, "params")] == ["b", "d"]
    # A row that costs as much and is less accurate is beaten; a row without a run is skipped.
    same = dataclasses.replace(rows[0], name="e", done={0: rows[0].done[0] | {"top1": 0.1}})
    front = pareto_front([same, Row("f"), *rows], "macs")
    assert [row.name for row in front] == ["a", "b", "d"]


def test_the_pareto_front_compares_means_and_the_given_cost():
    def row(name, top1, macs, params):
        runs = enumerate(top1)
        return Row(name, done={n: {"top1": x, "macs": macs, "params": params} for n, x in runs})

    lucky = row("lucky", (0.9, 0.1, 0.2), 1, 30)  # the best single run, the worst mean
    steady = row("steady", (0.5, 0.5, 0.5), 2, 20)
    best = row("best", (0.6, 0.6, 0.6), 3, 10)
    equal = row("equal", (0.6, 0.6, 0.6), 4, 40)
    rows = [equal, best, steady, lucky]
    assert [row.name for row in pareto_front(rows, "macs")] == ["lucky", "steady", "best"]
    assert [row.name for row in pareto_front(rows, "params")] == ["best"]


def test_the_table_has_means_spreads_costs_and_counts(rows):
    header, lines = tabulate(rows)
    assert header == [
        "config", "top-1", "multiply-adds", "parameters", "with aux heads", "images/s",
        "step memory", "runs", "main loss", "aux4a loss",
    ]  # fmt: skip
    a, b, c, _ = (dict(zip(header, line, strict=True)) for line in lines)
    top1 = [50, 51, 55]
    assert a["top-1"][0] == f"52.00 ± {statistics.stdev(top1):.2f} %" == "52.00 ± 2.65 %"
    assert a["multiply-adds"] == ("10,000", 10_000)
    assert a["parameters"] == ("5,000", 5000)
    assert a["with aux heads"] == ("6,000", 6000)
    assert a["images/s"] == ("110", 110)  # the median of 100, 110 and 150
    assert a["step memory"] == ("17 MiB", 17)
    assert a["runs"] == ("3 of 3", 3)
    assert a["main loss"] == ("2.000 ± 1.000", 2)
    assert a["aux4a loss"] == ("", None)
    assert b["runs"] == ("2 of 3, 1 failed", 2)
    assert b["main loss"][0] == "1.500 ± 0.707"
    assert b["aux4a loss"][0] == "1.750 ± 0.354"
    assert c["runs"] == ("2 of 3", 2)


def test_a_config_without_a_finished_run_has_empty_values(rows):
    header, lines = tabulate([Row("f", missing=[0]), rows[0]])
    assert lines[0][:2] == [("f", None), ("", None)]
    assert [value for value in lines[0][1:] if value != ("", None)] == [("0 of 0", 0)]
    table = results_table(rows, "title")
    assert [str(column.header) for column in table.columns] == tabulate(rows)[0]
    assert table.row_count == 4
    assert len(lines[0]) == len(header) == 9


def test_the_csv_has_unrounded_values_under_their_names(rows):
    lines = runs_csv(rows).splitlines()
    assert lines[0] == (
        "config,seed,top1,macs,params,params_with_aux,memory_bytes,images_per_sec,"
        "main_loss,main_top1,aux4a_loss,aux4a_top1"
    )
    assert lines[2] == "a,1,0.51,10000,5000,6000,17825792,110.0,2.0,0.51,,"
    assert [line.split(",")[:2] for line in lines[4:6]] == [["b", "0"], ["b", "1"]]
    assert len(lines) == 1 + 10
