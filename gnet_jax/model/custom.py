"""A user's own block or norm: a class or function in a file outside this package.

An `Architecture` stores the block or norm as a reference, "FILE:NAME". Loading a reference executes
the file.
"""

import hashlib
import importlib.machinery
import inspect
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gnet_jax.errors import UserError

_known: dict[str, Callable[..., Any]] = {}  # loaded classes and functions, by reference


def reference(part: Callable[..., Any] | str) -> str:
    """Returns the reference "FILE:NAME" of `part`. If `part` is a string, makes its path absolute.

    Only this process can load the reference if the class or function has no file (as in a notebook)
    or is defined inside a function.
    """
    if isinstance(part, str):
        file, _, attribute = part.rpartition(":")
        return f"{Path(file).absolute()}:{attribute}" if Path(file).is_file() else part
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
    """Returns whether other processes can load the reference `name`."""
    return not name.startswith("<process>:")


def load(name: str) -> Callable[..., Any]:
    """Returns the class or function that a reference names.

    If its file is missing, a file of that name in the current directory is used. Raises UserError
    if both are missing, or if the file raises an exception or does not define the name.
    """
    if name in _known:
        return _known[name]
    path, attribute = _find_file(name)
    module = types.ModuleType(f"custom_{path.stem}")
    search_path = list(sys.path)
    sys.path.append(str(path.parent.absolute()))  # the file may import modules from its own folder
    try:
        importlib.machinery.SourceFileLoader(module.__name__, str(path)).exec_module(module)
    except Exception as error:  # the user's code can raise any exception
        raise UserError(f"{path} fails with {type(error).__name__}: {error}") from error
    finally:
        sys.path[:] = search_path
    if not callable(getattr(module, attribute, None)):
        raise UserError(f"{path} does not define {attribute}, which the network uses")
    return _known.setdefault(name, getattr(module, attribute))


def digest(name: str) -> str:
    """Returns the sha256 of the file in a reference. Raises UserError if the file is missing."""
    return hashlib.sha256(_find_file(name)[0].read_bytes()).hexdigest()


def _find_file(name: str) -> tuple[Path, str]:
    file, colon, attribute = name.rpartition(":")
    if not colon:
        raise UserError(f"the network uses {name!r}, which this version of gnet_jax does not have")
    path = next((p for p in (Path(file), Path(Path(file).name)) if p.is_file()), None)
    if path is None:
        missing = f"the network uses {attribute} of {file}, which is missing"
        raise UserError(f"{missing}; restore the file or copy it to the current directory")
    return path, attribute


def _source_file(part: Callable[..., Any]) -> Path | None:
    """Returns the file that defines a function or the methods of a class, or None."""
    files = [getattr(sys.modules.get(part.__module__), "__file__", None)]
    for value in (part, *vars(part).values()):
        code = getattr(inspect.unwrap(value), "__code__", None) if callable(value) else None
        if code is not None and getattr(value, "__module__", None) == part.__module__:
            files.append(code.co_filename)
    return next((Path(f).absolute() for f in reversed(files) if f and Path(f).is_file()), None)
