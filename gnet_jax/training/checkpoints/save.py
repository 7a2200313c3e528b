"""Checkpoints of a training state: saved and kept, and the newest that is whole restored."""

import contextlib
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from gnet_jax.config import ConfigError, UserError
from gnet_jax.config.paths import plain_path
from gnet_jax.training.checkpoints.restore import SavedSteps
from gnet_jax.training.checkpoints.storage import (
    PARTIAL,
    DamageError,
    add_notes,
    check_readable,
    items,
    named_leaves,
    open_manager,
    read_arrays,
)
from gnet_jax.training.hosts.collectives import gather, together
from gnet_jax.training.observe.dead_heads import LoneError, TrainingError
from gnet_jax.training.observe.goodput import Stopwatch

DAMAGED = ".damaged"
_NONE_SAVED, _NONE_LEFT = -1, -2  # in place of a step, where hosts agree on one


class Checkpoints(SavedSteps):
    """The checkpoints of one run: the newest few, and the one of the best evaluation.

    Saving goes on in the background, the hashing too. A step is committed by a rename, its sha256
    among its files, so a killed save leaves the older steps untouched. A committed step is read
    back; until it is seen to be whole it does not count as saved, and no older step is deleted. One
    that is damaged is put aside as on a restore, and its save has failed. A save that fails, as on
    a full disk, is told, counted, and tried again at the next save; older steps stay. On several
    hosts it is raised instead, for the others would wait: as a `TrainingError` on all of them where
    the disk is seen to be full before, else as a `LoneError`.
    """

    def __init__(
        self,
        folder: Path,
        keep_latest: int,
        tell: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
        watch: Stopwatch | None = None,
        model: Mapping[str, Any] | None = None,
        verify: bool = True,
    ) -> None:
        """Open `folder`, which is made if it is missing.

        Args:
            folder: of the run's checkpoints.
            keep_latest: newest steps to keep.
            tell: prints a line.
            watch: counts the seconds that saving holds up the run.
            model: description of the run's model, to be saved with every step.
            verify: whether each step is read back before it counts as saved.
        """
        super().__init__(folder)
        self.tell = tell
        self.watch = Stopwatch() if watch is None else watch
        self.failures = 0
        self.problem: str | None = None  # of the last save, if that failed
        self._begun = 0  # the step whose save began last
        self._pending: Future[None] | None = None
        self._keep_latest = keep_latest
        self._waiting = ThreadPoolExecutor(1, "checkpoints")
        self._model = model
        self._verify = verify
        self._manager = open_manager(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.wait()
        self._waiting.shutdown()
        self._manager.close()

    def save(self, step: int, state: Any, top1: float | None = None) -> None:
        """Begin to save `state` as `step`; a saved step without a top-1 is only given one."""
        with self.watch.spent("saving"):
            self._save(step, state, top1)

    def _save(self, step: int, state: Any, top1: float | None) -> None:
        self._wait()
        if step in self.steps:
            if top1 is not None and step not in self._scores:
                self._scores[step] = top1
                self._note(step, "accuracy", {"top1": top1})
            return
        self._begun = step
        if top1 is not None:
            self._scores[step] = top1
        try:
            together(lambda: self._check_space(state))
            notes = {"top1": top1, "model": self._model}
            plain_path(self.folder)  # Orbax's path: a cleaner of temporary files may remove it
            self._manager.save(step, args=items(state, _on_host(state), notes), force=True)
            self._pending = self._waiting.submit(self._commit, step)
            self.watch.saved(step)
        except Exception as error:  # whatever the storage below trips over
            # Every host knows of a `UserError`.
            self._failed(error, lone=not isinstance(error, UserError))

    def _commit(self, step: int) -> None:
        """Wait until `step` is on disk, read it back, and delete the steps that it replaces.

        Only the first process reads and deletes.

        Raises:
            Exception: whatever the storage raises.
            DamageError: if it is not what was saved.
            ConfigError: if it cannot be opened, or not be put aside.
        """
        self._manager.wait_until_finished()  # Orbax raises an error only to who waits for it
        if jax.process_index():
            return
        if self._verify:
            try:
                read_arrays(self.folder / str(step))
            except DamageError as error:
                check_readable(self.folder / str(step))
                aside = self._put_aside(step)
                raise DamageError(
                    f"read back, it is damaged: {error}; it is put aside as {aside}"
                ) from error
        for old in self.steps:
            if old not in self._kept_with(step):
                # First renamed, so that a kill leaves no half of a step, but what a start removes.
                gone = self.folder / f"{old}{PARTIAL}"
                with contextlib.suppress(FileNotFoundError):
                    (self.folder / str(old)).rename(gone)
                shutil.rmtree(gone, ignore_errors=True)

    def _note(self, step: int, what: str, notes: Mapping[str, Any]) -> None:
        try:
            if jax.process_index() == 0:
                add_notes(self.folder / str(step) / "digests", notes)
        except (OSError, DamageError) as error:
            self.tell(f"warning: the {what} of step {step} could not be noted ({error})")

    def _check_space(self, state: Any) -> None:
        """Spare Orbax a full disk: it leaves a dozen threads with errors of their own.

        Raises:
            UserError: if the state has no room.
        """
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        disk = shutil.disk_usage(self.folder)
        if disk.total > 0 and disk.free < needed:  # some network drives report no size at all
            raise UserError(
                f"the disk is full: {needed / 1e6:,.1f} MB are needed, {disk.free / 1e6:,.1f} free"
            )

    def _remove_partial(self) -> None:
        """Remove what a failed save left: it may be what fills the disk.

        Orbax lets go of the writes beside one that fails, so what they still make is awaited.
        """
        quiet = 0
        for _ in range(100):
            found = list(self.folder.glob(f"*{PARTIAL}*"))
            for partial in found:
                shutil.rmtree(partial, ignore_errors=True)
            quiet = 0 if found else quiet + 1
            if quiet == 10:
                break
            time.sleep(0.05)

    def check(self) -> None:
        """Tell at once if the save in the background failed."""
        if self._pending is not None and self._pending.done():
            self._wait()

    def wait(self) -> None:
        """Return once what was begun is on disk, or has failed."""
        with self.watch.spent("saving"):
            self._wait()

    def _wait(self) -> None:
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except Exception as error:  # as in `_save`
            with contextlib.suppress(Exception):  # the same, which Orbax raises in every thread
                self._manager.wait_until_finished()
            self._failed(error, lone=True)
        else:
            self.problem = None
            self.watch.committed = self._begun
            self._remember(self._begun)

    def _remember(self, step: int) -> None:
        """Take note of a new step, and of those that went for it, without a look at the folder.

        Over a network file system a listing may lag behind, on one host and not on another; hosts
        that believe in other steps would come to other decisions, and wait for each other.
        """
        self.steps = self._kept_with(step)
        self._scores = {s: top1 for s, top1 in self._scores.items() if s in self.steps}

    def _kept_with(self, step: int) -> list[int]:
        """Returns the steps to keep once `step` is saved: the newest few, and the best."""
        steps = sorted({*self.steps, step})
        kept = {*steps[-self._keep_latest :], self.best}
        return [each for each in steps if each in kept]

    def restore_newest(self, abstract_state: Any) -> tuple[int, Any] | None:
        """The newest step that is undamaged, and its state; None if nothing was ever saved.

        Damaged ones on the way are told and renamed: 120 becomes 120.damaged. The first process
        verifies and chooses; the others verify the same step for themselves, and believe the first
        in what else there is. Steps that an older version saved are given the model.

        Raises:
            ConfigError: if no step is left, if files of one cannot be opened, or as `restore`.
            UserError: if another host failed.
        """
        first = jax.process_index() == 0
        step, arrays = together(lambda: self._newest_undamaged() if first else (_NONE_SAVED, {}))
        self._manager.reload()
        self._look()
        told = gather(json.dumps([step, self.steps, list(self._scores.items())]))
        step, self.steps, scores = json.loads(told[0])
        self._scores = dict(scores)
        if step == _NONE_SAVED:
            return None
        if step == _NONE_LEFT:
            raise ConfigError(
                f"no checkpoint in {self.folder} is undamaged; bring one back from a copy, or "
                "begin anew in another --workdir"
            )

        def own() -> Any:
            if first:
                return self._placed(step, arrays, abstract_state)
            return self.restore(step, abstract_state)

        restored = together(own)
        if self._model is not None:
            for old in sorted(self._without_model.intersection(self.steps)):
                self._note(old, "model", {"model": self._model})
        return step, restored

    def _newest_undamaged(self) -> tuple[int, dict[str, np.ndarray]]:
        for step in reversed(self.steps):
            try:
                return step, read_arrays(self.folder / str(step))
            except DamageError as error:
                check_readable(self.folder / str(step))
                aside = self._put_aside(step)
                self.tell(f"checkpoint {step} is damaged: {error}; it is put aside as {aside}")
        put_aside = any(self.folder.glob(f"*{DAMAGED}*"))
        return (_NONE_LEFT if put_aside else _NONE_SAVED), {}

    def _put_aside(self, step: int) -> Path:
        path = self.folder / str(step)
        tries = (f"{step}{DAMAGED}{'' if n == 1 else f'-{n}'}" for n in range(1, 1000))
        aside = next(self.folder / name for name in tries if not (self.folder / name).exists())
        try:
            return path.rename(aside)
        except OSError as error:
            raise ConfigError(
                f"checkpoint {step} is damaged, and cannot be renamed to {aside}: {error.strerror}"
                "; move it away, or make the folder writable"
            ) from error

    def _failed(self, error: Exception, *, lone: bool) -> None:
        self.failures += 1
        reason = str(error)
        if not isinstance(error, DamageError | UserError):  # a library's, which may be long
            reason = (reason or type(error).__name__).splitlines()[0][:200]
        self.problem = f"step {self._begun} could not be saved ({reason})"
        if jax.process_count() > 1:
            kind = LoneError if lone else TrainingError
            raise kind(
                f"{self.problem}; the same command on every host goes on from the newest checkpoint"
            ) from error
        self._remove_partial()
        self._manager.reload()  # Orbax counts a step from the moment that its save begins
        self._look()
        kept = f"step {self.latest} is the newest" if self.steps else "none is saved yet"
        self.tell(f"warning: {self.problem}; {kept}, and the next save tries again")


def digest(state: Any) -> str:
    """sha256 over the names, dtypes, shapes and bytes of every leaf: equal only for equal bits."""
    result = hashlib.sha256()
    for name, leaf in named_leaves(state).items():
        value = np.asarray(leaf)
        result.update(f"{name} {value.dtype} {value.shape}\n".encode())
        result.update(value.tobytes())
    return result.hexdigest()


def _on_host(state: Any) -> dict[str, np.ndarray]:
    """Copies, for the step that follows may write over the state; only the first process's."""
    if jax.process_index():
        return {}
    return {name: np.array(leaf) for name, leaf in named_leaves(state).items()}
