"""Draw training runs and sweeps: learning curves, accuracy against cost, and diagnostics."""

import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from gnet_jax.config import UserError
from gnet_jax.config.paths import as_text
from gnet_jax.inference.lettering import letter, save
from gnet_jax.lab.palette import COLOURS, colour_of, line_style, style
from gnet_jax.lab.sweeps.sweep import Row, mean_and_spread, pareto_front
from gnet_jax.training.observe.diagnostics import FILE
from gnet_jax.training.workdir import MetricsFile

STYLES = ("-", "--", ":", "-.")  # lines with the same colour have different styles
SIZE = (5.6, 3.9)  # inches: readable at the width of a phone
COST_LABELS = {"macs": "multiply-adds of one image", "params": "parameters"}

Line = Mapping[str, float]  # a line of a log: the step, and values by name


def draw_curves(workdirs: Sequence[Path], out: Path) -> None:
    """Draw training (each head) and validation curves of loss and top-1, one row for each run."""
    figure = Figure(figsize=(10, 3.6 * len(workdirs)), layout="constrained")
    rows = figure.subplots(len(workdirs), 2, squeeze=False)
    for workdir, (loss, top1) in zip(workdirs, rows, strict=True):
        lines = MetricsFile(workdir / "metrics.jsonl").read()
        if not lines:
            raise UserError(f"metrics.jsonl in {workdir} is missing or empty; train there first")
        draw_run(lines, loss, top1)
        name = as_text(workdir.name)
        loss.set(title=f"{name}: cross-entropy", ylim=(0, None))
        top1.set(title=f"{name}: top-1 accuracy", ylim=(0, 1))
        top1.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        for panel in (loss, top1):
            panel.set(xlabel="step")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            style(panel)
        top1.legend(loc="best", frameon=False)
    save(figure, out, dpi=150)


def draw_run(lines: Sequence[Line], loss: Axes, top1: Axes) -> None:
    """Draw the losses and accuracies in the lines of a `metrics.jsonl`."""
    names = {name for line in lines for name in line}
    heads = [name[6:-5] for name in sorted(names) if name.startswith("train/") and "_top1" in name]
    heads.sort(key=lambda head: head != "main")
    curves = [(f"train/{head}_", f"{head} head, training", "-") for head in heads]
    curves.append(("val/", "validation", "o-"))
    for number, (prefix, label, usual) in enumerate(curves):
        is_val = number == len(heads)
        look = {"label": label, "ms": 3.5, "color": "black" if is_val else colour_of(number)}
        look["zorder"] = 3.5 if is_val else 3 - number / 10  # the main head above the others
        if number and not is_val:  # a wider curve, so that it is visible behind the main head's
            look |= {"lw": 3.5, "alpha": 0.6}
        for panel, kind in ((loss, "loss"), (top1, "top1")):
            points = [(x["step"], x[prefix + kind]) for x in lines if prefix + kind in x]
            if points:
                panel.plot(*zip(*points, strict=True), line_style(points, usual), **look)


