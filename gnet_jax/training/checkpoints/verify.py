"""Read and verify a checkpoint: `read_verified` compares the sha256 of every array.

A checkpoint is a folder whose name is its step. Its folder `state` has the arrays in the format of
Orbax. `digests/digests.json` has the dtype, shape and sha256 of each array, the description of the
model and the top-1 accuracy. A sha256 over all of this is in the same file.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gnet_jax.config import ConfigError
from gnet_jax.config.paths import plain_path

DIGESTS_FILE = "digests.json"


class CorruptError(ConfigError):
    """A checkpoint differs from what was written; `reason` says how."""

    def __init__(self, checkpoint: Path, reason: str) -> None:
        super().__init__(
            f"checkpoint {checkpoint.name} in {checkpoint.parent} is corrupt: {reason}; move "
            f"{checkpoint} away to use another one"
        )
        self.reason = reason


def read_verified(
    checkpoint: Path, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, np.ndarray]:
    """Returns the arrays of a checkpoint for which `wanted(name)` is true, after verifying them.

    Raises CorruptError with the name of the first array that is missing or differs. Raises
    ConfigError if a file cannot be opened, because its content may still be intact.
    """
    try:
        written = read_digests(checkpoint)["arrays"]
        written = {name: entry for name, entry in written.items() if wanted(name)}
        try:
            arrays = _read_arrays(checkpoint / "state", list(written))
        except Exception as error:  # TensorStore's errors have no common class
            raise CorruptError(checkpoint, f"it cannot be read ({first_line(error)})") from error
        difference = find_difference(arrays, written)
        if difference is not None:
            raise CorruptError(checkpoint, difference)
    except CorruptError:
        _check_readable(checkpoint)
        raise
    return arrays


def find_difference(arrays: Mapping[str, np.ndarray], written: Mapping[str, Any]) -> str | None:
    """Returns the first difference between `arrays` and the digests in `written`, or None."""
    for name in sorted(written.keys() | arrays.keys()):
        if name not in arrays:
            return f"{name} is missing"
        if name not in written:
            return f"{name} was not saved"
        found, expected = _digest_array(arrays[name]), written[name]
        if found[:2] != expected[:2]:
            return f"{name} is {found[:2]}, but {expected[:2]} was saved"
        if found != expected:
            return f"the bits of {name} differ from those that were saved"
    return None


def _check_readable(checkpoint: Path) -> None:
    try:
        for path in [checkpoint, *checkpoint.rglob("*")]:
            os.listdir(path) if path.is_dir() else open(path, "rb").close()
    except OSError as error:
        raise ConfigError(
            f"{error.filename} cannot be opened ({error.strerror}), so the checkpoint cannot be "
            "verified; make it readable, then run the same command again"
        ) from error


def write_digests(folder: Path, arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> None:
    """Write the digests of `arrays`, and `notes`, to `folder`, which is CHECKPOINT/digests."""
    entries = {name: _digest_array(array) for name, array in sorted(arrays.items())}
    _write(folder, {**notes, "arrays": entries})


def add_notes(checkpoint: Path, notes: Mapping[str, Any]) -> None:
    """Replace some of the notes that `write_digests` wrote; an error leaves the file unchanged."""
    _write(checkpoint / "digests", read_digests(checkpoint) | dict(notes))


def read_digests(checkpoint: Path) -> dict[str, Any]:
    """Returns what `write_digests` wrote: the notes, and the digests under the key "arrays".

    Raises CorruptError if the file is missing or differs from what was written.
    """
    try:
        body = json.loads((checkpoint / "digests" / DIGESTS_FILE).read_bytes())
        seal = body.pop("sha256")
    except OSError as error:
        raise CorruptError(
            checkpoint, f"{DIGESTS_FILE} cannot be read ({error.strerror})"
        ) from error
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        body, seal = {}, None
    if seal != _seal(body):
        raise CorruptError(checkpoint, f"{DIGESTS_FILE} is not what was written")
    return body


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves by path ("params/conv1/..."); dicts and named tuples give equal paths."""

    def part(key: Any) -> str:
        return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))

    return {"/".join(map(part, path)): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def digest(tree: Any) -> str:
    """Returns a sha256 over the names, dtypes, shapes and bytes of all leaves."""
    result = hashlib.sha256()
    for name, leaf in named_leaves(tree).items():
        value = np.asarray(leaf)
        result.update(f"{name} {value.dtype} {value.shape}\n".encode())
        result.update(value.tobytes())
    return result.hexdigest()


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or the name of its class if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _digest_array(array: np.ndarray) -> list[Any]:
    """Returns the dtype, the shape and the sha256 of the bytes in C order."""
    sha256 = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    return [str(array.dtype), list(array.shape), sha256]


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _write(folder: Path, body: Mapping[str, Any]) -> None:
    partial = folder / f"{DIGESTS_FILE}.partial"
    partial.write_text(json.dumps({"sha256": _seal(body), **body}))
    partial.replace(folder / DIGESTS_FILE)


def _read_arrays(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Read arrays that Orbax wrote, without using Orbax.

    Orbax would log further errors after the first one, and place arrays on devices before they are
    verified.
    """
    import tensorstore  # here, so that `gnet train --help`, which imports this module, is fast

    def start_opening(name: str) -> Any:
        base = {"driver": "file", "path": f"{plain_path(folder)}/"}
        kvstore = {"driver": "ocdbt", "base": base, "path": name.replace("/", ".") + "/"}
        return tensorstore.open({"driver": "zarr", "kvstore": kvstore}, open=True, read=True)

    opening = {name: start_opening(name) for name in names}
    reading = {name: each.result().read() for name, each in opening.items()}
    return {name: np.asarray(each.result()) for name, each in reading.items()}
