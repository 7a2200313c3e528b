import dataclasses
import json
import math
import statistics

import pytest

from gnet_jax.lab.sweeps.report import (
    list_notes,
    list_unfinished,
    results_table,
    runs_csv,
    tabulate,
    to_latex,
)
from gnet_jax.lab.sweeps.sweep import Row, Tuning, mean_and_spread, pareto_front, read_sweep
from tests.lab.sweeps import finished_sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return read_sweep(finished_sweep(tmp_path_factory.mktemp("sweep")))


@pytest.fixture
def rows(sweep):
    return sweep.rows


def test_a_row_holds_the_results_of_its_seeds(rows):
    assert [sorted(row.done) for row in rows] == [[0, 1, 2], [0, 1], [0, 2], [0, 1, 2]]
    assert [row.missing for row in rows] == [[], [], [1], []]
    assert [sorted(row.failed) for row in rows] == [[], [2], [], []]
    assert rows[1].failed == {2: "TrainingError: step 2: the loss is nan"}
    assert [row.versions for row in rows[:2]] == [{"0.1.0 a"}, {"0.1.0 b"}]
    assert rows[3].values("top1") == pytest.approx([0.7, 0.71, 0.75])
    assert rows[3].top1 == pytest.approx(0.72)
    assert rows[1].values("heads", "aux4a", "top1") == pytest.approx([0.5, 0.51])
    assert rows[0].values("heads", "aux4a", "top1") == []


def test_own_code_counts_as_another_version_only_if_seeds_of_a_config_differ_in_it(tmp_path):
    folder = finished_sweep(tmp_path)
    for name, seed, own in (("a", 0, "1" * 64), ("d", 0, "2" * 64), ("d", 1, "2" * 64)):
        record = folder / name / f"seed-{seed}" / "run.json"
        starts = json.loads(record.read_text())["starts"]
        starts[0]["own_code"] = {"own.py:Block": own}
        record.write_text(json.dumps({"starts": starts}))
    record = folder / "d" / "seed-2" / "run.json"
    record.write_text((folder / "d" / "seed-1" / "run.json").read_text())
    rows = {row.name: row for row in read_sweep(folder).rows}
    assert rows["d"].versions == {"0.1.0 a"}
    assert rows["a"].versions == {"0.1.0 a, own code 11111111", "0.1.0 a, own code none"}


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


def with_top1(name, top1, macs=1, params=1):
    runs = enumerate(top1)
    return Row(name, done={n: {"top1": x, "macs": macs, "params": params} for n, x in runs})


def test_the_pareto_front_compares_means_and_the_given_cost():
    poor = with_top1("poor", (0.3, 0.2, 0.3), 1, 30)
    steady = with_top1("steady", (0.5, 0.5, 0.5), 2, 20)
    best = with_top1("best", (0.6, 0.6, 0.6), 3, 10)
    equal = with_top1("equal", (0.6, 0.6, 0.6), 4, 40)
    rows = [equal, best, steady, poor]
    assert [row.name for row in pareto_front(rows, "macs")] == ["poor", "steady", "best"]
    assert pareto_front(rows, "params") == []  # the best is also the cheapest


def test_no_config_is_on_a_front_by_chance():
    cheap = with_top1("cheap", (0.50, 0.58, 0.52), 1)
    lucky = with_top1("lucky", (0.61, 0.53, 0.55), 2)  # a higher mean, within the interval
    better = with_top1("better", (0.70, 0.77, 0.72), 3)
    assert pareto_front([cheap, lucky], "macs") == []
    assert pareto_front([with_top1("a", (0.1,), 1), with_top1("b", (0.9,), 2)], "macs") == []
    front = pareto_front([cheap, lucky, better], "macs")
    assert [row.name for row in front] == ["cheap", "better"]


