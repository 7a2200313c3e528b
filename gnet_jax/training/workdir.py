"""The run record in the workdir: which config, data, versions, seed, commit and devices made it."""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from gnet_jax import __version__
from gnet_jax.config import Config, ConfigError, differences, flatten, json_text
from gnet_jax.data.sources.classes import integers
from gnet_jax.training.hosts.supervise import RESTART

CONFIG_FILE = "config.json"
CLASSES = "data.fingerprint.classes"  # in that file; workdirs of earlier versions lack it
RECORD_FILE = "run.json"

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
DECODERS = ("simplejpeg", "opencv-python-headless")  # the extra [fast]


def open_workdir(config: Config, fingerprints: Mapping[str, Any]) -> Path:
    """The run's folder, made if need be, after a check that it belongs to this very run.

    The first process holds the folder's lock meanwhile: the config of a run that is under way there
    stays as it is.

    Args:
        config: the run's; a folder that holds another is refused, save for fields that do not
            touch the numbers.
        fingerprints: of the data, by split, and of their order; and `classes`, a list of names.

    Raises:
        ConfigError: naming every differing field, or why the folder cannot be written.
        BusyError: as `locked`.
    """
    workdir = Path(config.workdir).expanduser()
    identity = flatten(config) | {f"data.fingerprint.{k}": v for k, v in fingerprints.items()}
    first = jax.process_index() == 0
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
        with locked(workdir) if first else contextlib.nullcontext():
            _check_owner(workdir, identity)
            if first:
                write_json(workdir / CONFIG_FILE, identity)
    except OSError as error:
        raise _unwritable(workdir, error) from error
    return workdir


def _check_owner(workdir: Path, identity: dict[str, Any]) -> None:
    """Refuse a folder that holds another run.

    Raises:
        ConfigError: naming every differing field.
    """
    file, checkpoints = workdir / CONFIG_FILE, workdir / "checkpoints"
    if (checkpoints.exists() or checkpoints.is_symlink()) and not checkpoints.is_dir():
        raise ConfigError(
            f"{checkpoints} is no folder, or a link to none, so nothing can be saved there; mount "
            "its disk, take it away, or use another --workdir"
        )
    if not file.is_file() and checkpoints.is_dir():
        raise ConfigError(
            f"{workdir} has checkpoints but no {CONFIG_FILE}, so nothing tells whose they are; "
            "use another --workdir"
        )
    if file.is_file():
        try:
            old = json.loads(file.read_text())
            if not isinstance(old, dict):
                raise TypeError(f"it holds a {type(old).__name__}")
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{file} is damaged ({error}); bring it back from a copy, or use another --workdir"
            ) from error
        classes: list[str] = identity.get(CLASSES, [])
        recorded = CLASSES in old
        _check_classes(workdir, old.setdefault(CLASSES, identity.get(CLASSES)) or [], classes)
        changed = differences(old, identity)
        if [each.partition(":")[0] for each in changed] == ["data.fingerprint.order"]:
            raise ConfigError(
                f"the data would come in another order than {workdir} was trained in ({changed[0]})"
                f": this Grain or NumPy shuffles otherwise; install the versions in {RECORD_FILE} "
                "to go on, or use another --workdir"
            )
        names = [each.partition(":")[0] for each in changed]
        if names and all(name.startswith("data.fingerprint.") for name in names):
            # Another number of images comes in another order, too.
            parts = [name.rpartition(".")[2] for name in names]
            splits = " and ".join(part for part in parts if part != "order")
            reasons = "images were added, removed, renamed or labelled otherwise"
            if not recorded and integers(classes) and sorted(classes) != classes:
                reasons += (
                    ", or class folders sorted as numbers and no longer as text: the version that "
                    "trained it can convert it"
                )
            raise ConfigError(
                f"the data have changed since {workdir} was trained on them ({splits} split: "
                f"{reasons}); bring them back, or use another --workdir"
            )
        if changed:
            raise ConfigError(
                f"{workdir} holds a run of another config ({'; '.join(changed)}); "
                "use another --workdir, or the old values to go on with it"
            )


