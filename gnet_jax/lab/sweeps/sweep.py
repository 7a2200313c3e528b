"""The files of a sweep: DIR/sweep.json, and result.json in each run's workdir DIR/CONFIG/seed-N."""

import dataclasses
import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gnet_jax.config import (
    Config,
    ConfigError,
    Sweep,
    UserError,
    change,
    differences,
    flatten,
    json_text,
    suggestion,
)
from gnet_jax.lab.sweeps.compare import Difference, paired_difference, validation_margin
from gnet_jax.training.workdir import CONFIG_FILE, RECORD_FILE, locked

SWEEP_FILE = "sweep.json"
RESULT_FILE = "result.json"
HOLDOUT = "#holdout=10%"  # added to the data source of tuning runs


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep: the config `name` with a seed, or a tuning run with a learning rate."""

    name: str
    seed: int
    workdir: Path
    learning_rate: float | None = None  # of a tuning run, which trains without the held-out images

    @property
    def result(self) -> dict[str, Any] | None:
        """The content of result.json; None if it is missing. Raises UserError if it is corrupt."""
        found = read_json(self.workdir / RESULT_FILE)
        needed = {"done": "top1", "failed": "error"}
        if found is not None and found.get(needed.get(found.get("status", ""), "")) is None:
            raise UserError(f"{self.workdir / RESULT_FILE} is corrupt; move it away")
        return found

    def __str__(self) -> str:
        rate = self.learning_rate
        return f"{self.name}, " + (f"seed {self.seed}" if rate is None else f"tuning {rate:g}")


def list_cells(workdir: Path, first_seeds: Mapping[str, int], seeds: int) -> list[Cell]:
    """Returns the runs of a sweep: `seeds` runs of each config, starting at its first seed."""
    return [
        Cell(name, seed, workdir / name / f"seed-{seed}")
        for name, first in first_seeds.items()
        for seed in range(first, first + seeds)
    ]


def plan_cells(workdir: Path, sweep: Sweep) -> list[list[Cell]]:
    """Returns groups of runs in the order of training; runs of other groups do not depend on them.

    A group is a single run or, if the learning rate is tuned, the tuning runs of a family followed
    by all runs of its configs.
    """
    first_seeds = {name: config.seed for name, config in sweep.configs.items()}
    cells = list_cells(workdir, first_seeds, sweep.seeds)
    if not sweep.learning_rates:
        return [[cell] for cell in cells]
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        family = sweep.families.get(cell.name, cell.name)
        if family not in groups:
            groups[family] = tuning_cells(
                workdir, family, first_seeds[family], sweep.learning_rates
            )
        groups[family].append(cell)
    return list(groups.values())


def tuning_cells(workdir: Path, name: str, seed: int, rates: Sequence[float]) -> list[Cell]:
    """Returns the tuning runs of a config, one for each learning rate, in ascending order."""
    return [Cell(name, seed, workdir / name / f"tune-{r:g}", r) for r in sorted(set(rates))]


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The learning rates that were tried for a family, with their top-1 on the held-out images."""

    tried: dict[float, float | None]  # None if the run failed
    images: int  # number of held-out images

    @property
    def best(self) -> float | None:
        """The rate with the highest top-1; the smaller one if two are equal."""
        found = {rate: top1 for rate, top1 in self.tried.items() if top1 is not None}
        return max(found, key=lambda rate: found[rate], default=None)

    @property
    def note(self) -> str:
        """The best rate, all tried ones, and warnings: rates as good as it, or the best at an edge.

        A rate counts as good as the best if its top-1 is within the error of the held-out images.
        """
        shown = ", ".join(
            f"{rate:g}: " + ("failed" if top1 is None else f"{top1:.2%}")
            for rate, top1 in self.tried.items()
        )
        best = self.best
        if best is None:
            return f"all learning rates failed ({shown})"
        text = f"learning rate {best:g} ({shown} of {self.images:,} held-out images)"
        top1 = self.tried[best] or 0.0
        margin = validation_margin(top1, self.images)
        near = [r for r, found in self.tried.items() if r != best and top1 - (found or 0) <= margin]
        if near:
            text += f"; not distinguishable from {', '.join(f'{rate:g}' for rate in near)}"
        if best in (min(self.tried), max(self.tried)) and len(self.tried) > 1:
            text += (
                "; the best of the tried rates is at their edge, so try others in a new --workdir"
            )
        return text


