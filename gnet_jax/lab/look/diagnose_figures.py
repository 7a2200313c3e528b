"""Draw the diagnostics of a run: gradients, dead channels and updates of its blocks."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gnet_jax.config import UserError
from gnet_jax.config.paths import as_text
from gnet_jax.inference.lettering import save
from gnet_jax.lab.palette import colour_of, line_style
from gnet_jax.training.observe.diagnostics import FILE
from gnet_jax.training.workdir import MetricsFile

Line = Mapping[str, float]


def read_diagnostics(workdir: Path) -> list[dict[str, float]]:
    """Returns the lines of a run's `diagnostics.jsonl`; an empty list if it was not diagnosed."""
    return MetricsFile(workdir / FILE).read()


def order_blocks(line: Line) -> list[str]:
    """Returns the network's blocks in order, without auxiliary heads."""
    names = [name.removeprefix("grad_norm/") for name in line if name.startswith("grad_norm/")]
    blocks = sorted(name for name in names if name.startswith("inception_"))
    known = ["conv1", "conv2_reduce", "conv2", *blocks, "fc", "classifier"]
    return [name for name in known if name in names]


def draw_diagnostics(workdirs: Sequence[Path], out: Path) -> None:
    """Draw a row of four figures for each run. The first has the gradient of the whole loss and of
    each head by block; the others have gradients, dead channels and updates over the steps. Raises
    UserError if a run was not diagnosed, or `out` cannot be written.
    """
    runs = {workdir: read_diagnostics(workdir) for workdir in workdirs}
    for workdir, lines in runs.items():
        if not lines:
            raise UserError(f"{workdir} has no {FILE} with a line; train with --diagnose 100")
    figure = Figure(figsize=(17, 4.2 * len(runs)), layout="constrained")
    grid = figure.subplots(len(runs), 4, squeeze=False)
    for (workdir, lines), (heads, gradients, dead, updates) in zip(runs.items(), grid, strict=True):
        name = as_text("/".join(workdir.absolute().parts[-2:]))
        _draw_heads(heads, lines)
        heads.set_title(f"{name}: mean gradient by block")
        blocks = order_blocks(lines[0])
        look = {"lw": 1.2, "ms": 3.5}
        _draw_steps(gradients, lines, {f"grad_norm/{b}": b for b in blocks}, blocks, **look)
        gradients.set(yscale="log", title="gradient norm")
        layers = [name for name in lines[0] if name.startswith("dead/")]
        by_block = {name: name.split("/")[1] for name in layers if name.split("/")[1] in blocks}
        _draw_steps(dead, lines, by_block, blocks, lw=0.9, ms=3, alpha=0.8)
        dead.set(title="dead channels (fraction)", ylim=(-0.02, None))
        _draw_steps(updates, lines, {f"update_ratio/{b}": b for b in blocks}, blocks, **look)
        updates.set(yscale="log", title="update / parameters")
        updates.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, out, dpi=120)


def _draw_heads(axes: Axes, lines: Sequence[Line]) -> None:
    """Draw the mean gradient norm of every block, for the whole loss and for each head."""
    blocks, parts = order_blocks(lines[0]), _head_parts(lines[0])
    for number, part in enumerate(["grad_norm", *parts] if len(parts) > 1 else ["grad_norm"]):
        whole = part == "grad_norm"
        label = "whole loss" if whole else part.removeprefix("grad_norm_") + " head"
        means = [mean if mean > 0 else float("nan") for mean in _means(lines, part, blocks)]
        colour = "black" if whole else colour_of(number - 1)
        axes.plot(range(len(blocks)), means, "o-", ms=4, color=colour, label=label)
    _label_blocks(axes, blocks)


def gradient_figure(runs: Mapping[str, Sequence[Path]], size: tuple[float, float]) -> Figure:
    """Returns a figure of each block's gradient norm, of the whole loss and of the main head's.
    `runs` has the workdirs of the seeds of each config; runs without diagnostics are skipped.
    `size` is in inches.
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    names: list[str] = []
    for number, (config, workdirs) in enumerate(runs.items()):
        lines = [line for workdir in workdirs for line in read_diagnostics(workdir)]
        if not lines:
            continue
        blocks = order_blocks(lines[0])
        names = names or blocks
        parts = {"grad_norm": (config, "-")}
        if len(_head_parts(lines[0])) > 1:
            parts["grad_norm_main"] = (f"{config}: main head's part", ":")
        for part, (label, style) in parts.items():
            means = _means(lines, part, blocks)
            places = [names.index(each) for each in blocks if each in names]
            colour = colour_of(number)
            axes.plot(places, means, style, marker="o", ms=3.5, color=colour, label=label)
    axes.set_ylabel("gradient norm, mean over training")
    _label_blocks(axes, names)
    return figure


def _head_parts(line: Line) -> list[str]:
    """Returns the names of the gradient norms by head ("grad_norm_main"), the main head's first."""
    parts = {name.partition("/")[0] for name in line if name.startswith("grad_norm_")}
    return sorted(parts, key=lambda part: (part != "grad_norm_main", part))


def _means(lines: Sequence[Line], part: str, blocks: Sequence[str]) -> list[float]:
    return [statistics.fmean(line[f"{part}/{block}"] for line in lines) for block in blocks]


def _short(block: str) -> str:
    short = {"conv2_reduce": "conv2r", "classifier": "class."}
    return short.get(block, block.removeprefix("inception_"))


def _label_blocks(axes: Axes, blocks: Sequence[str]) -> None:
    axes.set_xticks(range(len(blocks)), list(map(_short, blocks)), rotation=90, fontsize=8)
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8)
    _style(axes)


def _draw_steps(
    axes: Axes,
    lines: Sequence[Line],
    metrics: Mapping[str, str],
    blocks: Sequence[str],
    **look: Any,
) -> None:
    """Draw `metrics` (name -> block) over the steps, coloured by the position of the block."""
    colours = matplotlib.colormaps["viridis"]
    for metric, block in metrics.items():
        points = [(line["step"], line[metric]) for line in lines]
        colour = colours(0.95 * blocks.index(block) / max(len(blocks) - 1, 1))
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, line_style(points), color=colour, label=_short(block), **look)
    axes.set_xlabel("step")
    _style(axes)


def _style(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
