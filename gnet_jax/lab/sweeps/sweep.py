"""The files of a sweep: DIR/sweep.json, and result.json in each run's workdir DIR/CONFIG/seed-N."""

import dataclasses
import json
import math
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from gnet_jax.config import Config, ConfigError, UserError, differences, flatten, json_text
from gnet_jax.lab.cost.ledger import csv_text, number_table

SWEEP_FILE = "sweep.json"
RESULT_FILE = "result.json"
LEGEND = (
    "top-1 and losses: on the validation images after the last step, as mean \N{PLUS-MINUS SIGN} "
    "sample standard deviation over the seeds. images/s: median training throughput. step memory: "
    "memory of one training step, as XLA plans it."
)
Value = tuple[str, float | None]  # the text of a table's cell, and the number to sort by


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep: the config `name` with one of its seeds."""

    name: str
    seed: int
    workdir: Path

    @property
    def result(self) -> dict[str, Any] | None:
        return read_json(self.workdir / RESULT_FILE)


def list_cells(workdir: Path, first_seeds: Mapping[str, int], seeds: int) -> list[Cell]:
    """Returns the runs of a sweep: `seeds` runs of each config, starting at its first seed."""
    return [
        Cell(name, seed, workdir / name / f"seed-{seed}")
        for name, first in first_seeds.items()
        for seed in range(first, first + seeds)
    ]


def select_shard(costs: Sequence[float], index: int, shards: int) -> list[int]:
    """Returns the positions of the runs in shard `index`, which have about 1/`shards` of the cost.

    A shard is a contiguous range, because neighbouring runs share their config's compiled step.
    """
    middles = np.cumsum(costs) - np.divide(costs, 2)
    shard = np.minimum(middles / (sum(costs) or 1.0) * shards, shards - 1).astype(int)
    return np.flatnonzero(shard == index).tolist()


def open_sweep(workdir: Path, configs: Mapping[str, Config], seeds: int, about: str) -> None:
    """Add configs to `sweep.json`; raises ConfigError if one differs there or writing fails."""
    file = workdir / SWEEP_FILE
    new = {name: flatten(config) for name, config in configs.items()}
    record = read_json(file) or {"configs": {}, "seeds": 0}
    old = record["configs"]
    for name in old.keys() & new.keys():
        changed = differences(old[name], new[name])
        if changed:
            raise ConfigError(
                f"config {name!r} differs from the sweep's in {workdir} ({'; '.join(changed)}); "
                "use another --workdir, or use the old values to resume the sweep"
            )
    record = {"about": about, "seeds": max(seeds, record["seeds"]), "configs": old | new}
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # Shards that start at the same time must not share a temporary file.
        with tempfile.NamedTemporaryFile("w", dir=workdir, delete=False, prefix=".") as partial:
            partial.write(json_text(record, indent=2) + "\n")
        os.chmod(partial.name, 0o644)
        os.replace(partial.name, file)
    except OSError as error:
        raise ConfigError(f"cannot write to the workdir {workdir}: {error.strerror}") from error


@dataclasses.dataclass(frozen=True)
class SweepRecord:
    """The content of `sweep.json`: configs by name, and all runs."""

    title: str  # the first line of the docstring of the sweep's file
    about: str  # the rest of the docstring
    configs: dict[str, dict[str, Any]]  # flattened, without the fields workdir and seed
    cells: list[Cell]


def read_sweep(workdir: Path) -> SweepRecord:
    """Returns the record of the sweep in `workdir`; raises UserError if there is none."""
    found = read_json(workdir / SWEEP_FILE)
    if found is None:
        raise UserError(f"{workdir} has no sweep (no {SWEEP_FILE}); gnet ablate creates one")
    title, _, about = found["about"].strip().partition("\n")
    configs = found["configs"]
    first_seeds = {name: config.pop("seed") for name, config in configs.items()}
    for config in configs.values():
        del config["workdir"]
    cells = list_cells(workdir, first_seeds, found["seeds"])
    return SweepRecord(title or workdir.name, about.strip("\n"), configs, cells)


def read_json(file: Path) -> dict[str, Any] | None:
    """Returns the object in a JSON file; None if it is missing. Raises UserError if corrupt."""
    try:
        return dict(json.loads(file.read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is corrupt ({error}); move it away") from error


@dataclasses.dataclass(frozen=True)
class Row:
    """The runs of one config, by seed."""

    name: str
    workdirs: dict[int, Path] = dataclasses.field(default_factory=dict)
    done: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)  # results
    failed: dict[int, str] = dataclasses.field(default_factory=dict)  # error messages
    missing: list[int] = dataclasses.field(default_factory=list)  # seeds that have not ended

    def values(self, *path: str) -> list[float]:
        """Returns one number of each finished result, such as `values("heads", "main", "loss")`."""
        found: list[Any] = list(self.done.values())
        for name in path:
            found = [each[name] for each in found if name in each]
        return [math.nan if each is None else each for each in found]

    @property
    def top1(self) -> float:
        """Mean validation top-1 (from 0 to 1) of the finished seeds after their last step."""
        return statistics.fmean(self.values("top1"))


def read_rows(sweep: SweepRecord) -> list[Row]:
    """Returns the results of a sweep, one row for every config."""
    rows = {name: Row(name) for name in sweep.configs}
    for cell in sweep.cells:
        row, result = rows[cell.name], cell.result
        row.workdirs[cell.seed] = cell.workdir
        if result is None:
            row.missing.append(cell.seed)
        elif result["status"] == "done":
            row.done[cell.seed] = result
        else:
            row.failed[cell.seed] = result["error"]
    return list(rows.values())


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and the sample standard deviation, which is None for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def pareto_front(rows: Sequence[Row], cost: str) -> list[Row]:
    """Returns the finished rows on the Pareto front of `cost` and mean top-1, cheapest first."""
    front: list[Row] = []
    done = [row for row in rows if row.done]
    for row in sorted(done, key=lambda row: (row.values(cost)[0], -row.top1)):
        if not front or row.top1 > front[-1].top1:
            front.append(row)
    return front


def all_heads(rows: Sequence[Row]) -> list[str]:
    """Returns the names of the heads in all rows, the main head first."""
    names = {head for row in rows for result in row.done.values() for head in result["heads"]}
    return sorted(names, key=lambda head: (head != "main", head))


def failures(rows: Sequence[Row]) -> list[str]:
    """Returns a line for each failed run."""
    return [
        f"{row.name}, seed {seed}: {error}" for row in rows for seed, error in row.failed.items()
    ]


def tabulate(rows: Sequence[Row]) -> tuple[list[str], list[list[Value]]]:
    """Returns the results table: its header, and the cells row by row."""
    heads = all_heads(rows)
    header = ["config", "top-1", "multiply-adds", "parameters", "with aux heads", "images/s"]
    header += ["step memory", "runs", *(f"{head} loss" for head in heads)]
    lines = []
    for row in rows:
        runs = f"{len(row.done)} of {len(row.workdirs)}"
        runs += f", {len(row.failed)} failed" if row.failed else ""
        costs = ("macs", "params", "params_with_aux", "images_per_sec")
        values: list[Value] = [
            (row.name, None),
            _with_spread([100 * top1 for top1 in row.values("top1")], 2, " %"),
            *(_median(row.values(name)) for name in costs),
            _median([size / 2**20 for size in row.values("memory_bytes")], " MiB"),
            (runs, len(row.done)),
            *(_with_spread(row.values("heads", head, "loss"), 3) for head in heads),
        ]
        lines.append(values)
    return header, lines


def _median(values: Sequence[float], unit: str = "") -> Value:
    if not values:
        return "", None
    median = statistics.median(values)
    return f"{median:,.0f}{unit}", median


def _with_spread(values: Sequence[float], digits: int, unit: str = "") -> Value:
    if not values:
        return "", None
    mean, spread = mean_and_spread(values)
    plus_minus = "" if spread is None else f" \N{PLUS-MINUS SIGN} {spread:.{digits}f}"
    return f"{mean:.{digits}f}{plus_minus}{unit}", mean


def results_table(rows: Sequence[Row], title: str) -> Table:
    """Returns the table of results for a terminal."""
    header, lines = tabulate(rows)
    table = number_table(title, *header)
    for values in lines:
        table.add_row(*(text for text, _ in values))
    return table


def runs_csv(rows: Sequence[Row]) -> str:
    """Returns CSV with a line of unrounded values for every finished run; top-1 is from 0 to 1."""
    names = ("top1", "macs", "params", "params_with_aux", "memory_bytes", "images_per_sec")
    heads = [f"{head}_{metric}" for head in all_heads(rows) for metric in ("loss", "top1")]
    lines: list[dict[str, Any]] = []
    for row in rows:
        for seed, result in row.done.items():
            values = {name: result[name] for name in names}
            for head, metrics in result["heads"].items():
                values |= {f"{head}_{metric}": metrics[metric] for metric in ("loss", "top1")}
            lines.append({"config": row.name, "seed": seed} | values)
    return csv_text(lines, ("config", "seed", *names, *heads))