def test_the_table_has_means_spreads_costs_and_counts(sweep):
    header, lines = tabulate(sweep)
    assert header == [
        *("config", "top-1", "difference", "image error", "top-5", "multiply-adds", "parameters"),
        *("with aux heads", "images/s", "step memory", "runs", "main loss", "aux4a loss"),
    ]
    a, b, c, _ = (dict(zip(header, line, strict=True)) for line in lines)
    top1 = [50, 51, 55]
    assert a["top-1"][0] == f"52.00 ± {statistics.stdev(top1):.2f} %" == "52.00 ± 2.65 %"
    assert a["top-5"][0] == "72.00 ± 2.65 %"
    assert a["image error"] == ("± 5.13", pytest.approx(0.0513, abs=1e-4))  # 360 images
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


def noisy(sweep, **top1):
    """`sweep` with rows of the given top-1 values, by seed; the first is the baseline."""
    result = sweep.rows[0].done[0]
    rows = [
        Row(name, {}, {seed: result | {"top1": x} for seed, x in enumerate(values)})
        for name, values in top1.items()
    ]
    return dataclasses.replace(sweep, rows=rows, baseline=rows[0])


def test_differences_name_the_baseline_and_what_cannot_be_distinguished(sweep):
    base = (0.50, 0.58, 0.52)
    found = noisy(sweep, base=base, same=(0.56, 0.55, 0.53), low=(0.30, 0.37, 0.33), one=(0.9,))
    _, lines = tabulate(found)
    assert [line[2][0] for line in lines] == [
        "baseline",
        "+1.33 ± 11.20, not distinguishable",
        "\N{MINUS SIGN}20.00 ± 2.48, lower",
        "+40.00, one seed",
    ]
    assert [line[2][1] for line in lines[1:]] == pytest.approx([0.0133, -0.2, 0.4], abs=1e-4)


def test_notes_say_what_the_sweep_can_show(sweep):
    notes = list_notes(noisy(sweep, base=(0.5, 0.6, 0.55), chance=(0.09, 0.1, 0.12)))
    assert "Validation images: 360; chance is 10.00%." in notes
    assert "chance is not distinguishable from chance." in notes
    (smallest,) = (note for note in notes if note.startswith("Smallest detectable"))
    assert "80 %" in smallest
    notes = " ".join(list_notes(noisy(sweep, base=(0.5,), other=(0.9,))))
    assert "With one seed, no difference is distinguishable" in notes
    assert "Smallest" not in notes


def test_rows_of_another_version_of_the_code_are_marked(sweep):
    assert [line[0][0] for line in tabulate(sweep)[1]] == ["a", "b †", "c", "d"]
    (note,) = (note for note in list_notes(sweep) if "†" in note)
    assert "a (0.1.0 a): b (0.1.0 b)" in note
    other = dataclasses.replace(sweep, baseline=sweep.rows[1])
    assert [line[0][0] for line in tabulate(other)[1]] == ["a †", "b", "c †", "d †"]


def test_the_tuned_learning_rate_and_the_tried_ones_are_in_the_notes(sweep):
    row = dataclasses.replace(sweep.rows[0], tuning=Tuning({0.1: 0.4, 0.2: 0.5, 0.3: 0.45}, 9000))
    notes = list_notes(dataclasses.replace(sweep, rows=[row], baseline=row))
    tried = "0.1: 40.00%, 0.2: 50.00%, 0.3: 45.00% of 9,000 held-out images"
    assert f"a: learning rate 0.2 ({tried})." in notes


def test_configs_with_another_learning_rate_than_the_baseline_are_named(sweep):
    rows = [
        dataclasses.replace(row, tuning=Tuning({rate: 0.4}, 100))
        for row, rate in zip(sweep.rows[2:], (0.1, 0.2), strict=True)
    ]
    notes = " ".join(list_notes(dataclasses.replace(sweep, rows=rows, baseline=rows[0])))
    assert "d: trained with another learning rate than c" in notes


