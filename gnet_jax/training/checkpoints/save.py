"""Save a run's checkpoints, keep the newest and the best, and restore the newest intact one."""

import contextlib
import dataclasses
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import future

from gnet_jax.config import ConfigError, UserError
from gnet_jax.config.bucket import BucketError, Place, locate
from gnet_jax.training.checkpoints.verify import (
    CorruptError,
    SavedSteps,
    add_notes,
    named_leaves,
    read_digests,
    read_verified,
    write_digests,
)
from gnet_jax.training.hosts.start import OneHostError, TrainingError, gather, run_on_all_hosts
from gnet_jax.training.observe.console import Stopwatch

# Orbax logs the tracebacks of errors that `Checkpoints` reports in one sentence.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class Checkpoints(SavedSteps, contextlib.AbstractContextManager["Checkpoints"]):
    """The checkpoints of one run: the newest few, the best one, and every N-th step.

    `save` copies the state. A background thread then hashes and writes the copy, renames the folder
    to commit it, and reads it back. Only after that does the step count as saved, and older steps
    are deleted. If a save fails, a warning is printed, and the next save tries again. With several
    hosts a failed save raises an error instead, because the hosts would wait for each other: a
    `TrainingError` on all of them if the disk is full, otherwise a `OneHostError`.
    """

    def __init__(
        self,
        folder: Place,
        keep_latest: int,
        tell: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
        watch: Stopwatch | None = None,
        model: Mapping[str, Any] | None = None,
        verify: bool = True,
        keep_every: int | None = None,
        before_commit: Callable[[], object] = lambda: None,
    ) -> None:
        """Open or create `folder`.
        `tell` is called with each line to print. `watch` measures how long saving delays the run.
        `model` is the model's description, saved in every checkpoint. With `verify`, each step is
        read back after it is written. Steps divisible by `keep_every` are never deleted.
        `before_commit` is called before a step counts as saved, so that the logs up to this step
        are saved, too.
        """
        super().__init__(folder)
        self.tell = tell
        self.watch = watch or Stopwatch()
        self.problem: str | None = None  # why the last save failed
        self._keep_latest, self._keep_every = keep_latest, keep_every
        self._model, self._verify = model, verify
        self._pending: tuple[int, Future[None]] | None = None  # the step that is being saved
        self._background = ThreadPoolExecutor(1, "checkpoints")
        self.folder.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            self.storage.delete_partial()
        # `read_verified` reads this format; Orbax's default may change.
        arrays = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False)
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(state=arrays, digests=_DigestsHandler(before_commit)),
            async_options=ocp.AsyncOptions(barrier_sync_fn=_barrier),
        )

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._background.shutdown()
        self._orbax.close()

    def save(self, step: int, state: Any, top1: float | None = None) -> None:
        """Start to save `state`; if `step` is already saved, only add its top-1 accuracy."""
        with self.watch.spent("saving"), jax.transfer_guard("allow"):
            self._finish_pending()
            if step not in self.steps:
                self._start(step, state, top1)
            elif top1 is not None and step not in self.top1:
                self.top1[step] = top1
                try:
                    if jax.process_index() == 0:
                        add_notes(self.path(step), {"top1": top1})
                except (OSError, CorruptError, BucketError) as error:
                    self.tell(f"warning: cannot add top-1 to checkpoint {step}: {error}")

    def _start(self, step: int, state: Any, top1: float | None) -> None:
        if top1 is not None:
            self.top1[step] = top1
        try:
            needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            run_on_all_hosts(lambda: self.storage.prepare(step, needed))
            leaves = named_leaves(state) if jax.process_index() == 0 else {}
            # Copies, because the next step may overwrite the state.
            arrays = {name: np.array(leaf) for name, leaf in leaves.items()}
            digests = _DigestsSave(arrays, {"top1": top1, "model": self._model})
            items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), digests=digests)
            self._orbax.save(self.storage.path_for_orbax(step), args=items)
            self._pending = step, self._background.submit(self._commit, step)
            self.watch.saved(step)
        except Exception as error:  # Orbax and TensorStore raise errors of many types
            self._fail(step, error, on_all_hosts=isinstance(error, UserError))

    def _commit(self, step: int) -> None:
        """Wait until `step` is on disk, verify it, and delete the older steps that it replaces."""
        self._orbax.wait_until_finished()  # Orbax raises an error only to the thread that waits
        if jax.process_index():
            return
        if self._verify:
            try:
                read_verified(self.path(step))
            except CorruptError as error:
                raise UserError(self._quarantine(step, error)) from error
        # Orbax's preservation policies would delete older steps before this one is verified.
        for old in set(self.steps).difference(self._kept_with(step)):
            with contextlib.suppress(BucketError):  # the next start or save deletes the rest
                self.storage.delete(old)

    def _kept_with(self, step: int) -> list[int]:
        """Returns the steps to keep after `step` is saved: the newest, the best, every N-th."""
        steps, every = sorted({*self.steps, step}), self._keep_every
        kept = {*steps[-self._keep_latest :], self.best}
        return [each for each in steps if each in kept or (every and each % every == 0)]

    def check(self) -> None:
        """If the background save has ended, handle its result. (`wait` first waits for the end.)"""
        if self._pending is not None and self._pending[1].done():
            self._finish_pending()

    def wait(self) -> None:
        with self.watch.spent("saving"):
            self._finish_pending()

    def _finish_pending(self) -> None:
        if self._pending is None:
            return
        (step, pending), self._pending = self._pending, None
        try:
            pending.result()
        except Exception as error:  # of many types, as in `_start`
            with contextlib.suppress(Exception):  # Orbax raises the same error in every thread
                self._orbax.wait_until_finished()
            self._fail(step, error, on_all_hosts=False)
            return
        self.problem = None
        self.watch.committed = step
        # Do not list the folder again: on a network file system the hosts may see different, old
        # listings, decide differently, and wait for each other forever.
        self.steps = self._kept_with(step)
        self.top1 = {each: top1 for each, top1 in self.top1.items() if each in self.steps}

    def _fail(self, step: int, error: Exception, *, on_all_hosts: bool) -> None:
        reason = error if isinstance(error, UserError) else self.storage.explain(error)
        self.problem = f"step {step} could not be saved ({reason})"
        if jax.process_count() > 1:
            kind = TrainingError if on_all_hosts else OneHostError
            raise kind(
                f"{self.problem}; the same command on every host resumes from the latest checkpoint"
            ) from error
        # The failed save's files may fill the disk. Orbax does not wait for its remaining writes,
        # so delete until no new file has appeared for half a second.
        quiet = 0
        try:
            for _ in range(100):
                quiet = 0 if self.storage.delete_partial() else quiet + 1
                if quiet == 10:
                    break
                time.sleep(0.05)
            self._list()
        except BucketError:  # what is known of the steps stays valid
            self.top1.pop(step, None)
        latest = f"step {self.latest} is the latest" if self.steps else "no step is saved yet"
        self.tell(f"warning: {self.problem}; {latest}, and the next save tries again")

    def restore_latest(self, abstract_state: Any) -> tuple[int, Any] | None:
        """Returns the newest intact step and its state; None if nothing was ever saved.

        Newer steps, which are corrupt, are reported and renamed (120 to 120.damaged). The first
        process chooses the step; the others verify it and use the first process's list of steps.
        Raises ConfigError if there are steps but none is intact, and for the same reasons as
        `restore`. Raises UserError if another host failed.
        """
        first = jax.process_index() == 0
        chosen, arrays = run_on_all_hosts(lambda: self._verify_latest() if first else (None, {}))
        run_on_all_hosts(self._list)
        answers = gather(json.dumps([chosen, self.steps, list(self.top1.items())]))
        step, self.steps, top1 = json.loads(answers[0])
        self.top1 = dict(top1)
        if step is None:
            return None
        restore = partial(self._place, step, arrays) if first else partial(self.restore, step)
        return step, run_on_all_hosts(lambda: restore(abstract_state))

    def _verify_latest(self) -> tuple[int | None, dict[str, np.ndarray]]:
        for step in reversed(self.steps):
            try:
                return step, read_verified(self.path(step))
            except CorruptError as error:
                self.tell(self._quarantine(step, error))
        if self.storage.has_quarantined():
            raise ConfigError(
                f"every checkpoint in {self.folder} is corrupt; restore one from a backup, or start"
                " from scratch in another --workdir"
            )
        return None, {}

    def _quarantine(self, step: int, error: CorruptError) -> str:
        """Rename or mark a corrupt step, and return a message about it."""
        done = self.storage.quarantine(step)
        return f"checkpoint {step} is corrupt: {error.reason}; {done}"


