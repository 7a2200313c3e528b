"""Recipes: Python files that give a configuration."""

import dataclasses
import importlib.machinery
import re
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from gnet_jax.config.fields import Config, ConfigError, check_types, suggestion

Kind = TypeVar("Kind")

_PACKAGE = Path(__file__).resolve().parents[1]
SWEEP_PREFIX = "ablate_"
# Inside the package if it was installed from a wheel, where a folder configs beside it is some
# other project's; beside it in a checkout.
_INSIDE = _PACKAGE / "configs"
IN_CHECKOUT = not _INSIDE.is_dir()
RECIPES = _PACKAGE.parent / "configs" if IN_CHECKOUT else _INSIDE


def recipe_names() -> list[str]:
    """The recipes in `configs/`, the sweeps (ablate_*.py) not among them."""
    names = sorted(path.stem for path in RECIPES.glob("*.py"))
    return [name for name in names if not name.startswith(SWEEP_PREFIX)]


def sweep_names() -> list[str]:
    """The sweeps in `configs/`."""
    return sorted(path.stem for path in RECIPES.glob(f"{SWEEP_PREFIX}*.py"))


def load_recipe(name: str) -> tuple[Config, str]:
    """The configuration that a recipe file gives, and the file's docstring.

    Args:
        name: a path to a Python file that defines `get_config()`, or the name of one in `configs/`.

    Raises:
        ConfigError: if there is no such file, it fails, or gives no `Config`.
    """
    return load_file(name, "get_config", Config)


def load_file(name: str, function: str, kind: type[Kind]) -> tuple[Kind, str]:
    """What `function` of a Python file gives, and the file's docstring.

    Args:
        name: a path, or the name of a file in `configs/`.
        function: "get_config" or "get_sweep".
        kind: of what it must give.

    Raises:
        ConfigError: if there is no such file, it fails, or gives something else.
    """
    path, own = Path(name), RECIPES / f"{Path(name).stem}.py"
    # A bare name means the recipe, also if the working directory has a file of this name.
    if own.is_file() and (name == own.stem or (name == own.name and not path.is_file())):
        path = own
    if not path.is_file():
        what, known = ("recipe", recipe_names()) if kind is Config else ("sweep", sweep_names())
        raise ConfigError(
            f"there is no {what} {name}, neither a file nor in configs/; {suggestion(name, known)}"
        )
    loader = importlib.machinery.SourceFileLoader(f"recipe_{path.stem}", str(path))
    module = types.ModuleType(loader.name)
    search_path = list(sys.path)
    sys.path.append(str(path.parent.absolute()))  # it may import files beside it
    try:
        loader.exec_module(module)
        if not callable(getattr(module, function, None)):
            raise ConfigError(f"{path} defines no {function}() -> {kind.__name__}")
        given = getattr(module, function)()
    except ConfigError:
        raise
    except Exception as error:  # it is the user's code; what went wrong in it is for the user
        raise ConfigError(f"{path} fails with {type(error).__name__}: {error}") from error
    finally:
        sys.path[:] = search_path
    if not isinstance(given, kind):
        raise ConfigError(
            f"{function}() of {path} gives a {type(given).__name__}, not a {kind.__name__}"
        )
    try:
        check_types(given)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return given, module.__doc__ or ""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Configurations to compare, each trained once with every seed."""

    configs: Mapping[str, Config]
    """By name, in the order of the table. The names become folders."""
    seeds: int = 3
    """Runs of each config; the first has its `seed`, the next one more, and so on."""


def load_sweep(name: str) -> tuple[Sweep, str]:
    """The sweep that a Python file's `get_sweep()` gives, and the file's docstring.

    Args:
        name: a path to the file, or the name of one in `configs/`.

    Raises:
        ConfigError: if there is no such file, it fails, or gives no sweep that can be run.
    """
    sweep, docstring = load_file(name, "get_sweep", Sweep)
    if not sweep.configs:
        raise ConfigError(f"the sweep {name} has no config; give it at least one")
    if sweep.seeds < 1:
        raise ConfigError(f"the sweep {name} has {sweep.seeds} seeds; it needs at least 1")
    for each in sweep.configs:
        if not re.fullmatch(r"[\w.+=-]*\w[\w.+=-]*", each):
            raise ConfigError(
                f"the sweep {name} calls a config {each!r}; its name becomes a folder, so use "
                "letters, digits and _ . + = - only"
            )
    return sweep, docstring


def install(extra: str) -> str:
    """The command that installs an extra of this package."""
    return f"pip install -e '.[{extra}]'" if IN_CHECKOUT else f"pip install 'gnet-jax[{extra}]'"


def needs(what: str, error: ImportError, extra: str) -> str:
    """The sentence that `what` needs a package which cannot be imported, and how to install it."""
    if isinstance(error, ModuleNotFoundError):
        return f"{what} needs the package {error.name}, which is not installed: {install(extra)}"
    return f"{what} needs a package that cannot be imported ({error}): {install(extra)}"
