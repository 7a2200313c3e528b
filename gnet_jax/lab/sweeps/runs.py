"""Runs as data: list the runs in folders, compare their configs, and write their logs as CSV."""

import csv
import dataclasses
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Column, Table
from rich.text import Text

from gnet_jax.config import UserError
from gnet_jax.config.paths import as_text
from gnet_jax.lab.sweeps.sweep import RESULT_FILE, read_json
from gnet_jax.training.observe.console import duration, total_seconds
from gnet_jax.training.observe.diagnostics import FILE as DIAGNOSTICS_FILE
from gnet_jax.training.workdir import CONFIG_FILE, RECORD_FILE, MetricsFile, replacing

METRICS_FILE = "metrics.jsonl"
COLUMNS = ("run", "seed", "step", "source", "metric", "value")  # of the CSV file
FINGERPRINT = "data.fingerprint."
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What the files in a workdir say about its run; a missing or corrupt file counts as empty."""

    name: str
    workdir: Path
    config: dict[str, Any]
    starts: list[dict[str, Any]]
    seconds: float  # wall time of all starts
    result: dict[str, Any]  # only runs of a sweep have one
    metrics: list[dict[str, Any]]
    problems: list[str]

    @property
    def step(self) -> int | None:
        """The last finished step, or None if none was recorded."""
        return self._last_start.get("reached", self.result.get("step"))

    @property
    def total_steps(self) -> int | None:
        """The step at which the run ends, or None if an earlier version did not record it."""
        return self._last_start.get("total_steps", self.result.get("step"))

    @property
    def _last_start(self) -> dict[str, Any]:
        return self.starts[-1] if self.starts else {}

    @property
    def versions(self) -> list[str]:
        """The code versions of all starts, without repetitions, oldest first."""
        return list(dict.fromkeys(start["code"] for start in self.starts if "code" in start))

    @property
    def status(self) -> str:
        """Returns "finished", or why the results are missing or incomplete."""
        if self.problems:
            return "; ".join(self.problems)
        if self.step is None:
            return "no step recorded"
        if self.total_steps is None:
            return "number of steps unknown"
        return "finished" if self.step >= self.total_steps else "unfinished"


def list_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Returns the runs in and below `folders`, in natural order; raises UserError if there is none.

    A run's name is its path relative to the folder, or, if several folders are given, its path.
    """
    found: dict[str, tuple[str, Path]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; give a folder that contains workdirs")
        for workdir in _find_workdirs(folder):
            inside = str(workdir.relative_to(folder))
            name = str(workdir) if len(folders) > 1 or inside == "." else inside
            found.setdefault(os.path.realpath(workdir), (as_text(name), workdir))
    if not found:
        places = ", ".join(map(str, folders))
        raise UserError(f"no run found in {places}; give a folder that contains workdirs")
    return [_read_run(*each) for each in sorted(found.values(), key=_natural_order)]


def _natural_order(named: tuple[str, Path]) -> list[Any]:
    """Returns a key that sorts seed-2 before seed-10: texts and numbers alternate in it."""
    parts = re.split(r"([0-9]+)", named[0])
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def _find_workdirs(folder: Path) -> Iterator[Path]:
    """Yields the folders that contain the record of a run."""

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error

    seen: set[str] = set()  # because symbolic links can form a loop
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        place = os.path.realpath(parent)
        inside = () if place in seen else folders
        folders[:] = [name for name in inside if name not in ("checkpoints", "tensorboard")]
        seen.add(place)
        if not {RECORD_FILE, RESULT_FILE, METRICS_FILE}.isdisjoint(files):
            yield Path(parent)


def _read_run(name: str, workdir: Path) -> RunRecord:
    problems: list[str] = []

    def attempt(read: Callable[[Path], T], file: str, otherwise: T) -> T:
        try:
            return read(workdir / file)
        except UserError as error:
            problems.append(str(error).replace(f"{workdir}{os.sep}", "", 1))
            return otherwise

    result = attempt(read_json, RESULT_FILE, {}) or {}
    if result.get("status") == "failed":  # possibly before its other files were written
        problems.append(f"failed: {result.get('error')}")
    config, record = (attempt(read_json, file, {}) for file in (CONFIG_FILE, RECORD_FILE))
    for file, found in ((CONFIG_FILE, config), (RECORD_FILE, record)):
        if found is None and not problems:
            problems.append(f"{file} is missing")
    try:
        starts = [dict(start) for start in record["starts"]] if record else []
        seconds = sum(total_seconds(starts).values())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problems.append(f"{RECORD_FILE} is corrupt ({error!r}); move it away")
        starts, seconds = [], 0.0
    metrics = attempt(_read_log, METRICS_FILE, [])
    return RunRecord(name, workdir, config or {}, starts, seconds, result, metrics, problems)


def _read_log(file: Path) -> list[dict[str, Any]]:
    try:
        return MetricsFile(file).read()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


def name_runs(workdirs: Sequence[Path]) -> dict[str, Path]:
    """Returns the runs by name: the shortest ends of their paths that differ, of equal length."""
    paths = {Path(os.path.abspath(workdir)).parts: workdir for workdir in workdirs}
    for length in itertools.count(1):
        names = {os.path.join(*parts[-length:]): workdir for parts, workdir in paths.items()}
        if len(names) == len(paths):
            return names
    raise AssertionError


def differing_fields(configs: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """Returns the fields in which configs differ, with their values in the order of `configs`."""
    configs = list(configs)
    fields = dict.fromkeys(itertools.chain(*configs))
    values = {field: [json.dumps(config.get(field)) for config in configs] for field in fields}
    return {field: found for field, found in values.items() if len(set(found)) > 1}


def describe_differences(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Returns for each config its values of the fields that differ: "batch_size=8, seed=1".

    A value is left out if more than half of the configs have it. Workdirs are left out too, and
    fingerprints of data that follow from other fields. An empty config is unknown and gives "".
    """
    known = [config for config in configs if config]
    fields = differing_fields(known)
    hidden = {"workdir", f"{FINGERPRINT}order"}
    if "data.source" in fields:
        hidden |= {field for field in fields if field.startswith(FINGERPRINT)}
    ends = Counter(field.rpartition(".")[2] for field in fields)
    shown: list[list[str]] = [[] for _ in known]
    for field in fields.keys() - hidden:
        end = field.rpartition(".")[2]
        name = end if ends[end] == 1 else field
        counts = Counter(fields[field])
        for texts, value in zip(shown, fields[field], strict=True):
            if 2 * counts[value] <= len(known):
                texts.append(f"{name}={_shorten(value)}")
    lines = map(", ".join, map(sorted, shown))
    return [next(lines) if config else "" for config in configs]


def _shorten(value: str) -> str:
    text = value.replace('"', "").replace("null", "none")
    return text if len(text) <= 32 else f"{text[:31]}\N{HORIZONTAL ELLIPSIS}"


def runs_table(runs: Sequence[RunRecord]) -> Table:
    """Returns a table for a terminal: config, progress, accuracy, time and code of each run."""
    left = ("run", "config, where it differs")
    right = ("step", "top-1", "best top-1", "wall time")
    table = Table(
        *(Column(name, overflow="fold") for name in left),
        *(Column(name, justify="right", overflow="fold") for name in right),
        *(Column(name, overflow="fold") for name in ("code", "status")),
    )
    codes = Counter(version for run in runs for version in run.versions)
    usual = [version for version, _ in codes.most_common(1)]
    differences = describe_differences([run.config for run in runs])
    for run, differs in zip(runs, differences, strict=True):
        top1 = [line["val/top1"] for line in run.metrics if "val/top1" in line]
        finite = [value for value in top1 if math.isfinite(value)]
        code = run.versions[-1][:14] if run.versions else ""
        total = "" if run.total_steps is None else f" of {run.total_steps:,}"
        cells = (
            run.name,
            differs,
            "" if run.step is None else f"{run.step:,}{total}",
            f"{top1[-1]:.2%}" if top1 else "",
            f"{max(finite):.2%}" if finite else "",
            duration(run.seconds) if run.seconds else "",
            code if run.versions == usual or not code else f"{code} *",
            run.status,
        )
        table.add_row(*map(Text, cells))
    if len(codes) > 1:
        table.caption = "* another version of the code than most of these runs, or several versions"
        table.caption_justify = "left"
    return table


def write_metrics(runs: Sequence[RunRecord], out: Path) -> int:
    """Write all logged numbers, unrounded, as CSV with `COLUMNS`; returns the number of lines."""
    count = 0
    try:
        with replacing(out) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for line in _csv_lines(runs):
                writer.writerow(line)
                count += 1
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from error
    return count


def _csv_lines(runs: Sequence[RunRecord]) -> Iterator[tuple[Any, ...]]:
    for run in runs:
        diagnostics = _read_log(run.workdir / DIAGNOSTICS_FILE)
        for source, lines in (("metrics", run.metrics), ("diagnostics", diagnostics)):
            for line in lines:
                for metric, value in line.items():
                    if metric != "step":
                        yield run.name, run.config.get("seed"), line["step"], source, metric, value
