"""The only module that touches Orbax: saving, keeping and restoring a training state."""

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from gnet_jax.config import ConfigError


class Checkpoints:
    """The checkpoints of one run: the newest few, and the one of the best evaluation.

    Saving goes on in the background; leaving the context waits for it and raises what went wrong.
    A step is committed by a rename, so a killed save leaves the older steps untouched.
    """

    def __init__(self, folder: Path, keep_latest: int) -> None:
        self.folder = folder.absolute()
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_names=("state",),
            item_handlers={"state": ocp.StandardCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                best_fn=_score,  # without it Orbax would not write the metrics
                preservation_policy=AnyPreservationPolicy(
                    [LatestN(keep_latest), BestN(get_metric_fn=_score, n=1)]
                ),
                cleanup_tmp_directories=True,
            ),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The newest committed step."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step of the best evaluation so far."""
        scored = [(top1, step) for step, top1 in self.top1().items()]
        return max(scored)[1] if scored else None

    def top1(self) -> dict[int, float]:
        """The top-1 accuracy of every kept step that was evaluated."""
        scores = {step: self._manager.metrics(step) or {} for step in self._manager.all_steps()}
        return {step: m["top1"] for step, m in scores.items() if m.get("top1") is not None}

    def save(self, step: int, state: Any, top1: float | None = None) -> None:
        """Begin to save `state` as `step`; does nothing if that step is already saved.

        Raises:
            Exception: what went wrong in an earlier background save.
        """
        self.check()
        if step == self.latest:
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(state))
        self._manager.save(step, args=args, metrics={"top1": top1}, force=True)

    def check(self) -> None:
        """Raise the error of a background save, if one failed."""
        self._manager.check_for_errors()

    def wait(self) -> None:
        """Return once everything begun is on disk."""
        self._manager.wait_until_finished()

    def restore(self, step: int, abstract_state: Any) -> Any:
        """The state saved as `step`, placed as `abstract_state` says.

        Args:
            abstract_state: the state's tree of `jax.ShapeDtypeStruct` with shardings, on however
                many devices and processes.

        Raises:
            ConfigError: if what was saved has other leaves, shapes or dtypes; Orbax itself would
                cast or fill in silently.
        """
        try:
            saved = self._manager.item_metadata(step)["state"]
        except Exception as error:
            raise self._damaged(step) from error
        if saved is None:
            raise self._damaged(step)
        expected = {_name(p): (x.shape, x.dtype) for p, x in _leaves(abstract_state)}
        found = {_name(p): (tuple(x.shape), np.dtype(x.dtype)) for p, x in _leaves(saved)}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise ConfigError(
                    f"checkpoint {step} in {self.folder} does not fit: {name} is "
                    f"{found.get(name, 'absent')} there, {expected.get(name, 'absent')} here"
                )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
        try:
            return self._manager.restore(step, args=args)["state"]
        except Exception as error:  # whatever the storage below trips over
            raise self._damaged(step) from error

    def _damaged(self, step: int) -> ConfigError:
        older = [each for each in self._manager.all_steps() if each < step]
        rest = f"go on from step {max(older)}" if older else "begin anew"
        return ConfigError(
            f"checkpoint {step} in {self.folder} is damaged; move {self.folder / str(step)} away "
            f"to {rest}"
        )


def _score(metrics: dict[str, float | None]) -> float:
    """What the best checkpoint has most of; a step that was not evaluated is behind every other."""
    return -1.0 if metrics["top1"] is None else metrics["top1"]


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree.leaves_with_path(tree)


def _name(path: tuple[Any, ...]) -> str:
    """One name for a leaf, whether its container is a dict, a tuple or a named tuple."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def digest(state: Any) -> str:
    """sha256 over the names, dtypes, shapes and bytes of every leaf: equal only for equal bits."""
    result = hashlib.sha256()
    for path, leaf in _leaves(state):
        value = np.asarray(leaf)
        result.update(f"{_name(path)} {value.dtype} {value.shape}\n".encode())
        result.update(value.tobytes())
    return result.hexdigest()
