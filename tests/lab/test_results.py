import dataclasses

import pytest

from gnet_jax.lab.sweeps.results import (
    failures,
    header,
    markdown_table,
    mean_and_spread,
    pareto_front,
    rows_of,
)
from gnet_jax.lab.sweeps.sweep import read_sweep
from tests.lab.sweeps import finished_sweep


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return rows_of(read_sweep(finished_sweep(tmp_path_factory.mktemp("sweep"))))


def test_a_row_has_what_its_seeds_came_to(rows):
    assert [len(row.done) for row in rows] == [3, 2, 2, 3]
    assert rows[2].missing == (1,)
    assert failures(rows) == ["b, seed 2: TrainingError: step 2: the loss is nan"]
    assert rows[3].top1 == pytest.approx([0.7, 0.71, 0.72])
    assert [each["top1"] for each in rows[1].heads["aux4a"]] == pytest.approx([0.5, 0.51])


def test_the_spread_is_the_sample_standard_deviation_and_none_of_one_run():
    assert mean_and_spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_and_spread([4.0]) == (4.0, None)


def test_the_pareto_front_leaves_out_what_is_beaten(rows):
    assert [row.name for row in pareto_front(rows, "macs")] == ["a", "b", "d"]
    # as dear and less accurate is beaten too, and so is nothing that has no run
    same = dataclasses.replace(rows[0], name="e", done={0: rows[0].done[0] | {"top1": 0.1}})
    unfinished = dataclasses.replace(rows[0], name="f", done={})
    front = pareto_front([same, unfinished, *rows], "params")
    assert [row.name for row in front] == ["a", "b", "d"]


def test_the_table_names_costs_spreads_and_runs(rows):
    lines = markdown_table(rows).splitlines()
    assert [line.count("|") for line in lines] == [len(header(rows)) + 1] * 6
    assert lines[2].startswith("| a | 51.00 ± 1.00 % | 10,000 | 1,000 | 2,000 | 101 | 16 MiB |")
    assert lines[3].endswith("| 2 of 3, 1 failed | 1.500 ± 0.707 | 1.500 ± 0.000 |")
    assert lines[2].endswith("| 3 of 3 | 2.000 ± 1.000 |  |")
