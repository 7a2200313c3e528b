"""The only module that touches Orbax: how arrays and their sha256 lie on disk, and come back.

A checkpoint is a folder named by its step. It is written under another name and renamed when it is
whole; `state` holds the arrays, `digests` one file with the sha256 of each.
"""

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from orbax.checkpoint import future

from gnet_jax.config import ConfigError
from gnet_jax.config.paths import plain_path

DIGESTS_FILE = "digests.json"


class DamageError(Exception):
    """Something on disk is not what was written; the message says what."""


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by name; alike whether a container is a dict, a tuple or a named tuple.

    So a restored tree, whose tuples are lists and whose named tuples are dicts, has the same names.
    """

    def part(key: Any) -> str:
        return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))

    return {"/".join(map(part, path)): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def array_digest(array: np.ndarray) -> str:
    """sha256 over the bytes of an array, in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def write_digests(folder: Path, arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> None:
    """Write dtype, shape and sha256 of each array, and `notes`, under a sha256 of all that."""
    body = dict(notes) | {
        "arrays": {
            name: [str(array.dtype), list(array.shape), array_digest(array)]
            for name, array in sorted(arrays.items())
        }
    }
    _write(folder, body)


def add_notes(folder: Path, notes: Mapping[str, Any]) -> None:
    """Put `notes` in place of those that `write_digests` wrote; the arrays' digests stay.

    Raises:
        DamageError: as `read_digests`.
        OSError: if it cannot be written; what was there stays.
    """
    _write(folder, read_digests(folder) | dict(notes))


def read_digests(folder: Path) -> dict[str, Any]:
    """What `write_digests` wrote: the notes, and `arrays`.

    Raises:
        DamageError: if the file is missing, or not as it was written.
    """
    file = folder / DIGESTS_FILE
    try:
        body = json.loads(file.read_bytes())
        seal = body.pop("sha256")
    except OSError as error:
        raise DamageError(f"{file.name} cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise DamageError(f"{file.name} is no longer what was written") from error
    if seal != _seal(body):
        raise DamageError(f"{file.name} is no longer what was written")
    return body


def check_arrays(arrays: Mapping[str, np.ndarray], written: Mapping[str, Any]) -> None:
    """Compare names, dtypes, shapes and every bit with what was written.

    Args:
        arrays: by name.
        written: `arrays` of `read_digests`, or the part of it that was read.

    Raises:
        DamageError: naming the first array that differs.
    """
    for name in sorted(written.keys() | arrays.keys()):
        if name not in arrays:
            raise DamageError(f"{name} is missing")
        if name not in written:
            raise DamageError(f"{name} was not there when it was saved")
        array, (dtype, shape, sha256) = arrays[name], written[name]
        if (str(array.dtype), list(array.shape)) != (dtype, shape):
            raise DamageError(
                f"{name} is {array.dtype} {list(array.shape)}, saved was {dtype} {shape}"
            )
        if array_digest(array) != sha256:
            raise DamageError(f"{name} has other bits than were saved")


def _write(folder: Path, body: Mapping[str, Any]) -> None:
    partial = folder / f"{DIGESTS_FILE}.partial"
    partial.write_text(json.dumps({"sha256": _seal(body)} | dict(body)))
    partial.replace(folder / DIGESTS_FILE)


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


PARTIAL = ".orbax-checkpoint-tmp"  # in the name of a folder that is no whole step


class _NotTwice(logging.Filter):
    """Drops the tracebacks that Orbax logs of a failed save, of every array's write: it raises too.

    The error that it raises is told in one sentence.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        where = f"{record.pathname} {record.getMessage()}"
        return record.exc_info is None or "orbax" not in where


for _logger in ("absl", "asyncio"):
    logging.getLogger(_logger).addFilter(_NotTwice())


def open_manager(folder: Path) -> ocp.CheckpointManager:
    """Returns Orbax's manager of `folder`, and removes what killed saves and deletions left there.

    It deletes nothing: a preservation policy would delete older steps before a new one is verified.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        for partial in folder.glob(f"*{PARTIAL}*"):
            shutil.rmtree(partial, ignore_errors=True)
    # The format is named, for a later Orbax may have another default.
    arrays = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False)
    return ocp.CheckpointManager(
        plain_path(folder),
        item_names=("state", "digests"),
        item_handlers={"state": arrays, "digests": _DigestsHandler()},
        options=ocp.CheckpointManagerOptions(
            async_options=ocp.AsyncOptions(barrier_sync_fn=_barrier),
        ),
    )


def _barrier(*, key: str, timeout_ms: int) -> None:
    """Wait for the other hosts, as Orbax does, but not on a host whose save has failed.

    Orbax would, in the `finally` of its thread, while the others wait there for what failed here:
    all of them for 20 minutes, and nobody would be told.
    """
    error = sys.exception()
    if error is not None and threading.current_thread() is not threading.main_thread():
        raise error
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def items(
    state: Any, arrays: dict[str, np.ndarray], notes: Mapping[str, Any]
) -> ocp.args.Composite:
    """Returns what the manager saves: the state, and the digests of `arrays` with `notes`.

    Args:
        state: on the devices.
        arrays: its copy on the host, by name.
        notes: JSON that is sealed with the digests.
    """
    return ocp.args.Composite(state=ocp.args.PyTreeSave(state), digests=_DigestsSave(arrays, notes))


def read_arrays(
    folder: Path, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, np.ndarray]:
    """Returns the arrays of one committed checkpoint whose names are `wanted`, every bit verified.

    Raises:
        DamageError: naming what is missing or other than it was saved.
    """
    digests = read_digests(folder / "digests")
    written = {name: each for name, each in digests["arrays"].items() if wanted(name)}
    try:
        arrays = _read(folder / "state", list(written))
    except Exception as error:  # whatever the storage below trips over
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise DamageError(f"it cannot be read ({first[:200]})") from error
    check_arrays(arrays, written)
    return arrays


def check_readable(folder: Path) -> None:
    """Refuse a checkpoint whose files this process cannot open: that says nothing of damage.

    Raises:
        ConfigError: naming the first of them, and why.
    """

    def refuse(error: OSError) -> None:
        raise ConfigError(
            f"{error.filename} cannot be opened ({error.strerror}), so nothing is known of the "
            "checkpoint, which stays as it is; mend that, and give the same command again"
        ) from error

    for place, _, files in os.walk(folder, onerror=refuse):
        for name in files:
            try:
                open(os.path.join(place, name), "rb").close()
            except OSError as error:
                refuse(error)


def _read(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    """What Orbax wrote in the format that `open_manager` asks for, read without its event loop.

    That leaves errors of its own behind the first one. And so nothing is placed on a device before
    it is verified.
    """
    base = {"driver": "file", "path": f"{plain_path(folder)}/"}

    def begun(name: str) -> Any:
        kvstore = {"driver": "ocdbt", "base": base, "path": name.replace("/", ".") + "/"}
        return tensorstore.open({"driver": "zarr", "kvstore": kvstore}, open=True, read=True)

    opened = {name: begun(name) for name in names}
    read = {name: each.result().read() for name, each in opened.items()}
    return {name: np.asarray(each.result()) for name, each in read.items()}


class _DigestsHandler(ocp.AsyncCheckpointHandler):
    """Hashes and writes in the background, before the checkpoint is committed."""

    async def async_save(self, directory: Path, args: "_DigestsSave") -> list[future.Future]:
        work = self._write(directory, args)
        return [future.CommitFutureAwaitingContractedSignals(work, name="digests")]

    async def _write(self, directory: Path, args: "_DigestsSave") -> None:
        if jax.process_index() == 0:
            self.save(directory, args)

    def save(self, directory: Path, args: "_DigestsSave") -> None:
        write_digests(directory, args.arrays, args.notes)

    def restore(self, directory: Path, args: Any = None) -> Any:
        return read_digests(directory)


@ocp.args.register_with_handler(_DigestsHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _DigestsSave(ocp.args.CheckpointArgs):
    arrays: dict[str, np.ndarray] = dataclasses.field(repr=False)
    notes: Mapping[str, Any]
