"""The only module that touches Orbax: how arrays and their sha256 lie on disk, and come back.

A checkpoint is a folder named by its step. It is written under another name and renamed when it is
whole; `state` holds the arrays, `digests` one file with the sha256 of each.
"""

import dataclasses
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from orbax.checkpoint import future

from gnet_jax.config import ConfigError
from gnet_jax.training.digests import (
    DamageError,
    check_arrays,
    read_digests,
    write_digests,
)


class _NotTwice(logging.Filter):
    """Drops the tracebacks that Orbax logs of a failed save, of every array's write: it raises too.

    The error that it raises is told in one sentence.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        where = f"{record.pathname} {record.getMessage()}"
        return record.exc_info is None or "orbax" not in where


for _logger in ("absl", "asyncio"):
    logging.getLogger(_logger).addFilter(_NotTwice())


def open_manager(
    folder: Path, keep_latest: int, best: Callable[[], int | None]
) -> ocp.CheckpointManager:
    """Orbax's manager of `folder`, which keeps the newest steps and the one that `best` names.

    What earlier, killed saves left is removed.
    """
    # The format is named, for a later Orbax may have another default.
    arrays = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False)
    return ocp.CheckpointManager(
        folder,
        item_names=("state", "digests"),
        item_handlers={"state": arrays, "digests": _DigestsHandler()},
        options=ocp.CheckpointManagerOptions(
            preservation_policy=_NewestAndBest(keep_latest, best),
            cleanup_tmp_directories=True,
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


def kept_steps(steps: Sequence[int], newest: int, best: int | None) -> list[int]:
    """Which of `steps`, the last one newest, are kept: the `newest` last, and the best."""
    kept = {*steps[-newest:], best}
    return [step for step in steps if step in kept]


def items(state: Any, arrays: dict[str, np.ndarray], top1: float | None) -> ocp.args.Composite:
    """What the manager is to save: the state; and the digests of `arrays`, its copy on the host."""
    return ocp.args.Composite(state=ocp.args.PyTreeSave(state), digests=_DigestsSave(arrays, top1))


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of one committed checkpoint by name, every bit verified.

    Raises:
        DamageError: naming what is missing or other than it was saved.
    """
    digests = read_digests(folder / "digests")
    try:
        arrays = _read(folder / "state", list(digests["arrays"]))
    except Exception as error:  # whatever the storage below trips over
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise DamageError(f"it cannot be read ({first[:200]})") from error
    check_arrays(arrays, digests)
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
    base = {"driver": "file", "path": f"{folder}/"}

    def begun(name: str) -> Any:
        kvstore = {"driver": "ocdbt", "base": base, "path": name.replace("/", ".") + "/"}
        return tensorstore.open({"driver": "zarr", "kvstore": kvstore}, open=True, read=True)

    opened = {name: begun(name) for name in names}
    read = {name: each.result().read() for name, each in opened.items()}
    return {name: np.asarray(each.result()) for name, each in read.items()}


@dataclasses.dataclass(frozen=True)
class _NewestAndBest:
    """Orbax's preservation policy: the `newest` last steps, and the best of the evaluated ones."""

    newest: int
    best: Callable[[], int | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        steps = [each.step for each in checkpoints]
        kept = kept_steps(steps, self.newest, self.best())
        return [step in kept for step in steps]


class _DigestsHandler(ocp.AsyncCheckpointHandler):
    """Hashes and writes in the background, before the checkpoint is committed."""

    async def async_save(self, directory: Path, args: "_DigestsSave") -> list[future.Future]:
        work = self._write(directory, args)
        return [future.CommitFutureAwaitingContractedSignals(work, name="digests")]

    async def _write(self, directory: Path, args: "_DigestsSave") -> None:
        if jax.process_index() == 0:
            self.save(directory, args)

    def save(self, directory: Path, args: "_DigestsSave") -> None:
        write_digests(directory, args.arrays, {"top1": args.top1})

    def restore(self, directory: Path, args: Any = None) -> Any:
        return read_digests(directory)


@ocp.args.register_with_handler(_DigestsHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _DigestsSave(ocp.args.CheckpointArgs):
    arrays: dict[str, np.ndarray] = dataclasses.field(repr=False)
    top1: float | None
