import math

import matplotlib
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from gnet_jax.cli.main import main
from gnet_jax.lab.palette import COLOURS
from gnet_jax.lab.sweeps.figures import draw_diagnostics, gradient_figure, order_blocks
from gnet_jax.training.workdir import MetricsFile

BLOCKS = ("aux_4a", "classifier", "conv1", "conv2", "conv2_reduce", "inception_3a", "inception_5b")


def diagnosed(workdir, heads):
    """A workdir with the diagnostics of a net with the given heads, at two steps."""
    workdir.mkdir(parents=True)
    for step in (0, 100):
        line = {f"grad_norm/{block}": 0.5 + step / 100 for block in BLOCKS}
        for head in heads:
            line |= {f"grad_norm_{head}/{block}": 0.25 for block in BLOCKS}
        line |= {f"update_ratio/{block}": 1e-3 for block in BLOCKS}
        line |= {"dead/conv1": 0.1, "dead/inception_3a/b5": 0.5, "dead/aux_4a/conv": 0.0}
        MetricsFile(workdir / "diagnostics.jsonl").append(step, line)
    return workdir


def test_blocks_stand_in_the_order_of_the_net(tmp_path):
    lines = MetricsFile(diagnosed(tmp_path / "run", ["main"]) / "diagnostics.jsonl").read()
    assert order_blocks(lines[0]) == [
        "conv1", "conv2_reduce", "conv2", "inception_3a", "inception_5b", "classifier",
    ]  # fmt: skip


def test_the_gradient_figure_has_the_whole_and_the_main_heads_part(tmp_path):
    runs = {
        "none": [diagnosed(tmp_path / "none", ["main"])],
        "both": [diagnosed(tmp_path / f"both-{seed}", ["main", "aux4a"]) for seed in range(2)],
    }
    runs = {"never": [tmp_path / "never"], **runs}
    (axes,) = gradient_figure(runs).axes
    assert not axes.spines["top"].get_visible()
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines["both"] == [1.0] * 6  # the mean over steps and seeds
    none, both, main, example = axes.lines
    assert list(main.get_ydata()) == [0.25] * 6
    assert [line.get_linestyle() for line in axes.lines] == ["-", "-", ":", ":"]
    assert [to_hex(line.get_color()) for line in (none, both, main)] == [
        COLOURS[1],
        *[COLOURS[2]] * 2,
    ]
    shown = axes.get_legend_handles_labels()
    assert shown == ([none, both, example], ["none", "both", "part of the main head"])
    names = ["conv1", "conv2r", "conv2", "3a", "5b", "class."]
    assert [label.get_text() for label in axes.get_xticklabels()] == names
    assert axes.get_yscale() == "log"
    assert axes.figure.legends


def test_the_gradient_figure_has_the_blocks_of_all_configs_in_order(tmp_path):
    for name, blocks in (("shallow", ("3a", "5b")), ("deep", ("3a", "4a", "5b"))):
        (tmp_path / name).mkdir()
        line = {f"grad_norm/inception_{block}": 0.5 for block in blocks}
        MetricsFile(tmp_path / name / "diagnostics.jsonl").append(1, line)
    (axes,) = gradient_figure({name: [tmp_path / name] for name in ("shallow", "deep")}).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["3a", "4a", "5b"]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[0, 2], [0, 1, 2]]


