import dataclasses

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from gnet_jax.lab.palette import COLOURS
from gnet_jax.lab.sweeps import figures
from gnet_jax.lab.sweeps.figures import (
    cost_figure,
    curve_figure,
    draw_curves,
    draw_results,
    draw_run,
    to_svg,
)
from gnet_jax.lab.sweeps.sweep import Row, read_sweep
from gnet_jax.training.workdir import MetricsFile
from tests.lab.sweeps import finished_sweep


@pytest.mark.parametrize(("steps", "marker"), [(1, "o"), (3, "o"), (4, "None")])
def test_points_too_few_for_a_line_are_marked(steps, marker):
    loss, top1 = Figure().subplots(1, 2)
    lines = [{"step": n, "train/main_loss": 1.0, "train/main_top1": 0.5} for n in range(steps)]
    draw_run(lines, loss, top1)
    for panel in (loss, top1):
        assert panel.lines[0].get_marker() == marker
        assert len(panel.lines[0].get_xdata()) == steps


def test_each_panel_has_its_metric_of_every_head_and_validation():
    loss, top1 = Figure().subplots(1, 2)
    heads = {"main": 1.0, "aux4a": 2.0, "aux4d": 3.0}
    line = {"step": 1, "val/loss": 4.0, "val/top1": 0.4}
    for head, value in heads.items():
        line |= {f"train/{head}_loss": value, f"train/{head}_top1": value / 10}
    draw_run([line], loss, top1)
    assert [curve.get_ydata()[0] for curve in loss.lines] == [1, 2, 3, 4]
    assert [curve.get_ydata()[0] for curve in top1.lines] == [0.1, 0.2, 0.3, 0.4]
    labels = [curve.get_label() for curve in loss.lines]
    assert labels == [f"{head} head, training" for head in heads] + ["validation"]
    order = sorted(loss.lines, key=lambda curve: curve.get_zorder())
    assert [curve.get_ydata()[0] for curve in order] == [3, 2, 1, 4]  # from back to front
    assert len({curve.get_color() for curve in loss.lines}) == 4
    main, *aux, val = (curve.get_linewidth() for curve in loss.lines)
    assert main == val < min(aux)  # so that they are visible behind the main head's


def test_a_cost_that_is_equal_in_all_configs_has_no_figure(tmp_path):
    rows = read_sweep(finished_sweep(tmp_path)).rows
    for row in rows:
        for result in row.done.values():
            result["macs"] = 7
    assert list(draw_results(rows)) == ["accuracy_params", "top1", "loss"]


def test_the_same_figure_gives_the_same_bytes():
    def draw():
        figure = Figure()
        figure.subplots().plot([1, 2])
        return to_svg(figure, "title")

    assert draw() == draw()


@pytest.mark.parametrize(("steps", "marker"), [(19, "o"), (20, "None")])
def test_curves_of_many_points_have_no_markers(tmp_path, monkeypatch, steps, marker):
    (row, *_) = read_sweep(finished_sweep(tmp_path)).rows
    points = {step: [0.25, 0.75] for step in range(steps)}
    monkeypatch.setattr(figures, "common_points", lambda row, metric: points)
    (axes,) = curve_figure([row], "val/top1", "top-1").axes
    (line,) = axes.lines
    assert line.get_marker() == marker
    assert list(line.get_ydata()) == [0.5] * steps
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0.25, 0.75)


def test_each_run_has_a_row_of_two_named_panels(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, out, dpi: drawn.append((figure, out, dpi)))
    for number, name in enumerate(("a", "b")):
        log = MetricsFile(tmp_path / name / "metrics.jsonl")
        (tmp_path / name).mkdir()
        for step in (1, 2):
            log.append(step, {"train/main_loss": 2.0 + number, "train/main_top1": 0.25})
    draw_curves([tmp_path / "a", tmp_path / "b"], tmp_path / "out.png")
    ((figure, out, dpi),) = drawn
    assert (out, dpi) == (tmp_path / "out.png", 150)
    assert figure.get_size_inches().tolist() == [10, 7.2]
    panels = figure.axes
    assert [axes.get_title() for axes in panels] == [
        f"{name}: {what}" for name in "ab" for what in ("cross-entropy", "top-1 accuracy")
    ]
    assert [axes.lines[0].get_ydata()[0] for axes in panels] == [2, 0.25, 3, 0.25]
    assert [axes.get_ylim() for axes in panels[1::2]] == [(0, 1)] * 2
    assert [axes.get_ylim()[0] for axes in panels[::2]] == [0, 0]
    assert {axes.get_xlabel() for axes in panels} == {"step"}
    assert [axes.get_legend() is None for axes in panels] == [True, False] * 2
    assert not any(axes.spines["top"].get_visible() for axes in panels)


