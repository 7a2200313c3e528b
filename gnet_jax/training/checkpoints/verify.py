"""Verify, restore and list the checkpoints of a run, or open the best one as a model.

A checkpoint is a folder named after its step. Its folder `state` has the arrays in the format of
Orbax. `digests/digests.json` has the digest (dtype, shape and sha256) of each array, the
description of the model (architecture, preprocessing, class names) and the top-1 accuracy. It also
has a sha256 over all of this.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from gnet_jax.config import ConfigError
from gnet_jax.config.bucket import BucketPath, Place
from gnet_jax.errors import first_line
from gnet_jax.training.checkpoints.storage import check_readable, kvstore, open_storage
from gnet_jax.training.workdir import CONFIG_FILE, write_whole

if TYPE_CHECKING:
    from gnet_jax.model_folder.folder import TrainedModel

CHECKPOINTS = "checkpoints"
DIGESTS_FILE = "digests.json"


class CorruptError(ConfigError):
    """A checkpoint differs from what was written; `reason` says how."""

    def __init__(self, checkpoint: Place, reason: str) -> None:
        super().__init__(
            f"checkpoint {checkpoint.name} in {checkpoint.parent} is corrupt: {reason}; move "
            f"{checkpoint} away to use another one"
        )
        self.reason = reason


def read_verified(
    checkpoint: Place, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, np.ndarray]:
    """Verify and return those arrays of a checkpoint for which `wanted(name)` is true.
    Raises CorruptError if the arrays cannot be read, or if one is missing or differs from what was
    saved. Raises another UserError if a file or an object cannot be opened, because its content may
    be intact.
    """
    try:
        return _read_verified(checkpoint, wanted)
    except CorruptError:
        check_readable(checkpoint)
        if not isinstance(checkpoint, BucketPath):
            raise
    return _read_verified(checkpoint, wanted)  # the network may have failed for a moment


def _read_verified(checkpoint: Place, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    digests = read_digests(checkpoint)["arrays"].items()
    written = {name: entry for name, entry in digests if wanted(name)}
    try:
        arrays = _read_arrays(checkpoint / "state", list(written))
    except Exception as error:  # TensorStore's errors have no common class
        raise CorruptError(checkpoint, f"it cannot be read ({first_line(error)})") from error
    difference = find_difference(arrays, written)
    if difference is not None:
        raise CorruptError(checkpoint, difference)
    return arrays


def find_difference(arrays: Mapping[str, np.ndarray], written: Mapping[str, Any]) -> str | None:
    """Describe the first array that differs from its digest in `written`; None if all match."""
    for name, expected in written.items():
        found = _digest_array(arrays[name])
        if found[:2] != expected[:2]:
            return f"{name} is {found[:2]}, but {expected[:2]} was saved"
        if found != expected:
            return f"the bits of {name} differ from those that were saved"
    return None


def write_digests(
    folder: Place, arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any]
) -> None:
    """Write `notes` and the digests of `arrays` to the file digests.json in `folder`."""
    entries = {name: _digest_array(array) for name, array in sorted(arrays.items())}
    _write(folder, {**notes, "arrays": entries})


def add_notes(checkpoint: Place, notes: Mapping[str, Any]) -> None:
    """Add `notes` to digests.json, replacing equal keys; on an error, the file is unchanged."""
    _write(checkpoint / "digests", read_digests(checkpoint) | dict(notes))


def read_digests(checkpoint: Place) -> dict[str, Any]:
    """Returns what `write_digests` wrote: the notes, and the digests under the key "arrays".
    Raises CorruptError if the file is missing or differs from what was written, and BucketError if
    the bucket cannot be read now.
    """
    try:
        content = (checkpoint / "digests" / DIGESTS_FILE).read_bytes()
    except OSError as error:
        reason = f"{DIGESTS_FILE} cannot be read ({error.strerror})"
        raise CorruptError(checkpoint, reason) from error
    try:
        body = json.loads(content)
        seal = body.pop("sha256")
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        body, seal = {}, None
    if seal != _seal(body):
        raise CorruptError(checkpoint, f"{DIGESTS_FILE} differs from what was written")
    return body


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves by path, such as "params/conv1/..."; dict keys and fields look alike."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def digest(tree: Any) -> str:
    """Returns a sha256 over the names, dtypes, shapes and bytes of all leaves."""
    result = hashlib.sha256()
    for name, leaf in named_leaves(tree).items():
        value = np.asarray(leaf)
        result.update(f"{name} {value.dtype} {value.shape}\n".encode())
        result.update(value.tobytes())
    return result.hexdigest()


def _digest_array(array: np.ndarray) -> list[Any]:
    """Returns the dtype and the shape of an array, and the sha256 of its bytes in C order."""
    sha256 = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    return [str(array.dtype), list(array.shape), sha256]


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _write(folder: Place, body: Mapping[str, Any]) -> None:
    write_whole(folder / DIGESTS_FILE, json.dumps({"sha256": _seal(body), **body}))


def _read_arrays(folder: Place, names: list[str]) -> dict[str, np.ndarray]:
    """Read arrays that Orbax wrote. Orbax itself would put them on devices before verification."""
    import tensorstore  # here, so that `gnet train --help`, which imports this module, is fast

    def start_opening(name: str) -> Any:
        path = name.replace("/", ".") + "/"
        database = {"driver": "ocdbt", "base": kvstore(folder), "path": path}
        return tensorstore.open({"driver": "zarr", "kvstore": database}, open=True, read=True)

    opening = {name: start_opening(name) for name in names}
    reading = {name: each.result().read() for name, each in opening.items()}
    return {name: np.asarray(each.result()) for name, each in reading.items()}


class SavedSteps:
    """The committed checkpoints in a folder or a bucket, read-only."""

    def __init__(self, folder: Place) -> None:
        self.folder = folder.resolve()  # TensorStore refuses a path with ".." in it
        self.storage = open_storage(self.folder)
        self._list()

    def _list(self) -> None:
        steps, top1s, corrupt = self.storage.list_steps(), {}, {}
        for step in steps:
            try:
                top1 = read_digests(self.path(step)).get("top1")
                if top1 is not None:
                    top1s[step] = top1
            except CorruptError as error:
                corrupt[step] = error
        self.steps = steps
        self.top1: dict[int, float] = top1s  # validation accuracy of each step that was evaluated
        self.corrupt: dict[int, CorruptError] = corrupt  # steps without valid digests

    def path(self, step: int) -> Place:
        return self.folder / str(step)

    @property
    def latest(self) -> int | None:
        return self.steps[-1] if self.steps else None

    @property
    def best(self) -> int | None:
        """The step with the highest top-1 accuracy, or the newest of them if there are several."""
        return max(self.top1, key=lambda step: (self.top1[step], step), default=None)

    def restore(self, step: int, abstract_state: Any) -> Any:
        """Returns the verified state of `step`, with the shardings of `abstract_state`.
        Raises ConfigError if the step is corrupt, or if the names, shapes or dtypes of its leaves
        differ from those of `abstract_state`.
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
                    f"{found.get(name, 'absent')} there, but {expected.get(name, 'absent')} in "
                    "this run; use the code that wrote the checkpoint, or another --workdir"
                )
        placed = [
            jax.make_array_from_callback(leaf.shape, leaf.sharding, arrays[name].__getitem__)
            for name, leaf in wanted.items()
        ]
        return jax.tree.unflatten(jax.tree.structure(abstract_state), placed)