def draw_results(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Returns figures of the finished runs: a dict from the figure's name to its (caption, SVG)."""
    done = [row for row in rows if row.done]
    if not done:
        return {}
    figures = {
        f"accuracy_{cost}": (
            f"Accuracy against {label}. Filled circles are on the Pareto front: no config is both "
            "cheaper and more accurate.",
            cost_figure(rows, cost),
        )
        for cost, label in COST_LABELS.items()
        if len({row.values(cost)[0] for row in done}) > 1
    }
    figures["top1"] = (
        "Validation top-1 over training: mean of the seeds, shaded from the worst to the best.",
        curve_figure(rows, "val/top1", "validation top-1"),
    )
    figures["loss"] = (
        "Training loss of the main head: mean of the seeds, shaded from the lowest to the highest.",
        curve_figure(rows, "train/main_loss", "main head, cross-entropy"),
    )
    runs = {row.name: [row.workdirs[seed] for seed in row.done] for row in rows}
    if any(read_diagnostics(workdir) for workdirs in runs.values() for workdir in workdirs):
        figures["gradients"] = (
            "Gradient of each block, mean over training and seeds. Dotted: the main head's part.",
            gradient_figure(runs),
        )
    return {name: (text, to_svg(figure, text)) for name, (text, figure) in figures.items()}


def cost_figure(rows: Sequence[Row], cost: str) -> Figure:
    """Draw top-1 against `cost`, a key of `COST_LABELS`, with error bars and the Pareto front."""
    figure, axes = _axes("validation top-1")
    front = pareto_front(rows, cost)
    best = [(row.values(cost)[0], row.top1) for row in front]
    axes.plot(*zip(*best, strict=True), color="#999999", lw=1, zorder=1, label="Pareto front")
    for number, row in enumerate(rows):
        if not row.done:
            continue
        mean, spread = mean_and_spread(row.values("top1"))
        point = (row.values(cost)[0], mean)
        look: dict[str, Any] = {"fmt": "o"} if row in front else {"fmt": "s", "mfc": "white"}
        look |= {"color": colour_of(number), "ms": 7, "capsize": 3, "zorder": 2}
        axes.errorbar(*point, yerr=spread or 0.0, **look)
        name = axes.annotate(row.name, point, (7, 6), textcoords="offset points", fontsize=9)
        name.set_path_effects([withStroke(linewidth=3, foreground="white")])  # readable over lines
    axes.set(xscale="log", xlabel=COST_LABELS[cost])
    axes.margins(x=0.18, y=0.15)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def curve_figure(rows: Sequence[Row], metric: str, label: str) -> Figure:
    """Draw a logged metric over the steps: the mean over the seeds, and their range as a band."""
    figure, axes = _axes(label)
    for number, row in enumerate(rows):
        points = common_points(row, metric)
        if not points:
            continue
        colour, dashes = colour_of(number), STYLES[number // len(COLOURS) % len(STYLES)]
        steps, values = list(points), list(points.values())
        low, high, means = (list(map(f, values)) for f in (min, max, statistics.fmean))
        marker = "o" if len(steps) < 20 else None
        axes.plot(steps, means, dashes, color=colour, label=row.name, marker=marker, ms=3.5)
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, lw=0)
    axes.set(xlabel="step")
    bands = "mean; the band is from the lowest seed to the highest"
    title = bands if any(len(row.done) > 1 for row in rows) else None
    axes.legend(frameon=False, fontsize=9, title=title, title_fontsize=8)
    return figure


def common_points(row: Row, metric: str) -> dict[int, list[float]]:
    """Returns a metric's values, one per seed, at each step that all finished seeds logged."""
    found: dict[int, list[float]] = {}
    for seed in row.done:
        for line in MetricsFile(row.workdirs[seed] / "metrics.jsonl").read():
            if metric in line:
                found.setdefault(line["step"], []).append(line[metric])
    return {step: found[step] for step in sorted(found) if len(found[step]) == len(row.done)}


def to_svg(figure: Figure, title: str) -> str:
    """Returns the figure as an SVG element, with text as outlines, so that no font is needed."""
    text = io.StringIO()
    # Fix the salt and remove the date, because otherwise the bytes would differ from run to run.
    with matplotlib.rc_context({"svg.hashsalt": title, "svg.fonttype": "path"}):
        letter(figure)
        figure.savefig(text, format="svg", metadata={"Date": None, "Title": title})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _axes(label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set(ylabel=label)
    if label.endswith("top-1"):
        axes.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.3g} %")
    style(axes)
    return figure, axes


def read_diagnostics(workdir: Path) -> list[dict[str, float]]:
    """Returns the lines of a run's `diagnostics.jsonl`; an empty list if it was not diagnosed."""
    return MetricsFile(workdir / FILE).read()


def order_blocks(line: Line) -> list[str]:
    """Returns the blocks named in `line`, in network order, without auxiliary heads."""
    names = [name.removeprefix("grad_norm/") for name in line if name.startswith("grad_norm/")]
    blocks = sorted(name for name in names if name.startswith("inception_"))
    known = ["conv1", "conv2_reduce", "conv2", *blocks, "fc", "classifier"]
    return [name for name in known if name in names]


def draw_diagnostics(workdirs: Sequence[Path], out: Path) -> None:
    """Draw four panels per run: mean gradients; and by step, gradients, dead channels, updates."""
    figure = Figure(figsize=(17, 4.2 * len(workdirs)), layout="constrained")
    grid = figure.subplots(len(workdirs), 4, squeeze=False)
    for workdir, (heads, gradients, dead, updates) in zip(workdirs, grid, strict=True):
        lines = read_diagnostics(workdir)
        if not lines:
            raise UserError(f"{FILE} in {workdir} is missing or empty; train with --diagnose 100")
        name = as_text("/".join(workdir.absolute().parts[-2:]))
        _draw_heads(heads, lines)
        heads.set_title(f"{name}: mean gradient by block")
        blocks = order_blocks(lines[0])
        look = {"lw": 1.2, "ms": 3.5}
        _draw_steps(gradients, lines, {f"grad_norm/{b}": b for b in blocks}, **look)
        gradients.set(yscale="log", title="gradient norm")
        layers = [name for name in lines[0] if name.startswith("dead/")]
        by_block = {name: name.split("/")[1] for name in layers if name.split("/")[1] in blocks}
        _draw_steps(dead, lines, by_block, lw=0.9, ms=3, alpha=0.8)
        dead.set(title="dead channels (fraction)", ylim=(-0.02, None))
        _draw_steps(updates, lines, {f"update_ratio/{b}": b for b in blocks}, **look)
        updates.set(yscale="log", title="update / parameters")
        updates.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, out, dpi=120)