def read_tuning(cells: Iterable[Cell]) -> Tuning | None:
    """Returns the results of tuning runs; None unless all of them have ended."""
    results = {cell.learning_rate: cell.result for cell in cells if cell.learning_rate is not None}
    ended = {rate: result for rate, result in results.items() if result is not None}
    if not results or len(ended) < len(results):
        return None
    images = max(result.get("val_images", 0) for result in ended.values())
    return Tuning({rate: result.get("top1") for rate, result in ended.items()}, images)


def config_of(cell: Cell, config: Config, tuned: float | None) -> Config:
    """Returns the config to train: that of the sweep, with the learning rate to try or `tuned`."""
    if cell.learning_rate is not None:
        source, tuned = config.data.source + HOLDOUT, cell.learning_rate
        config = change(config, {"data.source": source})
    return config if tuned is None else change(config, {"optim.learning_rate": tuned})


def select_shard(costs: Sequence[float], index: int, shards: int) -> list[int]:
    """Returns the positions of the groups in shard `index`: about 1/`shards` of the total cost.

    A shard is a contiguous range, because neighbouring runs share their config's compiled step.
    """
    middles = np.cumsum(costs) - np.divide(costs, 2)
    shard = np.minimum(middles / (sum(costs) or 1.0) * shards, shards - 1).astype(int)
    return np.flatnonzero(shard == index).tolist()


def open_sweep(workdir: Path, sweep: Sweep, about: str) -> list[str]:
    """Add the configs of `sweep` to `sweep.json`; returns the names of those that have changed.

    A config may change as long as none of its runs has a checkpoint or a result; what failed runs
    have left is then deleted. Otherwise raises a ConfigError. Raises it too if writing fails.
    """
    file = workdir / SWEEP_FILE
    new = {name: flatten(config) for name, config in sweep.configs.items()}
    if sweep.learning_rates:
        for name, config in new.items():
            config["tuning.learning_rates"] = sorted(set(sweep.learning_rates))
            config["tuning.family"] = sweep.families.get(name, name)
    record = _read_record(file) or {"configs": {}, "seeds": 0}
    old = record["configs"]
    changed = {name: differences(old[name], new[name]) for name in old if name in new}
    changed = {name: fields for name, fields in changed.items() if fields}
    runs = {
        name: [*(workdir / name).glob("seed-*"), *(workdir / name).glob("tune-*")]
        for name in changed
    }
    for name, fields in changed.items():
        for run in runs[name]:
            if was_trained(run):
                raise ConfigError(
                    f"config {name!r} differs from the sweep's in {workdir} ({'; '.join(fields)}), "
                    f"but {run.name} was trained with it; use another --workdir, or use the old "
                    "values to resume"
                )
    record = {
        "about": about,
        "seeds": max(sweep.seeds, record["seeds"]),
        "baseline": sweep.baseline or record.get("baseline") or next(iter(sweep.configs)),
        "configs": old | new,
    }
    try:
        for run in itertools.chain(*runs.values()):
            if (run / "lock").exists():
                with locked(run):  # raises BusyError if another process has just started
                    pass
            shutil.rmtree(run)
        workdir.mkdir(parents=True, exist_ok=True)
        # Shards that start at the same time must not share a temporary file.
        with tempfile.NamedTemporaryFile("w", dir=workdir, delete=False, prefix=".") as partial:
            partial.write(json_text(record, indent=2) + "\n")
        os.chmod(partial.name, 0o644)
        os.replace(partial.name, file)
    except OSError as error:
        raise ConfigError(f"cannot write to the workdir {workdir}: {error.strerror}") from error
    return list(changed)


def was_trained(run: Path) -> bool:
    """Returns whether a run's workdir has a checkpoint or the result of a finished run."""
    ended = Cell(run.parent.name, 0, run).result
    return any(run.glob("checkpoints/*")) or (ended is not None and "top1" in ended)


def _read_record(file: Path) -> dict[str, Any] | None:
    found = read_json(file)
    if found is not None and not {"about", "seeds", "configs"} <= found.keys():
        raise UserError(f"{file} is corrupt; move it away")
    return found


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
    versions: frozenset[str] = frozenset()  # versions of the code that trained the finished runs
    data: dict[str, frozenset[str]] = dataclasses.field(default_factory=dict)  # split: fingerprints
    tuning: Tuning | None = None

    def values(self, *path: str) -> list[float]:
        """Returns one number of each finished result, such as `values("heads", "main", "loss")`."""
        found: list[Any] = list(self.done.values())
        for name in path:
            found = [each[name] for each in found if name in each]
        return [math.nan if each is None else each for each in found]

    @property
    def top1(self) -> float:
        """The mean top-1 of the finished runs; NaN if there is none."""
        return float(np.mean(self.values("top1"))) if self.done else math.nan

    def minus(self, other: "Row") -> Difference | None:
        """Returns the paired difference of top-1 from another config; None without common seeds."""
        own, others = ({s: r["top1"] for s, r in row.done.items()} for row in (self, other))
        images = {int(each) for row in (self, other) for each in row.values("val_images")}
        return paired_difference(own, others, min(images, default=None))


