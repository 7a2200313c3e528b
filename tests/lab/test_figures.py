import pytest
from matplotlib.figure import Figure

from gnet_jax.lab.sweeps import figures
from gnet_jax.lab.sweeps.figures import curve_figure, draw_results, draw_run, to_svg
from gnet_jax.lab.sweeps.sweep import read_rows, read_sweep
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


def test_a_cost_that_is_equal_in_all_configs_has_no_figure(tmp_path):
    rows = read_rows(read_sweep(finished_sweep(tmp_path)))
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
    (row, *_) = read_rows(read_sweep(finished_sweep(tmp_path)))
    points = {step: [0.25, 0.75] for step in range(steps)}
    monkeypatch.setattr(figures, "common_points", lambda row, metric: points)
    (axes,) = curve_figure([row], "val/top1", "top-1").axes
    (line,) = axes.lines
    assert line.get_marker() == marker
    assert list(line.get_ydata()) == [0.5] * steps
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0.25, 0.75)