def _check_classes(workdir: Path, old: list[str], new: list[str]) -> None:
    """Refuse classes other than those that the run was begun with, or in another order.

    Raises:
        ConfigError: naming the first that differ.
    """
    if old == new:
        return
    gone, added = ([n for n in a if n not in b][:5] for a, b in ((old, new), (new, old)))
    if gone or added:
        what = f"gone: {', '.join(gone) or 'none'}; new: {', '.join(added) or 'none'}"
    else:
        at = next(i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
        what = f"their order is another: number {at} was {old[at]!r} and is {new[at]!r}"
    raise ConfigError(
        f"the classes have changed since {workdir} was trained on them ({what}); bring them back, "
        "or use another --workdir"
    )


def _unwritable(workdir: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot write to the workdir {workdir}: {error.strerror}; make it writable, or name "
        "another --workdir"
    )


class BusyError(ConfigError):
    """A workdir that another process trains in."""


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Hold `workdir` for this process; the lock goes with the process, however that ends.

    Raises:
        BusyError: if another process of this machine trains in it.
        ConfigError: if it cannot be locked.
    """
    path = workdir / "lock"
    try:
        file = path.open("w")
    except OSError as error:
        raise _unwritable(workdir, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(
                f"another process is training in {workdir}; wait for it, or use another --workdir"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"cannot lock {path}: {error.strerror}; mount its file system with locks, or use "
                "a --workdir on one that has them, as every local disk"
            ) from error
        yield


def add_start(workdir: Path, step: int) -> str | None:
    """Append this start of the run, at `step`, to the record of all of its starts.

    A supervisor that started it again tells why in the environment, as `RESTART`.

    Returns:
        A sentence if the start before was of other code or libraries, else None.

    Raises:
        ConfigError: if it cannot be written.
    """
    starts = read_starts(workdir)
    starts.append(
        {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "step": step,
            "git_commit": git_commit(),
            "python": platform.python_version(),
            "code": code_version(),
            "versions": package_versions(),
            "platform": jax.default_backend(),
            "devices": [device.device_kind for device in jax.devices()],
            "processes": jax.process_count(),
            "host": platform.node(),
            "restart": json.loads(os.environ.get(RESTART, "null")),
        }
    )
    try:
        write_starts(workdir, starts)
    except OSError as error:
        raise _unwritable(workdir, error) from error
    return None if len(starts) == 1 else _changed_code(*starts[-2:])


def _changed_code(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Returns which code and libraries differ between two starts, in one sentence."""
    now, before = (
        {"gnet_jax": start.get("code")} | start.get("versions", {}) for start in (new, old)
    )
    changed = [
        f"{name} {before.get(name) or 'of unknown version'} there, {now.get(name) or 'none'} now"
        for name in sorted(now.keys() | before.keys())
        if now.get(name) != before.get(name)
    ]
    if not changed:
        return None
    return (
        f"the steps before were trained with other versions ({'; '.join(changed)}), so the numbers "
        "may differ from those of a run without this change"
    )


def read_starts(workdir: Path) -> list[dict[str, Any]]:
    """The record of all starts of the run in `workdir`, the newest last."""
    file = workdir / RECORD_FILE
    if not file.is_file():
        return []
    try:
        return [dict(start) for start in json.loads(file.read_text())["starts"]]
    except (ValueError, TypeError, KeyError):  # no reason to hold up the run: put it aside
        file.replace(file.with_suffix(".damaged"))
        return []


def check_not_lost(workdir: Path) -> None:
    """Refuse to begin anew where earlier starts have saved: their checkpoints are missing.

    Raises:
        ConfigError: naming the newest step that was saved.
    """
    newest = max((start.get("newest_checkpoint", 0) for start in read_starts(workdir)), default=0)
    if newest:
        raise ConfigError(
            f"this run has saved step {newest}, but {workdir / 'checkpoints'} holds no checkpoint; "
            "mount it, or bring it back from a copy, or begin anew in another --workdir"
        )


def write_starts(workdir: Path, starts: list[dict[str, Any]]) -> None:
    """Write the record of all starts.

    Raises:
        OSError: if it cannot be written, as on a full disk.
    """
    write_json(workdir / RECORD_FILE, {"starts": starts})


def package_versions() -> dict[str, str]:
    """The installed version of every library that the numbers of a run depend on."""
    found = {each.name: each.version for each in importlib.metadata.distributions()}
    return {name: found[name] for name in (*PACKAGES, *DECODERS) if name in found}


def code_version() -> str:
    """This package's version, and a short hash of all its sources, committed or not."""
    package = Path(__file__).resolve().parents[1]
    sources = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        sources.update(f"{file.relative_to(package).as_posix()} {file.stat().st_size}\n".encode())
        sources.update(file.read_bytes())
    return f"{__version__} {sources.hexdigest()[:16]}"


def git_commit() -> str | None:
    """The commit of the code that runs, "+changes" appended if files differ; None outside git."""
    here = Path(__file__).resolve().parent
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None  # no git on this machine: the record says null
    return done.stdout.strip() or None


def write_json(file: Path, value: Any) -> None:
    """Write `value` so that a reader, or a kill, sees the old file or the new one, never half."""
    partial = file.with_suffix(".partial")
    try:
        partial.write_text(json_text(value, indent=2) + "\n")
        partial.replace(file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


@dataclasses.dataclass(frozen=True)
class MetricsFile:
    """`metrics.jsonl`, or another file of one JSON object a line, each with its `step`.

    Numbers that are not finite are null in the file and NaN when read.
    """

    path: Path

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Add a line, whole or not at all.

        Raises:
            OSError: if it cannot be written, as on a full disk.
        """
        line = (json_text({"step": step, **values}) + "\n").encode()
        with self.path.open("ab", buffering=0) as file:
            before = file.tell()
            if file.write(line) < len(line):
                file.truncate(before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def read(self) -> list[dict[str, Any]]:
        """Every line that is whole; a kill may have cut the last one short."""
        if not self.path.is_file():
            return []
        found = []
        for line in self.path.read_text(errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # half a line: its step is trained, and logged, again
        return [
            {name: math.nan if value is None else value for name, value in line.items()}
            for line in found
            if isinstance(line, dict) and "step" in line
        ]

    def forget_after(self, step: int) -> None:
        """Drop lines of steps after `step`: the resumed run writes them again."""
        kept = [line for line in self.read() if line["step"] <= step]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json_text(line) + "\n" for line in kept))
        partial.replace(self.path)
