"""Learning curves of training runs, as one picture."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gnet_jax.config import UserError
from gnet_jax.config.paths import as_text
from gnet_jax.inference.lettering import letter
from gnet_jax.lab.palette import colour_of, line_style
from gnet_jax.training.workdir import MetricsFile


def draw_curves(workdirs: Sequence[Path], out: Path) -> None:
    """Draw loss and top-1 accuracy of every head, and of validation, over the steps of each run.

    One row of two panels a run; the format is told by the suffix of `out`.

    Raises:
        UserError: if a run has logged nothing yet, or `out` cannot be written.
    """
    figure = Figure(figsize=(10, 3.6 * len(workdirs)), layout="constrained")
    rows = figure.subplots(len(workdirs), 2, squeeze=False)
    for workdir, (loss, top1) in zip(workdirs, rows, strict=True):
        lines = MetricsFile(workdir / "metrics.jsonl").read()
        if not lines:
            raise UserError(f"{workdir} has no metrics.jsonl with a line in it; train there first")
        _draw_run(lines, loss, top1)
        name = as_text(workdir.name)
        loss.set_title(f"{name}: cross-entropy")
        top1.set_title(f"{name}: top-1 accuracy")
        loss.set(xlabel="step", ylim=(0, None))
        top1.set(xlabel="step", ylim=(0, 1))
        top1.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        for panel in (loss, top1):
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
        top1.legend(loc="best", frameon=False)
    try:
        letter(figure)
        figure.savefig(out, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {out}: {error}") from error


def _draw_run(lines: Sequence[dict[str, float]], loss: Axes, top1: Axes) -> None:
    names = {name for line in lines for name in line}
    heads = [name[6:-5] for name in sorted(names) if name.startswith("train/") and "_top1" in name]
    heads.sort(key=lambda head: head != "main")
    curves = [(f"train/{head}_", f"{head} head, training", "-") for head in heads]
    curves.append(("val/", "validation", "o-"))
    colours = [*map(colour_of, range(len(heads))), "black"]
    for place, ((prefix, label, style), colour) in enumerate(zip(curves, colours, strict=True)):
        above = 3 - place / 10 if place < len(heads) else 3.5  # the main head's over the others'
        look = {"color": colour, "label": label, "ms": 3.5, "zorder": above}
        if 0 < place < len(heads):  # wider, to be seen where it runs under the main head's
            look |= {"lw": 3.5, "alpha": 0.6}
        for panel, kind in ((loss, "loss"), (top1, "top1")):
            points = [(x["step"], x[prefix + kind]) for x in lines if prefix + kind in x]
            if points:
                panel.plot(*zip(*points, strict=True), line_style(points, style), **look)
