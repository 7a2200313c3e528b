"""A researcher's own block or norm: a class or function in a file outside the package.

An architecture holds its reference, "FILE:NAME", so that configs, checkpoints and model folders can
be written, compared and loaded. Loading a reference runs the file.
"""

import importlib.machinery
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gnet_jax.errors import UserError

_known: dict[str, Callable[..., Any]] = {}  # by reference


def reference(part: Callable[..., Any]) -> str:
    """Returns the reference of a class or function.

    A part without a file (as in a notebook) or inside a function gets a reference that works in
    this process only; `is_portable` tells which.
    """
    name = getattr(part, "__qualname__", repr(part))
    path = _source_file(part)
    if path is not None and "." not in name:
        _known[f"{path}:{name}"] = part
        return f"{path}:{name}"
    number = 1
    while _known.setdefault(f"<process>:{name}#{number}", part) is not part:
        number += 1
    return f"<process>:{name}#{number}"


def is_portable(name: str) -> bool:
    """Returns whether another process can load the reference."""
    return not name.startswith("<process>:")


def load(name: str) -> Callable[..., Any]:
    """Returns the class or function that a reference names.

    A file that has moved is also looked for in the current directory.

    Raises:
        UserError: if the file is missing, fails, or does not define the name.
    """
    if name in _known:
        return _known[name]
    file, _, attribute = name.rpartition(":")
    path = next((p for p in (Path(file), Path(Path(file).name)) if p.is_file()), None)
    if path is None:
        raise UserError(
            f"the network uses {attribute} of {file}, which is missing; "
            "put the file back, or into the current directory"
        )
    module = types.ModuleType(f"custom_{path.stem}")
    search_path = list(sys.path)
    sys.path.append(str(path.parent.absolute()))  # it may import files beside it
    try:
        importlib.machinery.SourceFileLoader(module.__name__, str(path)).exec_module(module)
    except Exception as error:  # the user's code; its errors are for the user
        raise UserError(f"{path} fails with {type(error).__name__}: {error}") from error
    finally:
        sys.path[:] = search_path
    if not callable(getattr(module, attribute, None)):
        raise UserError(f"{path} does not define {attribute}, which the network uses")
    return _known.setdefault(name, getattr(module, attribute))


def _source_file(part: Callable[..., Any]) -> Path | None:
    """Returns the file that defines a function, or a method of a class."""
    codes = (getattr(value, "__code__", None) for value in (part, *vars(part).values()))
    file = next((code.co_filename for code in codes if code is not None), None)
    return Path(file).absolute() if file is not None and Path(file).is_file() else None
