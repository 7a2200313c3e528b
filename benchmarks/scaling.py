"""Time forward passes and training steps at several batch sizes, resolutions and widths.

    python benchmarks/scaling.py --json scaling.json --plot scaling.png

Varies one of the three at a time; the others stay at batch 8, 224 pixels and the paper's width.
Prints the median CPU milliseconds per image beside the multiply-adds per image.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import jax
from peers import forward, training
from side_by_side import Timer, in_turns, keep, machine, show

from gnet_jax.lab.cost.ledger import network_ledger
from gnet_jax.model.architecture import architecture
from gnet_jax.model.googlenet import GoogLeNet, init
from gnet_jax.training.sharding import call_in_this_thread, keep_freed_memory, xla_options


class Case(NamedTuple):
    """One measured point: a batch of square images through a network."""

    varied: str
    batch: int
    size: int
    width: float


def cases(a: argparse.Namespace) -> list[Case]:
    """Returns every point of the three curves."""
    return [
        *(Case("batch", batch, a.size, 1.0) for batch in a.batches),
        *(Case("resolution", a.batch, size, 1.0) for size in a.sizes),
        *(Case("width", a.batch, a.size, width) for width in a.widths),
    ]


def main() -> None:
    """Time all points in turns, then print, save and plot the medians."""
    a = arguments()
    call_in_this_thread()
    keep_freed_memory()
    timers: dict[str, Timer] = {}
    costs: dict[Case, Any] = {}
    points = cases(a)
    for case in points:
        model = GoogLeNet(architecture("paper", 1000, width_multiplier=case.width))
        variables = init(model, jax.random.PRNGKey(0), case.size)
        costs[case] = network_ledger(model, case.size)
        platform, how = jax.default_backend(), (model, variables, case.batch, case.size)
        timers[f"forward {case}"] = forward(*how, xla_options(platform))
        timers[f"training {case}"], _ = training(*how, xla_options(platform, training=True))
    medians = in_turns(timers, a.repeats)

    rows, curves = [], []
    for case in points:
        seconds = {what: medians[f"{what} {case}"] for what in ("forward", "training")}
        per_image = {what: 1e3 * each["cpu"] / case.batch for what, each in seconds.items()}
        macs = costs[case].macs / 1e6
        rows.append((*case, f"{macs:,.0f}", *(f"{ms:.1f}" for ms in per_image.values())))
        curves.append(case._asdict() | {"macs": costs[case].macs, "cpu_ms_an_image": per_image})
    columns = ("M multiply-adds", "forward, CPU ms per image", "training, CPU ms per image")
    show((*Case._fields, *columns), rows)
    versions = {"jax": jax.__version__, "machine": machine(), "repeats": a.repeats}
    keep(a.json, versions | {"curves": curves, "medians": medians})
    if a.plot is not None:
        draw(a.plot, curves)


def draw(file: Path, curves: list[dict[str, Any]]) -> None:
    """Plot one log-log panel per varied quantity, where a straight line is a power law."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    for panel, (varied, field) in zip(
        panels, (("batch", "batch"), ("resolution", "size"), ("width", "width")), strict=True
    ):
        part = [each for each in curves if each["varied"] == varied]
        for what in ("forward", "training"):
            times = [each["cpu_ms_an_image"][what] for each in part]
            panel.loglog([each[field] for each in part], times, marker="o", label=what)
        panel.set_xlabel(varied)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("CPU ms per image")
    panels[0].legend()
    figure.savefig(file, dpi=120)
    print(f"saved the plot to {file}")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--plot", type=Path, help="file for the plot")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8, help="batch size if it is not varied")
    parser.add_argument("--size", type=int, default=224, help="pixels per side if not varied")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4, 16, 32])
    parser.add_argument("--sizes", type=int, nargs="*", default=[96, 128, 224, 320])
    parser.add_argument("--widths", type=float, nargs="*", default=[0.25, 0.5, 1.0, 1.5])
    return parser.parse_args()


if __name__ == "__main__":
    main()