def test_configs_that_saw_other_images_are_named(sweep):
    base, other = (dataclasses.replace(row, versions=frozenset()) for row in sweep.rows[2:])
    same = {"train": frozenset({"1"}), "val": frozenset({"2"})}
    for split, phrase in (("val", "validated on other"), ("train", "trained on other")):
        changed = same | {split: frozenset({"3"})}
        rows = [dataclasses.replace(base, data=same), dataclasses.replace(other, data=changed)]
        notes = list_notes(dataclasses.replace(sweep, rows=rows, baseline=rows[0]))
        assert any(note.startswith(f"d: {phrase} images") for note in notes)
        assert not any(note.startswith("c: ") for note in notes)
    mixed = dataclasses.replace(rows[0], data=same | {"train": frozenset({"1", "3"})})
    notes = list_notes(dataclasses.replace(sweep, rows=[mixed], baseline=mixed))
    assert any(note.startswith("c: its runs were trained on different images") for note in notes)
    failed = dataclasses.replace(rows[0], done={}, data={"val": frozenset()})
    unfinished = dataclasses.replace(sweep, rows=[failed, rows[1]], baseline=failed)
    assert not any("other images" in note for note in list_notes(unfinished))
    budgets = {"c": sweep.configs["c"], "d": sweep.configs["d"] | {"data.source": "digits#train=9"}}
    found = dataclasses.replace(sweep, rows=rows, baseline=rows[0], configs=budgets)
    assert not any("other images" in note for note in list_notes(found))


def test_a_config_within_the_spread_of_its_seeds_of_chance_is_named(sweep):
    found = noisy(sweep, base=(0.5, 0.6, 0.55), spread=(0.16, 0.08, 0.2))
    assert "spread is not distinguishable from chance." in list_notes(found)


def test_the_latex_table_escapes_names_and_marks_distinguishable_differences(sweep):
    text = to_latex(noisy(sweep, **{"x_1": (0.5, 0.6), "50%": (0.4, 0.5), "c": (0.5, 0.61)}))
    rows = [line for line in text.splitlines() if line.endswith(r"\\")][1:]
    assert rows[0].startswith(r"x\_1 & 55.00 $\pm$ 7.07 & baseline & ")
    assert rows[1].startswith(r"50\% & 45.00 $\pm$ 7.07 & \textbf{$-$10.00 $\pm$ 2.50} & ")
    assert r"\textbf" not in rows[2]
    assert all(row.count("&") == 6 for row in rows)
    assert rows[0].endswith(r"& 10,000 & 5,000 & 2 \\")
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"360; chance is 10.00\%"):
        assert part in text


def test_a_config_without_a_finished_run_has_empty_values(sweep):
    empty = dataclasses.replace(sweep, rows=[Row("f", missing=[0]), sweep.rows[0]])
    header, lines = tabulate(empty)
    assert lines[0][:2] == [("f", None), ("", None)]
    assert [value for value in lines[0][1:] if value != ("", None)] == [("0 of 0", 0)]
    assert list_unfinished(empty.rows) == ["f, seed 0: not finished"]
    assert list_unfinished(sweep.rows) == [
        "Failed: b, seed 2: TrainingError: step 2: the loss is nan",
        "c, seed 1: not finished",
    ]
    assert len(lines[0]) == len(header) == 12


def test_the_terminal_shows_the_main_columns(sweep):
    table = results_table(sweep, "title")
    assert [str(column.header) for column in table.columns] == [
        *("config", "top-1", "difference", "image error", "top-5"),
        *("multiply-adds", "parameters", "images/s", "runs"),
    ]
    assert table.row_count == 4


def test_the_csv_has_unrounded_values_under_their_names(sweep):
    lines = runs_csv(sweep).splitlines()
    assert lines[0] == (
        "config,seed,learning_rate,val_images,top1,macs,params,params_with_aux,memory_bytes,images_per_sec,"
        "main_loss,main_top1,main_top5,aux4a_loss,aux4a_top1,aux4a_top5"
    )
    assert lines[2] == "a,1,0.01,360,0.51,10000,5000,6000,17825792,110.0,2.0,0.51,0.71,,,"
    assert [line.split(",")[:2] for line in lines[4:6]] == [["b", "0"], ["b", "1"]]
    assert len(lines) == 1 + 10
