"""sha256 of every array of a state, and of the list of them: what tells a damaged checkpoint."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

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
