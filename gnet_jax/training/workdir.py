"""A run's workdir: its config, its lock, the record of its starts (run.json), and its logs."""

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
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from gnet_jax import __version__
from gnet_jax.config import Config, ConfigError, differences, flatten, json_text
from gnet_jax.config.bucket import BucketPath, Place, locate
from gnet_jax.model import custom
from gnet_jax.training.bucket import BucketFiles, BusyError

CONFIG_FILE = "config.json"
CLASSES = "data.fingerprint.classes"  # a key of config.json; earlier versions did not write it
RECORD_FILE = "run.json"
ACKNOWLEDGE = "GNET_JAX_ACKNOWLEDGE"  # variable: file descriptor to acknowledge signals on
RESTART = "GNET_JAX_RESTART"  # why the supervisor restarted the run, as JSON
# The libraries that affect the results of a run. DECODERS are those of the extra [fast].
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
DECODERS = ("simplejpeg", "opencv-python-headless")
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # variables with flags of the compiler
# Flags that do not change the compiled program: where to dump it, and how many CPU devices to make.
PER_HOST_FLAGS = ("--xla_dump_", "--xla_force_host_platform_device_count")


@dataclasses.dataclass
class LocalFiles:
    """The small files of a run in a workdir on a disk. See also `BucketFiles`."""

    folder: Path
    tell: Callable[[str], None] = print

    def upload(self) -> bool:
        """Do nothing: the files are where they should be."""
        return True


def open_workdir(config: Config, fingerprints: Mapping[str, Any]) -> Place:
    """Create the run's folder, or check that it belongs to this run; returns its path.

    `fingerprints` identify the data and class names (`Run.fingerprints`). The first process locks
    the folder during the check, so that the config of an active run is not replaced. Raises a
    ConfigError that names every difference from the run in the folder, or says why the folder
    cannot be written or locked.
    """
    workdir = locate(config.workdir)
    identity = flatten(config) | {f"data.fingerprint.{k}": v for k, v in fingerprints.items()}
    first = jax.process_index() == 0
    with _writing(workdir):
        if isinstance(workdir, Path):
            workdir.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=workdir).close()  # raises if the folder is not writable
        with open_files(workdir, lock=first) as files:
            _check_owner(workdir, files.folder / CONFIG_FILE, identity)
            if first:
                write_json(files.folder / CONFIG_FILE, identity)
    return workdir


@contextlib.contextmanager
def open_files(workdir: Place, *, lock: bool) -> Iterator[LocalFiles | BucketFiles]:
    """Yield the small files of a run as local files: all files except checkpoints.

    With `lock`, locks the workdir until the body or this process ends. Raises BusyError if another
    process has locked it.
    """
    if isinstance(workdir, BucketPath):
        with BucketFiles(workdir, lock=lock) as files:
            yield files
    else:
        with locked(workdir) if lock else contextlib.nullcontext():
            yield LocalFiles(workdir)


def _check_owner(workdir: Place, file: Path, identity: dict[str, Any]) -> None:
    """Raise a ConfigError if the folder belongs to another run, and name every difference.

    `file` is the config of the run, or a local copy of it.
    """
    checkpoints, another = workdir / "checkpoints", "use another --workdir"
    if isinstance(checkpoints, Path) and os.path.lexists(checkpoints) and not checkpoints.is_dir():
        raise ConfigError(f"{checkpoints} is not a folder; mount its disk, remove it, or {another}")
    if not file.is_file():
        if checkpoints.is_dir():
            raise ConfigError(f"{workdir} has checkpoints but no {CONFIG_FILE}; {another}")
        return
    try:
        old = {**json.loads(file.read_text())}
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{file} is corrupt ({error}); restore it, or {another}") from error
    classes = identity.setdefault(CLASSES, [])
    reordered = _describe_classes(old.setdefault(CLASSES, classes), classes)
    changed = differences(old, identity)
    if not changed:
        return
    names = [each.partition(":")[0].removeprefix("data.fingerprint.") for each in changed]
    problem, fix = f"it has another config ({'; '.join(changed)})", "use the old values"
    if reordered:
        problem, fix = f"its classes have changed ({reordered})", "restore them"
    elif names == ["order"]:
        problem = f"this version of Grain or NumPy shuffles the data differently ({changed[0]})"
        fix = f"install the versions in {RECORD_FILE}"
    elif {"train", "val", "order"}.issuperset(names):
        # The order also changes if a split does.
        splits = " and ".join(name for name in names if name != "order")
        problem, fix = f"its data have changed ({splits} split)", "restore them"
    raise ConfigError(f"cannot resume {workdir}: {problem}; {fix}, or {another}")


def _describe_classes(old: list[str], new: list[str]) -> str:
    """Returns which classes were removed, added or reordered; "" if none."""
    removed, added = ([n for n in a if n not in b][:5] for a, b in ((old, new), (new, old)))
    if removed or added:
        return f"removed: {', '.join(removed) or 'none'}; added: {', '.join(added) or 'none'}"
    pairs = zip(old, new, strict=False)
    return next((f"class {i} was {a!r}, is {b!r}" for i, (a, b) in enumerate(pairs) if a != b), "")


