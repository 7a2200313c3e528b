"""What the runs of a sweep came to: one row a config, means and spreads over its seeds."""

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from gnet_jax.lab.sweeps.sweep import RESULT_FILE, SweepRecord, read_json


@dataclasses.dataclass(frozen=True)
class Row:
    """A config's runs. Costs are None before the first of them is done."""

    name: str
    done: dict[int, dict[str, Any]]  # results by seed
    failed: dict[int, str]  # what went wrong, by seed
    missing: tuple[int, ...]  # seeds that have not ended yet
    workdirs: dict[int, Path]  # of every seed

    def cost(self, name: str) -> int | None:
        """`params`, `params_with_aux`, `macs` or `memory_bytes`: the same for every seed."""
        return next(iter(self.done.values()))[name] if self.done else None

    @property
    def top1(self) -> list[float]:
        """Validation top-1 (a share of 1) of every finished seed, after the last step."""
        return [result["top1"] for result in self.done.values()]

    @property
    def images_per_sec(self) -> float | None:
        """Median over the seeds of the training speed."""
        speeds = [result["images_per_sec"] for result in self.done.values()]
        return statistics.median(speeds) if speeds else None

    @property
    def heads(self) -> dict[str, list[dict[str, float]]]:
        """`loss` and `top1` of each head on the validation images, seed by seed; NaN for null."""
        found: dict[str, list[dict[str, float]]] = {}
        for result in self.done.values():
            for head, values in result["heads"].items():
                known = {name: math.nan if x is None else x for name, x in values.items()}
                found.setdefault(head, []).append(known)
        return found


def rows_of(sweep: SweepRecord) -> list[Row]:
    """A row for every config of a sweep, in its order, finished or not."""
    rows = {name: Row(name, {}, {}, (), {}) for name in sweep.configs}
    for name, seed, workdir in sweep.runs():
        row, result = rows[name], read_json(workdir / RESULT_FILE)
        row.workdirs[seed] = workdir
        if result is None:
            rows[name] = dataclasses.replace(row, missing=(*row.missing, seed))
        elif result["status"] == "done":
            row.done[seed] = result
        else:
            row.failed[seed] = result["error"]
    return list(rows.values())


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and the sample standard deviation: None of fewer than two, NaN of a NaN."""
    if len(values) < 2:
        return statistics.fmean(values), None
    finite = all(map(math.isfinite, values))  # `stdev` raises AttributeError otherwise
    return statistics.fmean(values), statistics.stdev(values) if finite else math.nan


def pareto_front(rows: Sequence[Row], cost: str) -> list[Row]:
    """The rows that no other beats: none is as cheap or cheaper and more accurate, by the means.

    Args:
        rows: those without a finished run are left out.
        cost: "macs" or "params".

    Returns:
        The front, from the cheapest on.
    """
    front: list[Row] = []
    done = [row for row in rows if row.done]
    for row in sorted(done, key=lambda row: (row.cost(cost), -statistics.fmean(row.top1))):
        if not front or statistics.fmean(row.top1) > statistics.fmean(front[-1].top1):
            front.append(row)
    return front


# What stands above the columns of the table; the losses of the heads follow.
COLUMNS = (
    "config",
    "top-1",
    "multiply-adds",
    "parameters",
    "with aux heads",
    "images/s",
    "step memory",
    "runs",
)


def cells_of_row(row: Row) -> list[tuple[str, float | None]]:
    """The row under `COLUMNS`: (text, value to sort by)."""

    def count(name: str) -> tuple[str, float | None]:
        value = row.cost(name)
        return ("", None) if value is None else (f"{value:,}", value)

    memory, speed = row.cost("memory_bytes"), row.images_per_sec
    runs = f"{len(row.done)} of {len(row.workdirs)}"
    return [
        (row.name, None),
        _of_seeds(row.top1, percent=True),
        count("macs"),
        count("params"),
        count("params_with_aux"),
        ("", None) if speed is None else (f"{speed:,.0f}", speed),
        ("", None) if memory is None else (f"{memory / 2**20:,.0f} MiB", memory),
        (f"{runs}, {len(row.failed)} failed" if row.failed else runs, len(row.done)),
    ]


def head_cells(row: Row, heads: Sequence[str]) -> list[tuple[str, float | None]]:
    """Loss of each of `heads` on the validation images, empty where the config has no such head."""
    found = row.heads
    return [_of_seeds([each["loss"] for each in found.get(head, [])]) for head in heads]


def all_heads(rows: Sequence[Row]) -> list[str]:
    """The heads of any row, main first."""
    names = {head for row in rows for head in row.heads}
    return sorted(names, key=lambda head: (head != "main", head))


def failures(rows: Sequence[Row]) -> list[str]:
    """One sentence for each run that failed."""
    return [
        f"{row.name}, seed {seed}: {error}" for row in rows for seed, error in row.failed.items()
    ]


def _of_seeds(values: Sequence[float], *, percent: bool = False) -> tuple[str, float | None]:
    if not values:
        return "", None
    mean, spread = mean_and_spread(values)
    scale, digits, unit = (100, 2, " %") if percent else (1, 3, "")
    text = f"{mean * scale:.{digits}f}"
    if spread is not None:
        text += f" \N{PLUS-MINUS SIGN} {spread * scale:.{digits}f}"
    return text + unit, mean


LEGEND = (
    "top-1 and losses: validation images, after the last step; mean \N{PLUS-MINUS SIGN} sample "
    "standard deviation over the seeds. images/s: median training speed. step memory: of one "
    "training step, by XLA's plan."
)


def header(rows: Sequence[Row]) -> list[str]:
    """What stands above the columns."""
    return [*COLUMNS, *(f"{head} loss" for head in all_heads(rows))]


def results_table(rows: Sequence[Row], title: str) -> Table:
    """The table for a terminal."""
    table = Table(title=title, title_justify="left")
    for name in header(rows):
        justify = "left" if name == "config" else "right"
        table.add_column(name, justify=justify, overflow="fold")  # no figure is cut
    for row in rows:
        cells = [*cells_of_row(row), *head_cells(row, all_heads(rows))]
        table.add_row(*(text for text, _ in cells))
    return table


def csv_of_runs(rows: Sequence[Row]) -> str:
    """A line for every finished run, its figures unrounded: shares of 1, bytes, images a second."""
    heads = all_heads(rows)
    costs = ("macs", "params", "params_with_aux", "memory_bytes", "images_per_sec")
    of_heads = [f"{head}_{figure}" for head in heads for figure in ("loss", "top1")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("config", "seed", "top1", *costs, *of_heads))
    for row in rows:
        for seed, result in row.done.items():
            found = [result["heads"].get(head, {}) for head in heads]
            values = [each.get(figure) for each in found for figure in ("loss", "top1")]
            writer.writerow((row.name, seed, result["top1"], *map(result.get, costs), *values))
    return out.getvalue()


def markdown_table(rows: Sequence[Row]) -> str:
    """The table in Markdown."""
    names = header(rows)
    lines = [names, ["---", *["---:"] * (len(names) - 1)]]
    lines += [
        [text for text, _ in [*cells_of_row(row), *head_cells(row, all_heads(rows))]]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
