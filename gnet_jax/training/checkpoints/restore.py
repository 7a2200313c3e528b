"""List the committed checkpoints of a run, restore one, or open the best one as a model."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gnet_jax.config import ConfigError
from gnet_jax.model_folder.folder import CONFIG_FILE, TrainedModel, WeightsError, folder_of
from gnet_jax.training.checkpoints.verify import (
    CorruptError,
    digest,
    named_leaves,
    read_digests,
    read_verified,
)

CHECKPOINTS = "checkpoints"


class SavedSteps:
    """The committed checkpoints in a folder, read-only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()  # TensorStore refuses a path with ".." in it
        self._list()

    def _list(self) -> None:
        try:  # not with glob, which returns nothing for a folder that cannot be listed
            names = [path.name for path in self.folder.iterdir() if path.is_dir()]
        except FileNotFoundError:
            names = []
        except OSError as error:
            raise ConfigError(
                f"the checkpoints in {self.folder} cannot be listed: {error.strerror}; make the "
                "folder readable"
            ) from error
        self.steps = sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))
        self.top1: dict[int, float] = {}  # validation accuracy of each step that was evaluated
        self.corrupt: dict[int, CorruptError] = {}  # steps without valid digests
        for step in self.steps:
            try:
                top1 = read_digests(self.path(step)).get("top1")
                if top1 is not None:
                    self.top1[step] = top1
            except CorruptError as error:
                self.corrupt[step] = error

    def path(self, step: int) -> Path:
        return self.folder / str(step)

    @property
    def latest(self) -> int | None:
        return self.steps[-1] if self.steps else None

    @property
    def best(self) -> int | None:
        """The step with the highest top-1 accuracy; if several have it, the newest of them."""
        return max(self.top1, key=lambda step: (self.top1[step], step), default=None)

    def restore(self, step: int, abstract_state: Any) -> Any:
        """Returns the verified state of `step`, placed on any number of devices and processes.

        `abstract_state` is a tree of `jax.ShapeDtypeStruct` with shardings. Raises ConfigError if
        the step is corrupt, or if its leaves, shapes or dtypes differ from `abstract_state`.
        """
        return self._place(step, read_verified(self.path(step)), abstract_state)

    def _place(self, step: int, arrays: dict[str, np.ndarray], abstract_state: Any) -> Any:
        wanted = named_leaves(abstract_state)
        expected, found = (
            {name: (x.shape, x.dtype) for name, x in leaves.items()} for leaves in (wanted, arrays)
        )
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise ConfigError(
                    f"checkpoint {step} in {self.folder} does not fit this run: {name} is "
                    f"{found.get(name, 'absent')} there, {expected.get(name, 'absent')} here; use "
                    "the code that wrote the checkpoint, or another --workdir"
                )
        placed = [
            jax.make_array_from_callback(leaf.shape, leaf.sharding, arrays[name].__getitem__)
            for name, leaf in wanted.items()
        ]
        return jax.tree.unflatten(jax.tree.structure(abstract_state), placed)


def is_workdir(path: Path) -> bool:
    """Returns whether `path` is the workdir of a run, with a folder of checkpoints."""
    return (path / CONFIG_FILE).is_file() and (path / CHECKPOINTS).is_dir()


def read_workdir(workdir: Path) -> TrainedModel:
    """Returns the model in a run's best checkpoint, or in its newest if none was evaluated.

    The model has the averaged parameters if the run averaged them. Only the checkpoint is read: the
    data and the `--init` of the run may be missing. Raises WeightsError if there is no checkpoint
    or it does not fit its description. Raises CorruptError if the checkpoint or the digests of any
    step are corrupt.
    """
    saved = SavedSteps(workdir / CHECKPOINTS)
    for error in saved.corrupt.values():  # this step may be the best one
        raise error
    step = saved.latest if saved.best is None else saved.best
    if step is None:
        raise WeightsError(f"{workdir} has no checkpoint; train until one is saved")
    path = saved.path(step)
    where = f"checkpoint {step} in {saved.folder}"
    description = read_digests(path).get("model")
    if description is None:
        raise WeightsError(f"{where} contains no model; convert it with the version that saved it")
    averaged = read_verified(path, lambda name: name.startswith("average/"))
    tensors = {name.removeprefix("average/"): each for name, each in averaged.items()}
    if not averaged:
        tensors = read_verified(path, lambda name: name.startswith(("params/", "batch_stats/")))
    folder = folder_of(description, tensors, where)
    folder.source.update(
        file=workdir.absolute().name,
        sha256=digest(folder.variables),
        step=str(step),
        parameters="averaged" if averaged else "as trained",
    )
    if step in saved.top1:
        folder.source["validation_top1"] = f"{saved.top1[step]:.4f}"
    return folder
