"""The committed checkpoints of a run: which there are, and how one is restored."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gnet_jax.config import ConfigError
from gnet_jax.training.checkpoints.storage import (
    DamageError,
    named_leaves,
    read_arrays,
    read_digests,
)


class SavedSteps:
    """The committed checkpoints of a run, to be read; nothing in the folder is changed.

    Raises:
        ConfigError: if the folder cannot be listed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()  # TensorStore refuses a path with ".." in it
        self._without_model: set[int] = set()  # steps that an older version saved
        self._scores: dict[int, float] = {}
        self.damaged: dict[int, str] = {}  # steps whose digests, and score, cannot be read, and why
        self._look()

    def _look(self) -> None:
        """Take note of what is committed."""
        try:  # not glob, which finds nothing in a folder that it cannot list
            names = [path.name for path in self.folder.iterdir() if path.is_dir()]
        except FileNotFoundError:
            names = []
        except OSError as error:
            raise ConfigError(
                f"the checkpoints in {self.folder} cannot be listed: {error.strerror}; make the "
                "folder readable"
            ) from error
        self.steps = sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))
        self._scores, self.damaged = {}, {}
        self._without_model = set()
        for step in self.steps:
            try:
                notes = read_digests(self.folder / str(step) / "digests")
            except DamageError as error:
                self.damaged[step] = str(error)
                continue
            if notes.get("top1") is not None:
                self._scores[step] = notes["top1"]
            if notes.get("model") is None:
                self._without_model.add(step)

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
        return self._placed(step, self.read(step), abstract_state)

    def read(
        self, step: int, wanted: Callable[[str], bool] = lambda name: True
    ) -> dict[str, np.ndarray]:
        """Returns the arrays of `step` whose names are `wanted`, every bit verified.

        Raises:
            ConfigError: if one of them is damaged.
        """
        with self._named(step):
            return read_arrays(self.folder / str(step), wanted)

    def model(self, step: int) -> Any:
        """Returns the description of the model in `step`; None if an older version saved it.

        Raises:
            ConfigError: if it is damaged.
        """
        with self._named(step):
            return read_digests(self.folder / str(step) / "digests").get("model")

    @contextlib.contextmanager
    def _named(self, step: int) -> Iterator[None]:
        """Say which step is damaged, and what to do."""
        try:
            yield
        except DamageError as error:
            others = [str(each) for each in self.steps if each != step]
            rest = f"use step {' or '.join(others)}" if others else "begin from scratch"
            raise ConfigError(
                f"checkpoint {step} in {self.folder} is damaged: {error}; move "
                f"{self.folder / str(step)} away to {rest}"
            ) from error

    def _placed(self, step: int, arrays: dict[str, np.ndarray], abstract_state: Any) -> Any:
        expected = {name: (x.shape, x.dtype) for name, x in named_leaves(abstract_state).items()}
        found = {name: (x.shape, x.dtype) for name, x in arrays.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise ConfigError(
                    f"checkpoint {step} in {self.folder} does not fit: {name} is "
                    f"{found.get(name, 'absent')} there, {expected.get(name, 'absent')} here; use "
                    "the code that wrote it, or another --workdir"
                )
        leaves, tree = jax.tree.flatten(abstract_state)
        placed = [
            jax.make_array_from_callback(leaf.shape, leaf.sharding, array.__getitem__)
            for leaf, array in zip(leaves, map(arrays.get, expected), strict=True)
            if array is not None
        ]
        return jax.tree.unflatten(tree, placed)
