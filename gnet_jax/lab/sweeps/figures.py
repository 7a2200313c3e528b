"""Draw training runs and sweeps: learning curves, accuracy against cost, and diagnostics."""

import io
import statistics
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from gnet_jax.config import UserError
from gnet_jax.config.paths import as_text
from gnet_jax.inference.lettering import letter, save
from gnet_jax.lab.palette import (
    COLOURS,
    PAPER,
    WIDTHS,
    colour_of,
    label_log_axis,
    legend_below,
    line_style,
    style,
)
from gnet_jax.lab.sweeps.runs import name_runs
from gnet_jax.lab.sweeps.sweep import Row, mean_and_spread, pareto_front
from gnet_jax.training.observe.diagnostics import FILE
from gnet_jax.training.workdir import MetricsFile

STYLES = ("-", "--", ":", "-.")  # lines with the same colour have different styles,
MARKERS = ("o", "s", "^", "D")  # and points with the same colour have different markers
COST_LABELS = {"macs": "multiply-adds of one image", "params": "parameters"}
KINDS = ("cross-entropy", "top-1 accuracy")  # of a run's two panels
BESIDE: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}  # of a legend

Line = Mapping[str, float]  # a line of a log: the step, and values by name


@matplotlib.rc_context(PAPER)
def draw_curves(workdirs: Sequence[Path], out: Path, *, overlay: bool = False) -> None:
    """Draw training (each head) and validation curves of loss and top-1, one row for each run.

    With `overlay`, all runs are in one row, without auxiliary heads.
    """
    runs = name_runs(workdirs)
    rows = 1 if overlay else len(runs)
    figure = Figure(figsize=(WIDTHS[2], 2.4 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False)
    for number, (path, workdir) in enumerate(runs.items()):
        lines = MetricsFile(workdir / "metrics.jsonl").read()
        if not lines:
            raise UserError(f"metrics.jsonl in {workdir} is missing or empty; train there first")
        name = as_text(path)
        if overlay:
            colour, dashes = colour_of(number), _pick(STYLES, number)
            pale: dict[str, Any] = {"label": f"{name}, training", "lw": 2.5, "alpha": 0.35}
            _plot(grid[0], lines, "train/main_", dashes, color=colour, **pale)
            _plot(grid[0], lines, "val/", f"o{dashes}", color=colour, label=f"{name}, validation")
        else:
            draw_run(lines, *grid[number])
            grid[number, 1].legend(**BESIDE)
        for panel, kind in zip(grid[0 if overlay else number], KINDS, strict=True):
            panel.set_title(kind if overlay else f"{name}: {kind}")
    for panel in grid.flat:
        panel.set(xlabel="step", ylim=(0, None))
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        style(panel)
    for panel in grid[:, 1]:
        panel.set(ylim=(0, 1))
        panel.yaxis.set_major_formatter(PercentFormatter(1))
    if overlay:
        legend_below(figure, grid[0, 1])
    save(figure, out, dpi=200)


def draw_run(lines: Sequence[Line], loss: Axes, top1: Axes) -> None:
    """Draw the losses and accuracies in the lines of a `metrics.jsonl`."""
    names = {name for line in lines for name in line}
    heads = [name[6:-5] for name in sorted(names) if name.startswith("train/") and "_top1" in name]
    heads.sort(key=lambda head: head != "main")
    curves = [(f"train/{head}_", f"{head} head, training", "-") for head in heads]
    curves.append(("val/", "validation", "o-"))
    for number, (prefix, label, usual) in enumerate(curves):
        is_val = number == len(heads)
        look: dict[str, Any] = {"label": label, "color": "black" if is_val else colour_of(number)}
        look["zorder"] = 3.5 if is_val else 3 - number / 10  # the main head above the others
        if number and not is_val:  # a wider curve, so that it is visible behind the main head's
            look |= {"lw": 3.0, "alpha": 0.6}
        _plot((loss, top1), lines, prefix, usual, **look)


def _plot(
    panels: Iterable[Axes], lines: Sequence[Line], prefix: str, usual: str, **look: Any
) -> None:
    """Draw the loss and the top-1 of one head in two panels."""
    for panel, kind in zip(panels, ("loss", "top1"), strict=True):
        points = [(line["step"], line[prefix + kind]) for line in lines if prefix + kind in line]
        if points:
            panel.plot(*zip(*points, strict=True), line_style(points, usual), **look)


def _pick(looks: Sequence[str], number: int) -> str:
    """Returns the line style or marker of curve `number`; it changes when the colours repeat."""
    return looks[number // len(COLOURS) % len(looks)]


@matplotlib.rc_context(PAPER)
def draw_results(rows: Sequence[Row], columns: int = 1) -> dict[str, tuple[str, Figure]]:
    """Returns figures of the finished runs: a dict from the figure's name to (caption, figure).

    They are as wide as one or two columns of a paper. `to_svg` and `to_pdf` write them.
    """
    done = [row for row in rows if row.done]
    if not done:
        return {}
    figures: dict[str, tuple[str, Figure]] = {}
    spread = describe_spread(rows)
    shown = ("Points and bars", "Lines and bands")
    bars, bands = (f" {what}: {spread}." if spread else "" for what in shown)
    for cost, label in COST_LABELS.items():
        if len({row.values(cost)[0] for row in done}) > 1:
            front = " Filled points are on the Pareto front." if pareto_front(rows, cost) else ""
            caption = f"Validation top-1 against {label}.{bars}{front}"
            figures[f"accuracy_{cost}"] = caption, cost_figure(rows, cost, columns)
    for name, metric, what, label in (
        ("top1", "val/top1", "Validation top-1 over training.", "validation top-1"),
        ("loss", "train/main_loss", "Training loss of the main head.", "main head, cross-entropy"),
    ):
        figures[name] = what + bands, curve_figure(rows, metric, label, columns)
    runs = {row.name: [row.workdirs[seed] for seed in row.done] for row in rows}
    if any(read_diagnostics(workdir) for workdirs in runs.values() for workdir in workdirs):
        caption = "Gradient of each block, mean over training and seeds."
        figures["gradients"] = caption, gradient_figure(runs, columns)
    return figures


def describe_spread(rows: Sequence[Row]) -> str:
    """Returns what bars and bands show; "" if no config has two seeds, and thus a spread."""
    counts = sorted({len(row.done) for row in rows if row.done})
    if counts[-1] == 1:
        return ""
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"mean \N{PLUS-MINUS SIGN} sample standard deviation over {seeds} seeds"


def cost_figure(rows: Sequence[Row], cost: str, columns: int = 1) -> Figure:
    """Draw top-1 against `cost`, a key of `COST_LABELS`, with error bars and the Pareto front."""
    figure, axes = _axes("validation top-1", columns)
    front = pareto_front(rows, cost)
    if front:
        best = [(row.values(cost)[0], row.top1) for row in front]
        axes.plot(*zip(*best, strict=True), color="#999999", lw=1, zorder=1, label="Pareto front")
    for number, row in enumerate(rows):
        if not row.done:
            continue
        mean, spread = mean_and_spread(row.values("top1"))
        look: dict[str, Any] = {"mfc": "white"} if front and row not in front else {}
        look |= {"fmt": _pick(MARKERS, number), "color": colour_of(number), "label": row.name}
        axes.errorbar(row.values(cost)[0], mean, yerr=spread, ms=5, capsize=2, zorder=2, **look)
    axes.set(xscale="log", xlabel=COST_LABELS[cost])
    axes.margins(x=0.08, y=0.1)
    label_log_axis(axes.xaxis, EngFormatter(sep=""))
    _draw_chance(axes, rows)
    legend_below(figure, axes, describe_spread(rows))
    return figure


def curve_figure(rows: Sequence[Row], metric: str, label: str, columns: int = 1) -> Figure:
    """Draw a logged metric over the steps: mean and sample standard deviation over the seeds."""
    figure, axes = _axes(label, columns)
    for number, row in enumerate(rows):
        points = common_points(row, metric)
        if not points:
            continue
        steps, colour = list(points), colour_of(number)
        means, spreads = zip(*map(mean_and_spread, points.values()), strict=True)
        marker = "o" if len(steps) < 20 else None
        look = {"color": colour, "label": row.name, "marker": marker}
        axes.plot(steps, means, _pick(STYLES, number), **look)
        if None not in spreads:
            low, high = (np.add(means, np.multiply(sign, spreads)) for sign in (-1, 1))
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
    axes.set(xlabel="step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if metric == "val/top1":
        _draw_chance(axes, rows)
    legend_below(figure, axes, describe_spread(rows))
    return figure


def _draw_chance(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the accuracy of guessing, unless the data would then fill less than half of the axis."""
    low, high = axes.get_ylim()
    for chance in {value for row in rows for value in row.values("chance")}:
        if low - chance <= high - low:
            label = f"chance, {100 * chance:.3g} %"
            axes.axhline(chance, color="#555555", ls=":", lw=0.8, zorder=1, label=label)


def common_points(row: Row, metric: str) -> dict[int, list[float]]:
    """Returns a metric's values, one per seed, at each step that all finished seeds logged."""
    found: dict[int, list[float]] = {}
    for seed in row.done:
        for line in MetricsFile(row.workdirs[seed] / "metrics.jsonl").read():
            if metric in line:
                found.setdefault(line["step"], []).append(line[metric])
    return {step: found[step] for step in sorted(found) if len(found[step]) == len(row.done)}


def to_svg(figure: Figure, title: str) -> str:
    """Returns the figure as an SVG element, with text as text in a sans-serif font."""
    svg = _render(figure, "svg", Date=None, Title=title).decode()
    return svg[svg.index("<svg") :]


def to_pdf(figure: Figure, title: str) -> bytes:
    """Returns the figure as a PDF file, with its fonts embedded."""
    return _render(figure, "pdf", CreationDate=None, Title=title)


def _render(figure: Figure, kind: str, **metadata: Any) -> bytes:
    file = io.BytesIO()
    # Fix the salt and remove the date, because otherwise the bytes would differ from run to run.
    with matplotlib.rc_context({**PAPER, "svg.hashsalt": metadata["Title"]}):
        letter(figure)
        figure.savefig(file, format=kind, metadata=metadata)
    return file.getvalue()


def _axes(label: str, columns: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTHS[columns], 1.7 + 0.5 * columns), layout="constrained")
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


@matplotlib.rc_context(PAPER)
def draw_diagnostics(workdirs: Sequence[Path], out: Path) -> None:
    """Draw four panels per run: mean gradients; and by step, gradients, dead channels, updates."""
    runs = name_runs(workdirs)
    figure = Figure(figsize=(WIDTHS[2], 4.6 * len(runs)), layout="constrained")
    grid = figure.subplots(2 * len(runs), 2, squeeze=False).reshape(len(runs), 4)
    for (name, workdir), (heads, gradients, dead, updates) in zip(runs.items(), grid, strict=True):
        lines = read_diagnostics(workdir)
        if not lines:
            raise UserError(f"{FILE} in {workdir} is missing or empty; train with --diagnose 100")
        _draw_heads(heads, lines)
        heads.set_title(f"{as_text(name)}: mean gradient norm")
        blocks = order_blocks(lines[0])
        _draw_steps(gradients, lines, {f"grad_norm/{b}": b for b in blocks})
        gradients.set(yscale="log", title="gradient norm")
        layers = [name for name in lines[0] if name.startswith("dead/")]
        by_block = {name: name.split("/")[1] for name in layers if name.split("/")[1] in blocks}
        _draw_steps(dead, lines, by_block, lw=0.8, alpha=0.8)
        dead.set(title="dead channels (fraction)", ylim=(-0.02, None))
        _draw_steps(updates, lines, {f"update_ratio/{b}": b for b in blocks})
        updates.set(yscale="log", title="update / parameters")
        for panel in (heads, updates):
            panel.legend(**BESIDE)
        for panel in (heads, gradients, updates):
            label_log_axis(panel.yaxis)
    save(figure, out, dpi=200)


def _draw_heads(axes: Axes, lines: Sequence[Line]) -> None:
    blocks, parts = order_blocks(lines[0]), _head_parts(lines[0])
    for number, part in enumerate(["grad_norm", *parts]):
        whole = part == "grad_norm"
        label = "whole loss" if whole else part.removeprefix("grad_norm_") + " head"
        means = [mean if mean > 0 else float("nan") for mean in _means(lines, part, blocks)]
        colour = "black" if whole else colour_of(number - 1)
        axes.plot(range(len(blocks)), means, "o-", color=colour, label=label)
    _label_blocks(axes, blocks)


def gradient_figure(runs: Mapping[str, Sequence[Path]], columns: int = 1) -> Figure:
    """Returns a figure of each block's mean gradient norm; `runs` maps configs to workdirs."""
    figure, axes = _axes("gradient norm", columns)
    logs = {
        config: [line for workdir in workdirs for line in read_diagnostics(workdir)]
        for config, workdirs in runs.items()
    }
    names = order_blocks(ChainMap(*(lines[0] for lines in logs.values() if lines)))
    for number, (config, lines) in enumerate(logs.items()):
        if not lines:
            continue
        blocks = order_blocks(lines[0])
        places = list(map(names.index, blocks))
        look: dict[str, Any] = {"color": colour_of(number), "marker": _pick(MARKERS, number)}
        axes.plot(places, _means(lines, "grad_norm", blocks), "-", label=config, **look)
        if _head_parts(lines[0]):
            axes.plot(places, _means(lines, "grad_norm_main", blocks), ":", **look)
    if any(line.get_linestyle() == ":" for line in axes.lines):
        axes.plot([], [], "k:", label="part of the main head")
    _label_blocks(axes, names)
    label_log_axis(axes.yaxis)
    legend_below(figure, axes)
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
    axes.set_xticks(range(len(blocks)), list(map(_short, blocks)), rotation=90)
    axes.set_yscale("log")
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
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    style(axes)
