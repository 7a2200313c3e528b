import dataclasses
import itertools
import re

import matplotlib
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from gnet_jax.lab.palette import COLOURS, PAPER, label_log_axis
from gnet_jax.lab.sweeps import figures
from gnet_jax.lab.sweeps.figures import (
    cost_figure,
    curve_figure,
    draw_curves,
    draw_results,
    draw_run,
    to_pdf,
    to_svg,
)
from gnet_jax.lab.sweeps.sweep import Row, read_sweep
from gnet_jax.training.workdir import MetricsFile
from tests.lab.sweeps import finished_sweep


def rows_of(workdir):
    """The rows of a finished sweep, without the level of chance, which has its own test."""
    rows = read_sweep(finished_sweep(workdir)).rows
    for row in rows:
        for result in row.done.values():
            result.pop("chance", None)
    return rows


def row_of(name, top1, **result):
    """A config whose seeds have the accuracies `top1`."""
    results = {seed: {"top1": value, **result} for seed, value in enumerate(top1)}
    return Row(name, done=results)


def log_run(workdir, steps, loss, heads=("main",)):
    """The log of a run with the same training loss in all steps, evaluated once at the end."""
    workdir.mkdir(parents=True)
    log = MetricsFile(workdir / "metrics.jsonl")
    for step in steps:
        line = {}
        for head in heads:
            line |= {f"train/{head}_loss": loss, f"train/{head}_top1": 0.25}
        log.append(step, line)
    log.append(steps[-1], {"val/loss": loss + 1, "val/top1": 0.5})


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
    rows = rows_of(tmp_path)
    for row in rows:
        for result in row.done.values():
            result["macs"] = 7
    assert list(draw_results(rows)) == ["accuracy_params", "top1", "loss"]


@pytest.mark.parametrize("write", [to_svg, to_pdf])
def test_the_same_figure_gives_the_same_bytes_with_text_as_text(write):
    def draw():
        figure = Figure()
        figure.subplots().plot([1, 2])
        figure.suptitle("x0.5")
        return write(figure, "title")

    first = draw()
    assert first == draw()
    if write is to_svg:
        assert re.search(r"<text[^>]*sans-serif[^>]*>x0.5</text>", first)
    else:
        assert b"/CIDFontType2" in first  # a TrueType font, not the outlines of Type 3
        assert b"/Type3" not in first