def test_every_panel_shows_its_own_numbers(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    runs = [diagnosed(tmp_path / n, h) for n, h in (("a", ["main"]), ("b", ["main", "aux4a"]))]
    draw_diagnostics(runs, tmp_path / "d.png")
    panels = [
        {line.get_label(): (line.get_xydata().tolist(), line.get_color()) for line in axes.lines}
        for axes in drawn[0].axes
    ]
    assert len(panels) == 8
    assert not any(axes.spines["top"].get_visible() for axes in drawn[0].axes)
    whole, heads = panels[0], panels[4]
    assert list(whole) == ["whole loss"]
    assert list(heads) == ["whole loss", "main head", "aux4a head"]
    assert [y for _, y in heads["whole loss"][0]] == [1.0] * 6
    assert [y for _, y in heads["aux4a head"][0]] == [0.25] * 6
    names = ["conv1", "conv2r", "conv2", "3a", "5b", "class."]
    for _, gradients, dead, updates in (panels[:4], panels[4:]):
        assert list(gradients) == list(updates) == names
        assert gradients["3a"][0] == [[0, 0.5], [100, 1.5]]
        assert updates["3a"][0] == [[0, 1e-3], [100, 1e-3]]
        assert {name: points[0][1] for name, (points, _) in dead.items()} == {
            "conv1": 0.1,
            "3a": 0.5,
        }
        colours = [colour for _, colour in gradients.values()]
        assert len(set(colours)) == 6
        assert dead["3a"][1] == gradients["3a"][1] == updates["3a"][1]


def test_the_command_draws_runs_and_names_one_that_was_not_diagnosed(tmp_path, capsys):
    runs = [str(diagnosed(tmp_path / n, h)) for n, h in (("a", ["main"]), ("b", ["main", "aux4a"]))]
    assert main(["diagnose", *runs, "--out", str(tmp_path / "d.png")]) == 0
    assert (tmp_path / "d.png").stat().st_size > 10_000
    assert main(["diagnose", *runs, str(tmp_path)]) == 2
    assert "--diagnose 100" in capsys.readouterr().err
    assert main(["diagnose", runs[0], "--out", str(tmp_path / "no" / "d.png")]) == 2
    assert "not found" in capsys.readouterr().err


def test_no_run_to_draw_is_a_mistake(capsys):
    assert main(["diagnose"]) == 2
    assert "workdir" in capsys.readouterr().err


def test_one_step_is_enough_and_what_is_zero_is_left_out(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    line = {"grad_norm/conv1": 0.5, "grad_norm/fc": 0.0, "dead/conv1": 0.5}
    line |= {f"grad_norm_{head}/{b}": 0.5 for head in ("main", "aux4a") for b in ("conv1", "fc")}
    line |= {"update_ratio/conv1": 0.25, "update_ratio/fc": 0.125}
    workdir = tmp_path / "sweep" / "run"
    workdir.mkdir(parents=True)
    MetricsFile(workdir / "diagnostics.jsonl").append(7, line)
    draw_diagnostics([workdir], tmp_path / "d.png")
    heads, *panels = drawn[0].axes
    gradients, dead, updates = panels
    assert heads.get_title().startswith("run: ")
    assert heads.lines[0].get_ydata()[0] == 0.5
    assert math.isnan(heads.lines[0].get_ydata()[1])
    assert [to_hex(curve.get_color()) for curve in heads.lines] == ["#000000", *COLOURS[:2]]
    assert [axes.get_yscale() for axes in drawn[0].axes] == ["log", "log", "linear", "log"]
    titles = [axes.get_title() for axes in panels]
    for title, word in zip(titles, ("gradient", "dead", "update"), strict=True):
        assert word in title
    assert -0.05 < dead.get_ylim()[0] < 0
    viridis = matplotlib.colormaps["viridis"]
    assert [line.get_color() for line in updates.lines] == [viridis(0.0), viridis(0.95)]
    assert [axes.get_xlabel() for axes in panels] == ["step"] * 3
    assert [updates.get_legend() is None, gradients.get_legend() is None] == [False, True]
    (axes,) = gradient_figure({"run": [workdir]}).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.5, 0], [0.5, 0.5], []]


def test_one_block_alone_is_drawn(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    MetricsFile(tmp_path / "diagnostics.jsonl").append(
        7, {"grad_norm/conv1": 0.5, "update_ratio/conv1": 0.5}
    )
    draw_diagnostics([tmp_path], tmp_path / "d.png")
    assert [len(axes.lines) for axes in drawn[0].axes] == [1, 1, 0, 1]
