"""Checkpoints of a training state: saved, kept, verified and restored."""

import contextlib
import hashlib
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from gnet_jax.config import ConfigError
from gnet_jax.training.digests import DamageError, named_leaves, read_digests
from gnet_jax.training.goodput import Stopwatch
from gnet_jax.training.guard import TrainingError
from gnet_jax.training.storage import items, open_manager, read_arrays

DAMAGED = ".damaged"
_PARTIAL = ".orbax-checkpoint-tmp"
_NONE_SAVED, _NONE_LEFT = -1, -2  # in place of a step, where hosts agree on one


class SavedSteps:
    """The committed checkpoints of a run, to be read; nothing in the folder is changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._scores: dict[int, float] = {}
        self.damaged: dict[int, str] = {}  # steps whose digests, and score, cannot be read, and why
        self._look()

    def _look(self) -> None:
        """Take note of what is committed."""
        names = [path.name for path in self.folder.glob("*") if path.is_dir()]
        self.steps = sorted(int(name) for name in names if name.isdigit())
        self._scores, self.damaged = {}, {}
        for step in self.steps:
            try:
                top1 = read_digests(self.folder / str(step) / "digests").get("top1")
            except DamageError as error:
                self.damaged[step] = str(error)
            else:
                self._scores |= {} if top1 is None else {step: top1}

    @property
    def latest(self) -> int | None:
        """The newest committed step."""
        return self.steps[-1] if self.steps else None

    @property
    def best(self) -> int | None:
        """The step of the best evaluation so far."""
        scored = [(top1, step) for step, top1 in self._scores.items()]
        return max(scored)[1] if scored else None

    def top1(self) -> dict[int, float]:
        """The top-1 accuracy of every kept step that was evaluated."""
        return dict(self._scores)

    def restore(self, step: int, abstract_state: Any) -> Any:
        """The state saved as `step`, every bit compared with its sha256, placed as asked.

        Args:
            step: a committed one.
            abstract_state: the state's tree of `jax.ShapeDtypeStruct` with shardings, on however
                many devices and processes.

        Raises:
            ConfigError: if it is damaged, or has other leaves, shapes or dtypes.
        """
        try:
            arrays = read_arrays(self.folder / str(step))
        except DamageError as error:
            older = [each for each in self.steps if each < step]
            rest = f"go on from step {max(older)}" if older else "begin anew"
            raise ConfigError(
                f"checkpoint {step} in {self.folder} is damaged: {error}; move "
                f"{self.folder / str(step)} away to {rest}"
            ) from error
        return self._placed(step, arrays, abstract_state)

    def _placed(self, step: int, arrays: dict[str, np.ndarray], abstract_state: Any) -> Any:
        expected = {name: (x.shape, x.dtype) for name, x in named_leaves(abstract_state).items()}
        found = {name: (x.shape, x.dtype) for name, x in arrays.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise ConfigError(
                    f"checkpoint {step} in {self.folder} does not fit: {name} is "
                    f"{found.get(name, 'absent')} there, {expected.get(name, 'absent')} here"
                )
        leaves, tree = jax.tree.flatten(abstract_state)
        placed = [
            jax.make_array_from_callback(leaf.shape, leaf.sharding, array.__getitem__)
            for leaf, array in zip(leaves, map(arrays.get, expected), strict=True)
            if array is not None
        ]
        return jax.tree.unflatten(tree, placed)


class Checkpoints(SavedSteps):
    """The checkpoints of one run: the newest few, and the one of the best evaluation.

    Saving goes on in the background, the hashing too. A step is committed by a rename, its sha256
    among its files, so a killed save leaves the older steps untouched. A save that fails, as on a
    full disk, is told, counted, and tried again at the next save; older steps stay. On several
    hosts it is raised instead, for the others would wait.
    """

    def __init__(
        self,
        folder: Path,
        keep_latest: int,
        tell: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
        watch: Stopwatch | None = None,
    ) -> None:
        super().__init__(folder)
        self.tell = tell
        self.watch = Stopwatch() if watch is None else watch
        self.failures = 0
        self.problem: str | None = None  # of the last save, if that failed
        self._begun: int | None = None  # the step whose save is under way
        self._pending: Future[None] | None = None
        self._waiting = ThreadPoolExecutor(1, "checkpoints")
        self._manager = open_manager(self.folder, keep_latest, lambda: self.best)

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
        """Begin to save `state` as `step`; does nothing if that step is already saved."""
        with self.watch.spent("saving"):
            self._save(step, state, top1)

    def _save(self, step: int, state: Any, top1: float | None) -> None:
        self._wait()
        if step in self.steps:
            return
        self._begun = step
        if top1 is not None:
            self._scores[step] = top1
        try:
            self._check_space(state)
            self._manager.save(step, args=items(state, _on_host(state), top1), force=True)
            # Orbax tells of an error only to who waits for it.
            self._pending = self._waiting.submit(self._manager.wait_until_finished)
            self.watch.saved(step)
        except Exception as error:  # whatever the storage below trips over
            self._failed(error)

    def _check_space(self, state: Any) -> None:
        """Spare Orbax a full disk: it leaves a dozen threads with errors of their own."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        disk = shutil.disk_usage(self.folder)
        if disk.total > 0 and disk.free < needed:  # some network drives report no size at all
            raise OSError(
                f"the disk is full: {needed / 1e6:,.1f} MB are needed, {disk.free / 1e6:,.1f} free"
            )

    def _remove_partial(self) -> None:
        """Remove what a failed save left: it may be what fills the disk.

        Orbax lets go of the writes beside one that fails, so what they still make is awaited.
        """
        quiet = 0
        for _ in range(100):
            found = list(self.folder.glob(f"*{_PARTIAL}*"))
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
            self._failed(error)
        else:
            self._begun, self.problem = None, None
            self._look()

    def restore_newest(self, abstract_state: Any) -> tuple[int, Any] | None:
        """The newest step that is undamaged, and its state; None if nothing was ever saved.

        Damaged ones on the way are told and renamed: 120 becomes 120.damaged. The first process
        verifies and chooses; the others verify the same step for themselves.

        Raises:
            ConfigError: if no step is left, or as `restore`.
        """
        first = jax.process_index() == 0
        step, arrays = self._newest_undamaged() if first else (_NONE_SAVED, {})
        step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        self._manager.reload()
        self._look()
        if step == _NONE_SAVED:
            return None
        if step == _NONE_LEFT:
            raise ConfigError(
                f"no checkpoint in {self.folder} is undamaged; bring one back from a copy, or "
                "begin anew in another --workdir"
            )
        if first:
            return step, self._placed(step, arrays, abstract_state)
        return step, self.restore(step, abstract_state)

    def _newest_undamaged(self) -> tuple[int, dict[str, np.ndarray]]:
        for step in reversed(self.steps):
            try:
                return step, read_arrays(self.folder / str(step))
            except DamageError as error:
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
            ) from error

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        first = (str(error) or type(error).__name__).splitlines()[0]
        self.problem = f"step {self._begun} could not be saved ({first[:200]})"
        if jax.process_count() > 1:
            raise TrainingError(f"{self.problem}; the other hosts are not to wait") from error
        self._begun = None
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
