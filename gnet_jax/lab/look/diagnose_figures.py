"""Figures of a run's diagnostics: gradients, dead channels and updates of its blocks."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gnet_jax.config import UserError
from gnet_jax.config.paths import as_text
from gnet_jax.inference.lettering import letter
from gnet_jax.lab.palette import colour_of, line_style
from gnet_jax.training.observe.diagnostics import FILE
from gnet_jax.training.workdir import MetricsFile

BLOCK_COLOURS = "viridis"  # from the first block to the last


def read_diagnostics(workdir: Path) -> list[dict[str, float]]:
    """The lines of a run's `diagnostics.jsonl`; empty if it was never diagnosed."""
    return MetricsFile(workdir / FILE).read()


def blocks_of(lines: Sequence[Mapping[str, float]], prefix: str = "grad_norm") -> list[str]:
    """The net's blocks in their order, the auxiliary heads left out.

    Modules that the published networks lack come last: the lines do not tell their place.
    """
    names = [name.partition("/")[2] for name in lines[0] if name.startswith(f"{prefix}/")]
    body = [name for name in names if not name.startswith("aux_")]
    order = ("conv1", "conv2_reduce", "conv2")
    stem = [name for name in order if name in body]
    blocks = sorted(name for name in body if name.startswith("inception_"))
    head = [name for name in ("fc", "classifier") if name in body]
    rest = [name for name in body if name not in (*stem, *blocks, *head)]
    return [*stem, *blocks, *head, *sorted(rest)]


def short(block: str) -> str:
    """A block's name for an axis."""
    return {"conv2_reduce": "conv2r", "classifier": "class."}.get(
        block, block.removeprefix("inception_")
    )


def draw_diagnostics(workdirs: Sequence[Path], out: Path) -> None:
    """Draw what was found in each run, one row of four panels each.

    Gradient by block, of the whole loss and of each head; gradient, dead channels and update over
    the steps.

    Raises:
        UserError: if a run was not diagnosed, or `out` cannot be written.
    """
    runs = {}
    for workdir in workdirs:
        runs[workdir] = read_diagnostics(workdir)
        if not runs[workdir]:
            raise UserError(
                f"{workdir} has no {FILE} with a line in it; train there with --diagnose 100"
            )
    figure = Figure(figsize=(17, 4.2 * len(runs)), layout="constrained")
    grid = figure.subplots(len(runs), 4, squeeze=False)
    for (workdir, lines), (heads, gradients, dead, updates) in zip(runs.items(), grid, strict=True):
        name = as_text("/".join(workdir.absolute().parts[-2:]))
        draw_heads(heads, lines)
        heads.set_title(f"{name}: mean gradient by block")
        _over_time(gradients, lines, "grad_norm")
        gradients.set(yscale="log", title="gradient norm", xlabel="step")
        _dead(dead, lines)
        dead.set(title="dead channels (share)", xlabel="step", ylim=(-0.02, None))
        _over_time(updates, lines, "update_ratio")
        updates.set(yscale="log", title="update / parameters", xlabel="step")
        updates.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    try:
        letter(figure)
        figure.savefig(out, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {out}: {error}") from error


def draw_heads(axes: Axes, lines: Sequence[Mapping[str, float]]) -> None:
    """Gradient norm of every block, of the loss and of each head's part in it, mean over lines."""
    blocks = blocks_of(lines)
    parts = sorted({name.partition("/")[0] for name in lines[0] if name.startswith("grad_norm_")})
    parts.sort(key=lambda part: part != "grad_norm_main")
    for number, part in enumerate(["grad_norm", *parts] if len(parts) > 1 else ["grad_norm"]):
        means = [statistics.fmean(line[f"{part}/{block}"] for line in lines) for block in blocks]
        label = "whole loss" if part == "grad_norm" else part.removeprefix("grad_norm_") + " head"
        colour = "black" if part == "grad_norm" else colour_of(number - 1)
        shown = [mean if mean > 0 else float("nan") for mean in means]  # above a head there is none
        axes.plot(range(len(blocks)), shown, "o-", ms=4, color=colour, label=label)
    axes.set_xticks(range(len(blocks)), [short(block) for block in blocks], rotation=90, fontsize=8)
    axes.set(yscale="log")
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)


def gradient_figure(runs: Mapping[str, Sequence[Path]], size: tuple[float, float]) -> Figure:
    """What the auxiliary heads do to the gradient: its norm in every block, config by config.

    Args:
        runs: workdirs of the seeds of each config; those that were not diagnosed are left out.
        size: in inches.
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    names: list[str] = []
    for number, (config, workdirs) in enumerate(runs.items()):
        lines = [line for workdir in workdirs for line in read_diagnostics(workdir)]
        if not lines:
            continue
        blocks = blocks_of(lines)
        names = names or blocks
        colour = colour_of(number)
        parts = (("grad_norm", "-"), ("grad_norm_main", ":"))
        for part, style in parts if _heads(lines[0]) > 1 else parts[:1]:
            means = [statistics.fmean(line[f"{part}/{each}"] for line in lines) for each in blocks]
            label = config if part == "grad_norm" else f"{config}: main head's part"
            places = [names.index(each) for each in blocks if each in names]
            axes.plot(places, means, style, marker="o", ms=3.5, color=colour, label=label)
    axes.set_xticks(range(len(names)), [short(name) for name in names], rotation=90, fontsize=8)
    axes.set(yscale="log", ylabel="gradient norm, mean over training")
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)
    return figure


def _heads(line: Mapping[str, float]) -> int:
    return len({name.partition("/")[0] for name in line if name.startswith("grad_norm_")})


def _over_time(axes: Axes, lines: Sequence[Mapping[str, float]], prefix: str) -> None:
    blocks = blocks_of(lines, prefix)
    colours = matplotlib.colormaps[BLOCK_COLOURS]
    for number, block in enumerate(blocks):
        points = [(line["step"], line[f"{prefix}/{block}"]) for line in lines]
        colour = colours(0.95 * number / max(len(blocks) - 1, 1))
        look = {"color": colour, "label": short(block), "lw": 1.2, "ms": 3.5}
        axes.plot(*zip(*points, strict=True), line_style(points), **look)
    _plain(axes)


def _dead(axes: Axes, lines: Sequence[Mapping[str, float]]) -> None:
    """The share of dead channels of each layer, coloured by its block."""
    colours, blocks = matplotlib.colormaps[BLOCK_COLOURS], blocks_of(lines)
    for name in lines[0]:
        kind, _, layer = name.partition("/")
        block = layer.partition("/")[0]
        if kind == "dead" and block in blocks:
            colour = colours(0.95 * blocks.index(block) / max(len(blocks) - 1, 1))
            points = [(line["step"], line[name]) for line in lines]
            axes.plot(
                *zip(*points, strict=True),
                line_style(points),
                color=colour,
                lw=0.9,
                ms=3,
                alpha=0.8,
            )
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