def test_each_figure_of_a_sweep_draws_what_it_is_named_after(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "to_svg", lambda figure, text: drawn.append(figure.axes[0]) or "")
    workdir = finished_sweep(tmp_path)
    diagnostics = MetricsFile(workdir / "d" / "seed-1" / "diagnostics.jsonl")
    diagnostics.append(1, {"grad_norm/conv1": 2.0})
    rows = [
        dataclasses.replace(row, done={1: row.done[1]})
        for row in read_sweep(workdir).rows
        if 1 in row.done
    ]
    for row, params in zip(rows, (5, 6, 6), strict=True):
        row.done[1]["params"] = params  # two different values suffice for a figure
    names = ["accuracy_macs", "accuracy_params", "top1", "loss", "gradients"]
    assert list(draw_results(rows)) == names
    macs, params, top1, loss, gradients = drawn
    assert [axes.get_xlabel() for axes in drawn[:4]] == [
        "multiply-adds of one image", "parameters", "step", "step",
    ]  # fmt: skip
    assert [axes.get_xscale() for axes in drawn[:4]] == ["log", "log", "linear", "linear"]
    assert params.containers[0].lines[0].get_xdata() == [5]
    assert top1.lines[0].get_ydata() == pytest.approx([0.26, 0.51])
    assert loss.lines[0].get_ydata() == pytest.approx([1.79, 1.29])
    assert gradients.lines[0].get_ydata() == [2]
    assert macs.yaxis.get_major_formatter()(0.254, 0) == top1.yaxis.get_major_formatter()(0.254, 0)
    assert top1.yaxis.get_major_formatter()(0.254, 0) == "25.4 %"
    assert not loss.spines["top"].get_visible()


def test_rows_without_a_finished_run_keep_their_place_and_hide_no_other(tmp_path, monkeypatch):
    rows = [Row("none"), *read_sweep(finished_sweep(tmp_path)).rows[:2]]
    axes = cost_figure(rows, "macs").axes[0]
    colours = [to_hex(bars.lines[0].get_color()) for bars in axes.containers]
    assert colours == list(COLOURS[1:3])
    assert [text.get_text() for text in axes.texts] == ["a", "b"]
    monkeypatch.setattr(figures, "COLOURS", COLOURS[:2])
    axes = curve_figure([*rows, *[rows[1]] * 7], "val/top1", "label").axes[0]
    styles = [line.get_linestyle() for line in axes.lines]
    assert styles == ["-", "--", "--", ":", ":", "-.", "-.", "-", "-"]
    assert [to_hex(line.get_color()) for line in axes.lines[:2]] == list(COLOURS[1:3])


@pytest.mark.parametrize(("seeds", "explained"), [(1, False), (2, True)])
def test_the_band_is_explained_if_there_is_one(tmp_path, seeds, explained):
    row = read_sweep(finished_sweep(tmp_path)).rows[0]
    row = dataclasses.replace(row, done={seed: row.done[seed] for seed in range(seeds)})
    (axes,) = curve_figure([row], "val/top1", "label").axes
    assert ("band" in axes.get_legend().get_title().get_text()) == explained


def test_a_dollar_sign_in_a_figure_is_no_formula():
    def size(text, **options):
        figure = Figure()
        figure.text(0.1, 0.5, text, **options)
        return len(to_svg(figure, "title"))

    assert size("$a$") == size("$a$", parse_math=False)
