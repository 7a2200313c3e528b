"""Recipes: Python files that give a configuration."""

import importlib.machinery
import sys
import types
from pathlib import Path
from typing import TypeVar

from gnet_jax.config.check import check_types
from gnet_jax.config.fields import Config, ConfigError
from gnet_jax.config.suggest import suggestion

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
