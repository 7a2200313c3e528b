"""Figures of a sweep as SVG: accuracy against cost, learning curves with their spread, heads."""

import io
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter

from gnet_jax.inference.lettering import letter
from gnet_jax.lab.look.diagnose_figures import gradient_figure, read_diagnostics
from gnet_jax.lab.palette import COLOURS, colour_of
from gnet_jax.lab.sweeps.results import Row, all_heads, mean_and_spread, pareto_front
from gnet_jax.training.workdir import MetricsFile

# Where colours repeat, lines differ.
STYLES = ("-", "--", ":", "-.")
SIZE = (5.6, 3.9)  # inches: readable at the width of a phone
COSTS = {"macs": "multiply-adds of one image", "params": "parameters"}


def cost_figure(rows: Sequence[Row], cost: str) -> Figure:
    """Top-1 against a cost, error bars over the seeds, the Pareto front drawn through.

    Args:
        rows: those without a finished run are left out.
        cost: "macs" or "params".
    """
    figure, axes = _axes()
    front = pareto_front(rows, cost)
    best = [(row.cost(cost), statistics.fmean(row.top1)) for row in front]
    axes.plot(*zip(*best, strict=True), color="#999999", lw=1, zorder=1, label="Pareto front")
    for place, row in enumerate(rows):
        if not row.done:
            continue
        mean, spread = mean_and_spread(row.top1)
        axes.errorbar(
            float(row.cost(cost) or 0),
            mean,
            yerr=spread or 0.0,
            fmt="o" if row in front else "s",
            color=colour_of(place),
            mfc=None if row in front else "white",
            ms=7,
            capsize=3,
            zorder=2,
        )
        axes.annotate(
            row.name,
            (float(row.cost(cost) or 0), mean),
            xytext=(7, 6),
            textcoords="offset points",
            fontsize=9,
            path_effects=[withStroke(linewidth=3, foreground="white")],  # lines may run below it
        )
    axes.set(xscale="log", xlabel=COSTS[cost], ylabel="validation top-1")
    axes.margins(x=0.18, y=0.15)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(_short)
    axes.xaxis.set_minor_formatter(NullFormatter())
    _percent(axes)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def curve_figure(rows: Sequence[Row], metric: str, label: str) -> Figure:
    """A logged metric over the steps: the mean of the seeds, from the smallest to the largest."""
    figure, axes = _axes()
    for place, row in enumerate(rows):
        points = curve_of(row, metric)
        if not points:
            continue
        colour = colour_of(place)
        style = STYLES[place // len(COLOURS) % len(STYLES)]
        steps = list(points)
        means = [statistics.fmean(values) for values in points.values()]
        marker = "o" if len(steps) < 20 else None
        axes.plot(steps, means, style, color=colour, label=row.name, marker=marker, ms=3.5)
        low, high = ([f(values) for values in points.values()] for f in (min, max))
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, lw=0)
    axes.set(xlabel="step", ylabel=label)
    if metric.endswith("top1"):
        _percent(axes)
    bands = "mean; the band is from the lowest seed to the highest"
    title = bands if any(len(row.done) > 1 for row in rows) else None
    axes.legend(frameon=False, fontsize=9, title=title, title_fontsize=8)
    return figure


def curve_of(row: Row, metric: str) -> dict[int, list[float]]:
    """A metric's values at each step that every finished seed of `row` has logged it at."""
    found: dict[int, list[float]] = {}
    for seed in row.done:
        for line in MetricsFile(row.workdirs[seed] / "metrics.jsonl").read():
            if metric in line:
                found.setdefault(line["step"], []).append(line[metric])
    return {step: found[step] for step in sorted(found) if len(found[step]) == len(row.done)}


def heads_figure(rows: Sequence[Row]) -> Figure:
    """Top-1 of every head of every config, as bars with the spread over the seeds."""
    figure, axes = _axes()
    heads, done = all_heads(rows), [row for row in rows if row.done]
    width = 0.8 / len(heads)
    for number, head in enumerate(heads):
        bars = [
            (place + (number - (len(heads) - 1) / 2) * width, *mean_and_spread(values))
            for place, row in enumerate(done)
            if (values := [each["top1"] for each in row.heads.get(head, [])])
        ]
        places, means, spreads = zip(*bars, strict=True)
        axes.bar(
            places,
            means,
            width,
            yerr=[spread or 0.0 for spread in spreads],
            capsize=3,
            color=colour_of(number),
            label=f"{head} head",
            error_kw={"lw": 1},
        )
    axes.set_xticks(range(len(done)), [row.name for row in done])
    axes.set(ylabel="validation top-1")
    _percent(axes)
    axes.legend(frameon=False, fontsize=9, loc="upper center", ncols=len(heads))
    axes.set_ylim(0, axes.get_ylim()[1] * 1.15)  # room for the legend
    return figure


def to_svg(figure: Figure, title: str) -> str:
    """The figure as an SVG element to put into a page; its letters are outlines, no font needed."""
    text = io.StringIO()
    # The same picture gives the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": title, "svg.fonttype": "path"}):
        letter(figure)
        figure.savefig(text, format="svg", metadata={"Date": None, "Title": title})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_axisbelow(True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.3g} %")


def _short(value: float, _: object) -> str:
    """12,500,000 as 12.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


class Drawing(NamedTuple):
    """One figure of a report."""

    name: str  # of its file
    caption: str
    figure: Figure


def figures_of(rows: Sequence[Row]) -> list[Drawing]:
    """Every figure that the finished runs give; none without a finished run.

    Where all configs cost the same there is nothing to draw against.
    """
    if not any(row.done for row in rows):
        return []
    drawn = [
        Drawing(
            f"accuracy_{cost}",
            f"Accuracy against {what}. Filled circles are on the Pareto front: no config is both "
            "cheaper and more accurate.",
            cost_figure(rows, cost),
        )
        for cost, what in COSTS.items()
        if len({row.cost(cost) for row in rows if row.done}) > 1
    ]
    drawn += [
        Drawing(
            "top1",
            "Validation top-1 over training: mean of the seeds, shaded from the worst to the best.",
            curve_figure(rows, "val/top1", "validation top-1"),
        ),
        Drawing(
            "loss",
            "Training loss of the main head: mean of the seeds, shaded from the lowest to the "
            "highest.",
            curve_figure(rows, "train/main_loss", "main head, cross-entropy"),
        ),
    ]
    if len(all_heads(rows)) > 1:
        caption = "What each head knows: validation top-1 without dropout."
        drawn.append(Drawing("heads", caption, heads_figure(rows)))
    runs = {row.name: [row.workdirs[seed] for seed in row.done] for row in rows if row.done}
    if any(read_diagnostics(workdir) for workdirs in runs.values() for workdir in workdirs):
        caption = (
            "Gradient that reaches each block, mean over training and seeds; dotted, the part that "
            "comes from the main head."
        )
        drawn.append(Drawing("gradients", caption, gradient_figure(runs, SIZE)))
    return drawn
