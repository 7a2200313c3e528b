"""The commands for ablation studies: ablate, report."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from gnet_jax.cli.output import console
from gnet_jax.config import UserError
from gnet_jax.config.command import parse_sweep


@dataclasses.dataclass(frozen=True)
class Ablate:
    """The options of `gnet ablate`."""

    seeds: int = 3
    """Number of runs of each config. Run i uses the config's seed plus i."""
    shard: str = "0/1"
    """i/n runs only part i (from 0) of n parts of the sweep, for example one part per machine.
    All parts use the same workdir; together they train every run exactly once."""
    retry_failed: bool = False
    """Train the runs again that failed before."""


def ablate(arguments: Sequence[str]) -> int:
    """Train every config of a sweep with every seed, and print a table of the results.

    Runs are trained one after another, in DIR/CONFIG/seed-N. If you repeat the command, it skips
    finished runs and resumes interrupted ones. If a run fails, the sweep reports it and continues.

    gnet ablate SWEEP [--workdir DIR] [--seeds N] [--shard i/n] [--field.path value ...]
    """
    configs, own, text = parse_sweep(arguments, "gnet ablate", Ablate(), inspect.getdoc(ablate))
    found = re.fullmatch(r"(\d+)/(\d+)", own.shard)
    index, shards = map(int, found.groups()) if found else (0, 0)
    if index >= shards:
        raise UserError(f"--shard is {own.shard}; it must be i/n, with i from 0 to n - 1")
    if own.seeds < 1:
        raise UserError(f"--seeds is {own.seeds}; it must be at least 1")
    workdir = Path(next(iter(configs.values())).workdir).expanduser()
    # Imported here, so that --help and command-line errors return immediately.
    from gnet_jax.lab.sweeps import sweep
    from gnet_jax.lab.sweeps.ablate import StoppedError, relative_cost, run_cells
    from gnet_jax.training.sharding import call_in_this_thread, use_compilation_cache

    use_compilation_cache()
    call_in_this_thread()
    sweep.open_sweep(workdir, configs, own.seeds, text)
    first_seeds = {name: config.seed for name, config in configs.items()}
    cells = sweep.list_cells(workdir, first_seeds, own.seeds)
    if shards > 1:
        cost = {name: relative_cost(config) for name, config in configs.items()}
        mine = sweep.select_shard([cost[cell.name] for cell in cells], index, shards)
        cells = [cells[position] for position in mine]
    print(f"{len(cells)} runs of {len(configs)} configs and {own.seeds} seeds, in {workdir}")
    try:
        run_cells(cells, configs, partial(print, flush=True), retry_failed=own.retry_failed)
    except StoppedError as error:
        number = signal.Signals(error.args[0])
        again = shlex.join(["gnet", "ablate", *arguments])
        print(f"stopped by {number.name}; the state is saved. Resume with:\n  {again}")
        return 128 + number
    rows = sweep.read_rows(sweep.read_sweep(workdir))
    out = console()
    out.print(sweep.results_table(rows, f"{arguments[0]}, {workdir}"))
    out.print(sweep.LEGEND)
    failed = sweep.failures(rows)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    print(f"next:  gnet report {shlex.quote(str(workdir))}")
    return 1 if failed else 0


def report(
    workdir: Annotated[Positional[Path], arg(metavar="DIR")],
    out: Path | None = None,
    figures: Path | None = None,
) -> None:
    """Write the results of a sweep as a self-contained HTML page, Markdown and CSV.

    The page shows a table of results, plots of accuracy over multiply-adds and over parameters,
    learning curves, the configs, and the versions of the libraries.

    Args:
        workdir: the workdir of `gnet ablate`; the sweep need not be finished.
        out: the HTML file to write; the default is report.html in the workdir. The Markdown and CSV
            files have the same name with .md and .csv. The CSV file has one line per run.
        figures: a folder to write the figures to as SVG files; by default, none are written.
    """
    from gnet_jax.lab.sweeps.report import write_report

    for file in write_report(workdir, out or workdir / "report.html", figures):
        print(f"wrote {file}")
