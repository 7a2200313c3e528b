"""Runs as data: list the runs in folders, compare their configs, and write their logs as CSV."""

import csv
import dataclasses
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from gnet_jax.config import UserError
from gnet_jax.config.paths import as_text
from gnet_jax.lab.sweeps.sweep import RESULT_FILE, read_json
from gnet_jax.training.observe.console import duration, total_seconds
from gnet_jax.training.workdir import CONFIG_FILE, RECORD_FILE, MetricsFile, replacing

LOGS = ("metrics", "diagnostics")  # the names of JSON Lines files
COLUMNS = ("run", "seed", "step", "source", "metric", "value")  # of the CSV file


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What the files in a workdir say about its run. A missing or corrupt file counts as empty."""

    name: str
    config: dict[str, Any]
    logs: dict[str, list[dict[str, Any]]]  # by the names in LOGS
    step: int | None  # the last finished step
    total_steps: int | None
    seconds: float  # wall time of all starts
    versions: list[str]  # of the code, without repetitions, oldest first
    status: str  # "finished", or why the results are missing or incomplete


def list_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Returns the runs in and below `folders`, in natural order; raises UserError if there is none.

    A run's name is its path relative to the folder, or, if several folders are given, its path.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error

    found, seen = [], set()
    for folder in folders:
        for parent, inside, files in os.walk(folder, onerror=refuse, followlinks=True):
            place = os.path.realpath(parent)
            if place in seen:  # links can form a loop
                inside.clear()
                continue
            seen.add(place)
            if not {RECORD_FILE, RESULT_FILE, "metrics.jsonl"}.isdisjoint(files):
                short = len(folders) == 1 and Path(parent) != folder
                name = os.path.relpath(parent, folder) if short else parent
                found.append(_read_run(as_text(name), Path(parent)))
    if not found:
        places = ", ".join(map(str, folders))
        raise UserError(f"no run found in {places}; give a folder that contains workdirs")
    numbers = re.compile(r"(\d+)")
    return sorted(
        found, key=lambda run: [int(x) if x.isdecimal() else x for x in numbers.split(run.name)]
    )


def _read_run(name: str, workdir: Path) -> RunRecord:
    files: dict[str, Any] = {}
    problems: list[str] = []
    readers: dict[str, Any] = dict.fromkeys((CONFIG_FILE, RECORD_FILE, RESULT_FILE), read_json)
    readers |= {f"{log}.jsonl": lambda file: MetricsFile(file).read() for log in LOGS}
    for file, read in readers.items():
        try:
            files[file] = read(workdir / file)
        except (UserError, OSError) as error:
            problems.append(str(error).replace(f"{workdir}{os.sep}", ""))
    result = files.get(RESULT_FILE) or {}
    if result.get("status") == "failed":  # possibly before its other files were written
        problems.append(f"failed: {result.get('error')}")
    elif missing := [file for file in (CONFIG_FILE, RECORD_FILE) if files.get(file, {}) is None]:
        problems.append(f"{' and '.join(missing)} missing")
    starts, seconds = [], 0.0
    try:
        starts = [dict(start) for start in (files.get(RECORD_FILE) or {"starts": []})["starts"]]
        seconds = sum(total_seconds(starts).values())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problems.append(f"{RECORD_FILE} is corrupt ({error!r}); move it away")
    last = starts[-1] if starts else {}
    step, total = (last.get(key, result.get("step")) for key in ("reached", "total_steps"))
    if step is None or total is None:  # earlier versions did not record the total
        state = "unfinished" if step is None else "number of steps not recorded"
    else:
        state = "finished" if step >= total else "unfinished"
    versions = list(dict.fromkeys(start["code"] for start in starts if "code" in start))
    logs = {log: files.get(f"{log}.jsonl", []) for log in LOGS}
    config, status = files.get(CONFIG_FILE) or {}, "; ".join(problems) or state
    return RunRecord(name, config, logs, step, total, seconds, versions, status)


def name_runs(workdirs: Sequence[Path]) -> dict[str, Path]:
    """Returns the runs by name: the shortest ends of their paths that differ, of equal length."""
    paths = {Path(os.path.abspath(workdir)).parts: workdir for workdir in workdirs}
    lengths = range(1, 1 + max(map(len, paths)))
    ends = ({os.path.join(*parts[-n:]): run for parts, run in paths.items()} for n in lengths)
    return next(names for names in ends if len(names) == len(paths))


def differing_fields(configs: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """Returns the fields in which configs differ, with their values in the order of `configs`."""
    configs = list(configs)
    fields = dict.fromkeys(itertools.chain(*configs))
    values = {field: [json.dumps(config.get(field)) for config in configs] for field in fields}
    return {field: found for field, found in values.items() if len(set(found)) > 1}


def describe_differences(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Returns for each config its values of the fields that differ: "batch_size=8, seed=1".

    A value is left out if more than half of the configs have it. So are workdirs and fingerprints.
    """
    shown: list[list[str]] = [[] for _ in configs]
    for field, values in differing_fields(configs).items():
        if field == "workdir" or field.startswith("data.fingerprint."):
            continue
        counts = Counter(values)
        for texts, value in zip(shown, values, strict=True):
            if 2 * counts[value] <= len(configs):
                text = {"null": "unset", "[]": "none"}.get(value, value.replace('"', ""))
                short = text if len(text) <= 32 else f"\N{HORIZONTAL ELLIPSIS}{text[-31:]}"
                texts.append(f"{field.rpartition('.')[2]}={short}")
    return list(map(", ".join, shown))


def runs_table(runs: Sequence[RunRecord]) -> Table:
    """Returns a table for a terminal: config, progress, accuracy, time and code of each run."""
    header = ("run", "differs in", "step", "top-1", "best top-1", "wall time", "code", "status")
    table = Table(*(Column(name, overflow="fold") for name in header))
    codes = Counter(version for run in runs for version in run.versions)
    usual = [version for version, _ in codes.most_common(1)]
    differences = iter(describe_differences([run.config for run in runs if run.config]))
    for run in runs:
        top1 = [line["val/top1"] for line in run.logs["metrics"] if "val/top1" in line]
        steps = [f"{each:,}" for each in (run.step, run.total_steps) if each is not None]
        cells = (
            run.name,
            next(differences) if run.config else "",
            " of ".join(steps),
            f"{top1[-1]:.2%}" if top1 else "",
            f"{max(top1):.2%}" if top1 else "",
            duration(run.seconds) if run.seconds else "",
            "".join(v[:14] for v in run.versions[-1:]) + " *" * (run.versions not in ([], usual)),
            run.status,
        )
        table.add_row(*map(Text, cells))
    if len(codes) > 1:
        table.caption = "* another version of the code than most of these runs, or several versions"
    return table


def write_metrics(runs: Sequence[RunRecord], out: Path) -> int:
    """Write all logged numbers, unrounded, as CSV with `COLUMNS`; returns the number of lines."""
    lines = [
        (run.name, run.config.get("seed"), line["step"], source, metric, value)
        for run in runs
        for source, log in run.logs.items()
        for line in log
        for metric, value in line.items()
        if metric != "step"
    ]
    try:
        with replacing(out) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines])
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from error
    return len(lines)