def _draw_heads(axes: Axes, lines: Sequence[Line]) -> None:
    blocks, parts = order_blocks(lines[0]), _head_parts(lines[0])
    for number, part in enumerate(["grad_norm", *parts]):
        whole = part == "grad_norm"
        label = "whole loss" if whole else part.removeprefix("grad_norm_") + " head"
        means = [mean if mean > 0 else float("nan") for mean in _means(lines, part, blocks)]
        colour = "black" if whole else colour_of(number - 1)
        axes.plot(range(len(blocks)), means, "o-", ms=4, color=colour, label=label)
    _label_blocks(axes, blocks)


def gradient_figure(runs: Mapping[str, Sequence[Path]]) -> Figure:
    """Returns a figure of each block's mean gradient norm; `runs` maps configs to workdirs."""
    figure, axes = _axes("gradient norm, mean over training")
    names: list[str] = []
    for number, (config, workdirs) in enumerate(runs.items()):
        lines = [line for workdir in workdirs for line in read_diagnostics(workdir)]
        if not lines:
            continue
        names = names or order_blocks(lines[0])
        blocks = [block for block in order_blocks(lines[0]) if block in names]
        curves = {"grad_norm": (config, "-")}
        if _head_parts(lines[0]):
            curves["grad_norm_main"] = (f"{config}: main head's part", ":")
        places = list(map(names.index, blocks))
        look = {"marker": "o", "ms": 3.5, "color": colour_of(number)}
        for part, (label, dashes) in curves.items():
            axes.plot(places, _means(lines, part, blocks), dashes, label=label, **look)
    _label_blocks(axes, names)
    return figure


def _head_parts(line: Line) -> list[str]:
    """Returns prefixes of the heads' gradient norms, "grad_norm_main" first; [] for one head."""
    parts = {name.partition("/")[0] for name in line if name.startswith("grad_norm_")}
    ordered = sorted(parts, key=lambda part: (part != "grad_norm_main", part))
    return ordered if len(ordered) > 1 else []


def _means(lines: Sequence[Line], part: str, blocks: Sequence[str]) -> list[float]:
    return [statistics.fmean(line[f"{part}/{block}"] for line in lines) for block in blocks]


def _short(block: str) -> str:
    short = {"conv2_reduce": "conv2r", "classifier": "class."}
    return short.get(block, block.removeprefix("inception_"))


def _label_blocks(axes: Axes, blocks: Sequence[str]) -> None:
    axes.set_xticks(range(len(blocks)), list(map(_short, blocks)), rotation=90, fontsize=8)
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8)
    style(axes)


def _draw_steps(axes: Axes, lines: Sequence[Line], metrics: Mapping[str, str], **look: Any) -> None:
    """Draw `metrics` (name -> block) over the steps, coloured by the position of the block."""
    colours, steps = matplotlib.colormaps["viridis"], [line["step"] for line in lines]
    blocks = order_blocks(lines[0])
    for metric, block in metrics.items():
        colour = colours(0.95 * blocks.index(block) / max(len(blocks) - 1, 1))
        values = [line[metric] for line in lines]
        axes.plot(steps, values, line_style(steps), color=colour, label=_short(block), **look)
    axes.set_xlabel("step")
    style(axes)