@dataclasses.dataclass(frozen=True)
class SweepRecord:
    """The content of `sweep.json`, and the results of the runs."""

    title: str  # the first line of the docstring of the sweep's file
    about: str  # the rest of the docstring
    configs: dict[str, dict[str, Any]]  # flattened, without workdir and seed, with tuned rates
    rows: list[Row]  # one for each config, in the same order
    baseline: Row


def read_sweep(workdir: Path, baseline: str | None = None) -> SweepRecord:
    """Returns the sweep in `workdir`; `baseline` is another config to compare the others with.

    Raises UserError if there is no sweep, or no such config.
    """
    found = _read_record(workdir / SWEEP_FILE)
    if found is None:
        raise UserError(f"{workdir} has no sweep (no {SWEEP_FILE}); gnet ablate creates one")
    title, _, about = found["about"].strip().partition("\n")
    configs = found["configs"]
    first_seeds = {name: config.pop("seed") for name, config in configs.items()}
    rows = {}
    for name, config in configs.items():
        del config["workdir"]
        family, rates = config.get("tuning.family", name), config.get("tuning.learning_rates", ())
        tuning = read_tuning(tuning_cells(workdir, family, first_seeds[family], rates))
        cells = list_cells(workdir, {name: first_seeds[name]}, found["seeds"])
        rows[name] = _read_row(name, cells, tuning)
        if config.get("tuning.family") == name:
            del config["tuning.family"]
        if tuning is not None and tuning.best is not None:
            config["optim.learning_rate"] = tuning.best
    chosen = baseline or found.get("baseline", next(iter(rows)))
    if chosen not in rows:
        known = suggestion(chosen, rows)
        raise UserError(f"no config {chosen!r} in the sweep in {workdir}; {known}")
    return SweepRecord(
        title or workdir.name, about.strip("\n"), configs, list(rows.values()), rows[chosen]
    )


def _read_row(name: str, cells: Sequence[Cell], tuning: Tuning | None) -> Row:
    row, versions, data = Row(name), set(), {"train": set(), "val": set()}
    for cell in cells:
        row.workdirs[cell.seed], result = cell.workdir, cell.result
        if result is None:
            row.missing.append(cell.seed)
        elif result["status"] == "done":
            row.done[cell.seed] = result
            for start in list_starts(cell.workdir):
                own = " ".join(hashed[:8] for hashed in start.get("own_code", {}).values())
                versions.add((str(start.get("code")), own))
            config = read_json(cell.workdir / CONFIG_FILE) or {}
            for split, prints in data.items():
                prints.add(str(config.get(f"data.fingerprint.{split}")))
        else:
            row.failed[cell.seed] = result["error"]
    prints = {split: frozenset(each) for split, each in data.items()}
    # The own code of a config is part of what is compared, unless it differs between the seeds.
    several = len({own for _, own in versions}) > 1
    codes = frozenset(
        f"{code}, own code {own or 'none'}" if several else code for code, own in versions
    )
    return dataclasses.replace(row, versions=codes, data=prints, tuning=tuning)


def list_starts(workdir: Path) -> list[dict[str, Any]]:
    """Returns the records of a run's starts in run.json; see `add_start`. Raises UserError."""
    try:
        record = read_json(workdir / RECORD_FILE) or {"starts": []}
        return [dict(start) for start in record["starts"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{workdir / RECORD_FILE} is corrupt; move it away") from error


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and the sample standard deviation, which is None for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def pareto_front(rows: Sequence[Row], cost: str) -> list[Row]:
    """Returns the rows on the Pareto front of `cost` and top-1, cheapest first.

    Each row is more accurate than the one before by a paired difference whose interval excludes
    zero. If no pair of rows has such a difference, returns an empty list.
    """
    front: list[Row] = []
    done = [row for row in rows if row.done]
    for row in sorted(done, key=lambda row: (row.values(cost)[0], -row.top1)):
        difference = row.minus(front[-1]) if front else None
        if not front or (difference is not None and difference.verdict == "higher"):
            front.append(row)
    return front if len(front) > 1 else []