def is_workdir(path: Place) -> bool:
    """Returns whether `path` is a run's workdir that contains a folder of checkpoints."""
    return (path / CONFIG_FILE).is_file() and (path / CHECKPOINTS).is_dir()


def read_workdir(workdir: Place, step: int | None = None) -> "TrainedModel":
    """Returns the model in the checkpoint `step`, by default the best, or the newest if none was
    evaluated. The run may be training: if it deletes the checkpoint meanwhile, reads the next best.

    The parameters are the averaged ones if the run averaged them. The run's data are not needed.
    Raises WeightsError if there is no such checkpoint, or if its arrays do not match the
    architecture saved with it. Raises CorruptError if it is corrupt or, without `step`, if the
    digests of any other checkpoint are.
    """
    from gnet_jax.model_folder.folder import WeightsError  # imports Flax, which is slow

    saved = SavedSteps(workdir / CHECKPOINTS)
    if not saved.steps:
        raise WeightsError(f"{workdir} has no checkpoint; train until one is saved")
    if step is not None and step not in saved.steps:
        known = ", ".join(map(str, saved.steps))
        raise WeightsError(f"{workdir} has no checkpoint of step {step}; it has {known}")
    try:
        for error in saved.corrupt.values() if step is None else ():  # it may be the best one
            raise error
        chosen = step if step is not None else saved.best
        return _read_step(workdir, saved, saved.steps[-1] if chosen is None else chosen)
    except ConfigError:
        if SavedSteps(saved.folder).steps == saved.steps:
            raise
    return read_workdir(workdir, step)  # the run has deleted or saved a step meanwhile


def _read_step(workdir: Place, saved: SavedSteps, step: int) -> "TrainedModel":
    from gnet_jax.model_folder.folder import WeightsError, folder_of

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