def _barrier(*, key: str, timeout_ms: int) -> None:
    """Wait for the other hosts; if this host's save has failed, raise its error instead.
    Orbax calls this in the `finally` clause of its thread. If a failed save waited here, all hosts
    would wait for 20 minutes without a message.
    """
    error = sys.exception()
    if error is not None and threading.current_thread() is not threading.main_thread():
        raise error
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


class _DigestsHandler(ocp.AsyncCheckpointHandler):
    """Hashes the arrays and writes the digests in the background, before Orbax commits."""

    def __init__(self, before_commit: Callable[[], object]) -> None:
        self._before_commit = before_commit

    async def async_save(self, directory: Path, args: "_DigestsSave") -> list[future.Future]:
        async def work() -> None:
            self.save(directory, args)

        return [future.CommitFutureAwaitingContractedSignals(work(), name="digests")]

    def save(self, directory: Path, args: "_DigestsSave") -> None:
        if jax.process_index() == 0:
            write_digests(locate(str(directory)), args.arrays, args.notes)
        self._before_commit()

    def restore(self, directory: Path, args: Any = None) -> Any:
        return read_digests(locate(str(directory.parent)))


@ocp.args.register_with_handler(_DigestsHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _DigestsSave(ocp.args.CheckpointArgs):
    arrays: dict[str, np.ndarray] = dataclasses.field(repr=False)
    notes: Mapping[str, Any]
