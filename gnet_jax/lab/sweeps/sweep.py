"""A sweep on disk: its runs, each in a workdir of its own, and what became of them.

DIR/sweep.json holds the configs; DIR/CONFIG/seed-N is the workdir of a run, and its result.json
says how it ended.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gnet_jax.config import Config, ConfigError, UserError, differences, flatten, json_text
from gnet_jax.training.workdir import write_json

SWEEP_FILE = "sweep.json"
RESULT_FILE = "result.json"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep: a config with one of its seeds."""

    name: str  # of the config
    config: Config  # with the run's own seed and workdir

    @property
    def workdir(self) -> Path:
        """Where the run keeps its checkpoints, logs and result."""
        return Path(self.config.workdir)

    @property
    def result(self) -> dict[str, Any] | None:
        """What its `result.json` holds; None before the run has ended."""
        return read_json(self.workdir / RESULT_FILE)

    def write_result(self, values: Mapping[str, Any]) -> None:
        """Keep how the run ended."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        write_json(self.workdir / RESULT_FILE, values)


def cells_of(configs: Mapping[str, Config], seeds: int, workdir: Path) -> list[Cell]:
    """Every run of a sweep: config by config, seed by seed."""
    return [
        Cell(
            name,
            dataclasses.replace(config, seed=seed, workdir=str(folder_of(workdir, name, seed))),
        )
        for name, config in configs.items()
        for seed in range(config.seed, config.seed + seeds)
    ]


def folder_of(workdir: Path, name: str, seed: int) -> Path:
    """The workdir of the run of config `name` with `seed`."""
    return workdir / name / f"seed-{seed}"


def share_of(costs: Sequence[float], index: int, shards: int) -> list[int]:
    """The places of shard `index` in a list of runs: `shards` stretches of about the same cost.

    A stretch, since neighbours are the seeds of one config and share its compilation. Every run is
    in exactly one shard.
    """
    whole, before, mine = sum(costs) or 1.0, 0.0, []
    for place, cost in enumerate(costs):
        middle = before + cost / 2
        if min(int(middle / whole * shards), shards - 1) == index:
            mine.append(place)
        before += cost
    return mine


def open_sweep(workdir: Path, configs: Mapping[str, Config], seeds: int, about: str) -> None:
    """Write `sweep.json`, after a check that the folder belongs to this sweep.

    A later start may add configs and seeds; what is there already must be as it was.

    Raises:
        ConfigError: naming a config and its differing fields, or why the folder cannot be written.
    """
    file = workdir / SWEEP_FILE
    now = {name: flatten(config) for name, config in configs.items()}
    old = read_json(file)
    known: dict[str, Any] = {} if old is None else old["configs"]
    for name in known.keys() & now.keys():
        changed = differences(known[name], now[name])
        if changed:
            raise ConfigError(
                f"{workdir} holds a sweep in which {name!r} has another config "
                f"({'; '.join(changed)}); use another --workdir, or the old values to go on with it"
            )
    known_seeds = 0 if old is None else old["seeds"]
    record = {"about": about, "seeds": max(seeds, known_seeds), "configs": known | now}
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # Shards start at the same time, and each writes the same.
        with tempfile.NamedTemporaryFile("w", dir=workdir, delete=False, prefix=".") as partial:
            partial.write(json_text(record, indent=2) + "\n")
        os.chmod(partial.name, 0o644)
        os.replace(partial.name, file)
    except OSError as error:
        raise ConfigError(f"cannot write to the workdir {workdir}: {error.strerror}") from error


@dataclasses.dataclass(frozen=True)
class SweepRecord:
    """What a sweep's folder holds of its plan."""

    workdir: Path
    about: str  # the docstring of its file
    seeds: int
    configs: dict[str, dict[str, Any]]  # flattened, by name, in order

    def runs(self) -> list[tuple[str, int, Path]]:
        """(config, seed, workdir) of every run, done or not."""
        return [
            (name, seed, folder_of(self.workdir, name, seed))
            for name, config in self.configs.items()
            for seed in range(config["seed"], config["seed"] + self.seeds)
        ]


def read_sweep(workdir: Path) -> SweepRecord:
    """The plan of the sweep in `workdir`.

    Raises:
        UserError: if there is none.
    """
    found = read_json(workdir / SWEEP_FILE)
    if found is None:
        raise UserError(f"{workdir} holds no sweep (no {SWEEP_FILE}); gnet ablate makes one")
    return SweepRecord(workdir, found["about"], found["seeds"], found["configs"])


def read_json(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no such file.

    Raises:
        UserError: if it is damaged.
    """
    try:
        return dict(json.loads(file.read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}); move it away") from error
