"""Draw figures of training runs and sweeps: learning curves, and accuracy against cost."""

import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from gnet_jax.config import UserError
from gnet_jax.config.paths import as_text
from gnet_jax.inference.lettering import letter
from gnet_jax.lab.look.diagnose_figures import gradient_figure, read_diagnostics
from gnet_jax.lab.palette import COLOURS, colour_of, line_style
from gnet_jax.lab.sweeps.sweep import Row, mean_and_spread, pareto_front
from gnet_jax.training.workdir import MetricsFile

STYLES = ("-", "--", ":", "-.")  # lines with the same colour have different styles
SIZE = (5.6, 3.9)  # inches: readable at the width of a phone
COST_LABELS = {"macs": "multiply-adds of one image", "params": "parameters"}


def draw_curves(workdirs: Sequence[Path], out: Path) -> None:
    """Draw a row for each run: loss and top-1 of every head and of validation over the steps.

    Raises UserError if a run has logged nothing yet, or `out` cannot be written.
    """
    figure = Figure(figsize=(10, 3.6 * len(workdirs)), layout="constrained")
    rows = figure.subplots(len(workdirs), 2, squeeze=False)
    for workdir, (loss, top1) in zip(workdirs, rows, strict=True):
        lines = MetricsFile(workdir / "metrics.jsonl").read()
        if not lines:
            raise UserError(f"{workdir} has no metrics.jsonl with metrics; train there first")
        draw_run(lines, loss, top1)
        name = as_text(workdir.name)
        loss.set(title=f"{name}: cross-entropy", ylim=(0, None))
        top1.set(title=f"{name}: top-1 accuracy", ylim=(0, 1))
        top1.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        for panel in (loss, top1):
            panel.set(xlabel="step")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            _style(panel)
        top1.legend(loc="best", frameon=False)
    try:
        letter(figure)
        figure.savefig(out, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {out}: {error}") from error


def draw_run(lines: Sequence[dict[str, float]], loss: Axes, top1: Axes) -> None:
    """Draw the losses and accuracies in the lines of a `metrics.jsonl`."""
    names = {name for line in lines for name in line}
    heads = [name[6:-5] for name in sorted(names) if name.startswith("train/") and "_top1" in name]
    heads.sort(key=lambda head: head != "main")
    curves = [(f"train/{head}_", f"{head} head, training", "-") for head in heads]
    curves.append(("val/", "validation", "o-"))
    for number, (prefix, label, style) in enumerate(curves):
        is_val = number == len(heads)
        look = {"label": label, "ms": 3.5, "color": "black" if is_val else colour_of(number)}
        look["zorder"] = 3.5 if is_val else 3 - number / 10  # the main head above the others
        if number and not is_val:  # a wider curve, so that it is visible behind the main head's
            look |= {"lw": 3.5, "alpha": 0.6}
        for panel, kind in ((loss, "loss"), (top1, "top1")):
            points = [(x["step"], x[prefix + kind]) for x in lines if prefix + kind in x]
            if points:
                panel.plot(*zip(*points, strict=True), line_style(points, style), **look)


def draw_results(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Returns the figures of the finished runs by name, each as a pair of caption and SVG.

    A cost that is equal for all configs has no figure.
    """
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
    runs = {row.name: [row.workdirs[seed] for seed in row.done] for row in done}
    if any(read_diagnostics(workdir) for workdirs in runs.values() for workdir in workdirs):
        figures["gradients"] = (
            "Gradient of each block, mean over training and seeds; dotted: part of the main head.",
            gradient_figure(runs, SIZE),
        )
    return {name: (text, to_svg(figure, text)) for name, (text, figure) in figures.items()}


def cost_figure(rows: Sequence[Row], cost: str) -> Figure:
    """Draw top-1 against a key of `COST_LABELS`, with error bars and the Pareto front."""
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
        colour, style = colour_of(number), STYLES[number // len(COLOURS) % len(STYLES)]
        steps, values = list(points), list(points.values())
        means = [statistics.fmean(each) for each in values]
        marker = "o" if len(steps) < 20 else None
        axes.plot(steps, means, style, color=colour, label=row.name, marker=marker, ms=3.5)
        low, high = list(map(min, values)), list(map(max, values))
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, lw=0)
    axes.set(xlabel="step")
    bands = "mean; the band is from the lowest seed to the highest"
    title = bands if any(len(row.done) > 1 for row in rows) else None
    axes.legend(frameon=False, fontsize=9, title=title, title_fontsize=8)
    return figure


def common_points(row: Row, metric: str) -> dict[int, list[float]]:
    """Returns a metric's values by step, for the steps that every finished seed has logged."""
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
    axes.set_axisbelow(True)
    axes.set(ylabel=label)
    if label.endswith("top-1"):
        axes.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.3g} %")
    _style(axes)
    return figure, axes


def _style(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