@contextlib.contextmanager
def _writing(workdir: Place) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"cannot write to the workdir {workdir}: {error.strerror}"
        raise ConfigError(f"{problem}; use another one") from error


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Lock `workdir` until the body or this process ends. Raises BusyError if it is locked."""
    path = workdir / "lock"
    with _writing(workdir):
        file = path.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"another process is training in {workdir}; wait for it") from error
        except OSError as error:
            problem = f"cannot lock {path}: {error.strerror}"
            raise ConfigError(f"{problem}; use a --workdir on a local disk") from error
        yield


def add_start(workdir: Path, step: int, own_parts: Iterable[str] = ()) -> str:
    """Add a record of this start of the run, which begins at `step`, to run.json.
    `own_parts` (see `Architecture`) name the user's own norm and block. Returns a warning if the
    previous start used other code, libraries or compiler flags, otherwise "".
    """
    starts = read_starts(workdir)
    start = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "step": step,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "code": code_version(),
        "own_code": own_versions(own_parts),
        "versions": package_versions(),
        "flags": compiler_flags(),
        "platform": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "host": platform.node(),
        "restart": json.loads(os.environ.get(RESTART, "null")),
    }
    with _writing(workdir):
        write_json(workdir / RECORD_FILE, {"starts": [*starts, start]})
    before, now = (
        {"gnet_jax": each.get("code", "unknown")}
        | each.get("own_code", start["own_code"])  # earlier versions did not record it
        | each.get("versions", {})
        | flag_values(each.get("flags", start["flags"]))  # earlier versions did not record them
        for each in ([start, *starts][-1], start)
    )
    changed = "; ".join(differences(before, now))
    problem = "earlier steps used other versions or compiler flags, so results may differ"
    return changed and f"{problem}: {changed}"


def read_starts(workdir: Path) -> list[dict[str, Any]]:
    """Returns the records in run.json, one per start, newest last; renames a corrupt run.json."""
    file = workdir / RECORD_FILE
    try:
        return [dict(start) for start in json.loads(file.read_text())["starts"]]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError):  # a corrupt record is no reason to stop the run
        file.replace(file.with_suffix(".damaged"))
        return []


def check_not_lost(folder: Path, checkpoints: Place) -> None:
    """If there is no checkpoint, call this; raises ConfigError if run.json says one was saved.

    `folder` contains run.json.
    """
    newest = max((start.get("newest_checkpoint", 0) for start in read_starts(folder)), default=0)
    if newest:
        raise ConfigError(
            f"this run has saved step {newest}, but {checkpoints} has no checkpoint; "
            "mount or restore that folder, or use another --workdir"
        )


def package_versions() -> dict[str, str]:
    """Returns the installed versions of the packages in `PACKAGES` and `DECODERS`."""
    found = {}
    for name in (*PACKAGES, *DECODERS):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def compiler_flags() -> dict[str, str | None]:
    """Returns the environment variables in `FLAGS`; None for those that are not set."""
    return {name: os.environ.get(name) for name in FLAGS}


def flag_values(flags: Mapping[str, str | None]) -> dict[str, str]:
    """Returns the values of flags by name, such as "XLA_FLAGS --xla_a"; omits `PER_HOST_FLAGS`."""
    found = {}
    for variable, text in flags.items():
        for flag in (text or "").split():
            name, _, value = flag.partition("=")
            if not name.startswith(PER_HOST_FLAGS):
                found[f"{variable} {name}"] = value or "set"  # the last one of a name counts
    return found


def code_version() -> str:
    """Returns this package's version and a hash of its sources."""
    package = Path(__file__).resolve().parents[1]
    sources = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        sources.update(f"{file.relative_to(package).as_posix()} {file.stat().st_size}\n".encode())
        sources.update(file.read_bytes())
    return f"{__version__} {sources.hexdigest()[:16]}"


def own_versions(own_parts: Iterable[str]) -> dict[str, str]:
    """Returns a hash of the code of each of the user's own layers (see `Architecture`)."""
    return {part: custom.digest(part) for part in own_parts}


def git_commit() -> str | None:
    """Returns the commit of this code, with "+changes" if files were modified; None outside git."""
    here = Path(__file__).resolve().parent
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None  # git is not installed
    return done.stdout.strip() or None


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a path for a new file; then rename it to `file`, or delete it if writing failed."""
    partial = file.with_suffix(".partial")
    try:
        yield partial
        partial.replace(file)
    except BaseException:  # also Ctrl-C
        partial.unlink(missing_ok=True)
        raise


def write_whole(file: Place, text: str) -> None:
    """Write `text`; if the process is killed, `file` has the whole old or new content."""
    if isinstance(file, BucketPath):  # every write to a bucket is atomic
        file.write_text(text)
        return
    with replacing(file) as partial:
        partial.write_text(text)


def write_json(file: Place, value: Any) -> None:
    """Write `value` as JSON, like `write_whole`."""
    write_whole(file, json_text(value, indent=2) + "\n")


@dataclasses.dataclass(frozen=True)
class MetricsFile:
    """A file such as `metrics.jsonl`: one JSON object per line, each with its `step`.
    Numbers that are not finite are null in the file and NaN when read.
    """

    path: Path

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a line; if the disk is full, remove the part just written and raise OSError."""
        line = (json_text({"step": step, **values}) + "\n").encode()
        with self.path.open("ab", buffering=0) as file:
            before = file.tell()
            if file.write(line) < len(line):
                file.truncate(before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def read(self) -> list[dict[str, Any]]:
        """Returns all complete lines; skips a line that a killed process left incomplete."""
        if not self.path.is_file():
            return []
        found = []
        for text in self.path.read_text(errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # a resumed run logs such a line again
                line = json.loads(text)
                if isinstance(line, dict) and "step" in line:
                    found.append({k: math.nan if v is None else v for k, v in line.items()})
        return found

    def forget_after(self, step: int) -> None:
        """Delete the lines of the steps after `step`, because a resumed run writes them again."""
        if self.path.is_file():
            kept = [json_text(line) + "\n" for line in self.read() if line["step"] <= step]
            with replacing(self.path) as partial:
                partial.write_text("".join(kept))
