"""A user's own block or norm: a class or function in a file outside this package.

An `Architecture` stores the block or norm as a reference, "FILE:NAME". Loading a reference executes
the file. Recipes are executed in the same way.
"""

import contextlib
import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from gnet_jax.errors import UserError

_known: dict[str, Callable[..., Any]] = {}  # loaded classes and functions, by reference
_searched: list[str] = []  # the folders that `executed` has added to sys.path


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
    try:
        with executed(path) as module:
            part = getattr(module, attribute, None)
    except Exception as error:  # the user's code can raise any exception
        raise UserError(f"{path} fails with {type(error).__name__}: {error}") from error
    if not callable(part):
        raise UserError(f"{path} does not define {attribute}, which the network uses")
    return _known.setdefault(name, part)


@contextlib.contextmanager
def executed(path: Path, *folders: Path, first: bool = False) -> Iterator[ModuleType]:
    """Execute a Python file; yield its module.

    Until the context ends, imports also find the modules in the file's folder and in `folders`,
    before all others if `first` is true, else after them. Those that are a single file are loaded
    for this file alone, because for another file their name can mean a module in another folder.
    """
    places = [str(folder.absolute()) for folder in (path.parent, *folders)]
    local = {file.stem for place in places for file in Path(place).glob("*.py")}
    local -= {*sys.stdlib_module_names, "__main__"}
    unique = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:8]
    loader = SourceFileLoader(f"{path.stem}_{unique}", str(path))
    spec: Any = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    before, searched = list(sys.path), list(_searched)
    hidden = {name: sys.modules[name] for name in _single_files(local)}
    try:
        for name in hidden:
            del sys.modules[name]
        others = [place for place in sys.path if place not in _searched]
        _searched[:] = [place for place in places if place not in others]
        sys.path[:] = [*places, *others] if first else [*others, *places]
        sys.modules[loader.name] = module  # dataclasses look up their annotations there
        loader.exec_module(module)
        yield module
    finally:
        sys.path[:], _searched[:] = before, searched
        for name in _single_files(local):
            del sys.modules[name]
        sys.modules.update(hidden)


def _single_files(names: Iterable[str]) -> list[str]:
    """Returns those names of loaded modules that are not packages, such as NumPy."""
    return [n for n in names if n in sys.modules and not hasattr(sys.modules[n], "__path__")]


def takes_momentum(norm: Callable[..., Any]) -> bool:
    """Returns whether a user's norm has the argument `momentum`."""
    return "momentum" in inspect.signature(norm).parameters


def digest(name: str) -> str:
    """Returns the sha256 of the file in a reference. Raises UserError if the file is missing."""
    return hashlib.sha256(_find_file(name)[0].read_bytes()).hexdigest()


def _find_file(name: str) -> tuple[Path, str]:
    file, colon, attribute = name.rpartition(":")
    if not colon:
        raise UserError(f"the network uses {name!r}, which this version of gnet_jax does not have")
    # Before Python 3.14, `Path.is_file` raises an exception for a file in a private folder.
    path = next((p for p in (Path(file), Path(Path(file).name)) if os.path.isfile(p)), None)
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