@pytest.mark.parametrize(("steps", "marker"), [(19, "o"), (20, "None")])
def test_curves_of_many_points_have_no_markers(tmp_path, monkeypatch, steps, marker):
    (row, *_) = rows_of(tmp_path)
    points = {step: [0.25, 0.75] for step in range(steps)}
    monkeypatch.setattr(figures, "common_points", lambda row, metric: points)
    (axes,) = curve_figure([row], "val/top1", "top-1").axes
    (line,) = axes.lines
    assert line.get_marker() == marker
    assert list(line.get_ydata()) == [0.5] * steps
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    spread = 0.5**0.5 / 2  # the sample standard deviation of two values 0.5 apart
    assert (band.min(), band.max()) == pytest.approx((0.5 - spread, 0.5 + spread))


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, with the other arguments of `save`."""
    found = []
    monkeypatch.setattr(figures, "save", lambda figure, out, dpi: found.append((figure, out)))
    return found


def test_each_run_has_a_row_of_two_named_panels(tmp_path, drawn):
    for number, name in enumerate(("a", "b")):
        log_run(tmp_path / name, (1, 2), 2.0 + number)
    draw_curves([tmp_path / "a", tmp_path / "b"], tmp_path / "out.png")
    ((figure, out),) = drawn
    assert out == tmp_path / "out.png"
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


def test_overlaid_runs_share_the_axes_and_keep_their_own_steps_and_names(tmp_path, drawn):
    log_run(tmp_path / "a" / "seed-0", (1, 2), 2.0, ("main", "aux4a"))
    log_run(tmp_path / "b" / "seed-0", range(10, 60, 10), 3.0)
    runs = [tmp_path / name / "seed-0" for name in "ab"]
    draw_curves([*runs, runs[0]], tmp_path / "out.png", overlay=True)
    loss, top1 = drawn[0][0].axes
    names = [f"{name}/seed-0, {kind}" for name in "ab" for kind in ("training", "validation")]
    for panel in (loss, top1):
        assert [line.get_label() for line in panel.lines] == names
        steps = [line.get_xdata().tolist() for line in panel.lines]
        assert steps == [[1, 2], [2], [10, 20, 30, 40, 50], [50]]
        colours = [line.get_color() for line in panel.lines]
        assert colours == [COLOURS[0]] * 2 + [COLOURS[1]] * 2
    assert [line.get_ydata()[0] for line in loss.lines] == [2, 3, 3, 4]
    assert loss.get_ylim()[0] == 0 < 4 < loss.get_ylim()[1]
    (legend,) = drawn[0][0].legends
    assert [text.get_text() for text in legend.get_texts()] == names


def test_each_figure_of_a_sweep_draws_what_it_is_named_after(tmp_path):
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
    found = draw_results(rows)
    assert list(found) == names
    panels = [figure.axes[0] for _, figure in found.values()]
    macs, params, top1, loss, gradients = panels
    assert [axes.get_xlabel() for axes in panels[:4]] == [
        "multiply-adds of one image", "parameters", "step", "step",
    ]  # fmt: skip
    assert [axes.get_xscale() for axes in panels[:4]] == ["log", "log", "linear", "linear"]
    assert params.containers[0].lines[0].get_xdata() == [5]
    assert top1.lines[0].get_ydata() == pytest.approx([0.26, 0.51])
    assert loss.lines[0].get_ydata() == pytest.approx([1.79, 1.29])
    assert gradients.lines[0].get_ydata() == [2]
    assert macs.yaxis.get_major_formatter()(0.254, 0) == top1.yaxis.get_major_formatter()(0.254, 0)
    assert top1.yaxis.get_major_formatter()(0.254, 0) == "25.4 %"
    assert not loss.spines["top"].get_visible()


def test_rows_without_a_finished_run_keep_their_place_and_hide_no_other(tmp_path, monkeypatch):
    rows = [Row("none"), *rows_of(tmp_path)[:2]]
    axes = cost_figure(rows, "macs").axes[0]
    colours = [to_hex(bars.lines[0].get_color()) for bars in axes.containers]
    assert colours == list(COLOURS[1:3])
    (legend,) = axes.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["Pareto front", "a", "b"]
    monkeypatch.setattr(figures, "COLOURS", COLOURS[:2])
    axes = curve_figure([*rows, *[rows[1]] * 7], "val/top1", "label").axes[0]
    styles = [line.get_linestyle() for line in axes.lines]
    assert styles == ["-", "--", "--", ":", ":", "-.", "-.", "-", "-"]
    assert [to_hex(line.get_color()) for line in axes.lines[:2]] == list(COLOURS[1:3])


@pytest.mark.parametrize(
    ("counts", "explained"), [((1, 1), ""), ((2, 2), "over 2 seeds"), ((1, 3), "over 1 to 3 seeds")]
)
def test_bars_and_bands_are_explained_if_there_are_any(tmp_path, counts, explained):
    rows = [
        dataclasses.replace(row, done={seed: row.done[seed] for seed in range(count)})
        for row, count in zip(rows_of(tmp_path)[::3], counts, strict=True)
    ]
    for name, (caption, figure) in draw_results(rows).items():
        (legend,) = figure.legends
        title = legend.get_title().get_text()
        assert explained in title
        assert ("standard deviation" in title) == ("standard deviation" in caption)
        assert ("standard deviation" in caption) == bool(explained)
        assert title in caption
        (axes,) = figure.axes
        if name in ("top1", "loss"):
            assert len(axes.collections) == sum(count > 1 for count in counts)
        else:
            assert [bars.has_yerr for bars in axes.containers] == [count > 1 for count in counts]


def test_without_a_distinguishable_front_all_points_look_the_same(monkeypatch):
    rows = [row_of(name, [0.5, 0.51], macs=macs) for name, macs in (("a", 10), ("b", 20))]
    for front, points in ((rows[1:], ["white", COLOURS[1]]), ([], list(COLOURS[:2]))):
        monkeypatch.setattr(figures, "pareto_front", lambda *_, front=front: front)
        (axes,) = cost_figure(rows, "macs").axes
        assert [bars.lines[0].get_markerfacecolor() for bars in axes.containers] == points
        labels = axes.get_legend_handles_labels()[1]
        assert ("Pareto front" in labels) == bool(front)


@pytest.mark.parametrize(("chance", "shown"), [(0.4, True), (0.001, False), (None, False)])
def test_chance_is_drawn_unless_it_would_squeeze_the_points(chance, shown):
    known = {} if chance is None else {"chance": chance}
    rows = [row_of(name, [top1], macs=9, **known) for name, top1 in (("a", 0.5), ("b", 0.6))]
    (axes,) = cost_figure(rows, "macs").axes
    assert ("chance, 40 %" in axes.get_legend_handles_labels()[1]) == shown
    assert (axes.get_ylim()[0] < 0.45) == shown


@pytest.mark.parametrize("count", [2, 6, 9])
@pytest.mark.parametrize(("columns", "inches"), [(1, 3.3), (2, 6.9)])
def test_figures_fit_the_columns_of_a_paper_and_no_legend_covers_anything(count, columns, inches):
    names = ["x0.25", "batch norm, no aux heads", *map(str, range(7))][:count]
    rows = [row_of(x, [n / 10, n / 10 + 0.01], macs=10**n) for n, x in enumerate(names, 1)]
    with matplotlib.rc_context(PAPER):
        figure = cost_figure(rows, "macs", columns)
        figure.draw_without_rendering()
        assert figure.get_figwidth() == inches
        (axes,), (legend,) = figure.axes, figure.legends
        box, around = legend.get_window_extent(), axes.get_tightbbox()
        assert not box.overlaps(around)
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width
        assert box.y0 >= 0
        assert around.height > 1.8 * figure.dpi
        assert len(legend.get_texts()) == count + 1
        looks = {(bar.lines[0].get_marker(), bar.lines[0].get_color()) for bar in axes.containers}
        assert len(looks) == count
        sizes = {text.get_fontsize() for text in figure.findobj(Text) if text.get_text()}
        assert sizes == {7, 8}


@pytest.mark.parametrize("low", [1e-5, 1.1, 3.9e6])
@pytest.mark.parametrize("ratio", [1.02, 2, 4, 11, 40, 1500, 1e8])
def test_a_logarithmic_axis_has_at_least_three_labels_that_do_not_overlap(low, ratio):
    figure = Figure(figsize=(3.3, 2), layout="constrained")
    axes = figure.subplots()
    axes.plot([low, low * ratio], [1, 2])
    axes.set_xscale("log")
    label_log_axis(axes.xaxis)
    figure.draw_without_rendering()
    labels = [tick.label1 for tick in axes.xaxis.get_major_ticks()]
    left, right = axes.get_xlim()
    places = [(float(label.get_text()), label.get_window_extent()) for label in labels]
    boxes = [box for value, box in places if left <= value <= right]
    assert 3 <= len(boxes) <= 10
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))
    assert not any(label.get_text() for label in axes.get_xticklabels(minor=True))


def test_a_dollar_sign_in_a_figure_is_no_formula():
    def size(text, **options):
        figure = Figure()
        figure.text(0.1, 0.5, text, **options)
        return len(to_svg(figure, "title"))

    assert size("$a$") == size("$a$", parse_math=False)
