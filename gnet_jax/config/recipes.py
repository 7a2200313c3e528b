"""Load recipes and sweeps: Python files that return one configuration, or several to compare."""

import dataclasses
import importlib.machinery
import inspect
import re
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from gnet_jax.config.fields import Config, ConfigError, Count, Limit, check_limits
from gnet_jax.errors import suggestion

Kind = TypeVar("Kind")

SWEEP_PREFIX = "ablate_"
COMMON = "common"  # the module with settings that recipes share
_PACKAGE = Path(__file__).resolve().parents[1]
# A wheel contains the recipes inside the package; a folder `configs` next to it is not ours.
_INSIDE = _PACKAGE / "configs"
IN_CHECKOUT = not _INSIDE.is_dir()
RECIPES = _PACKAGE.parent / "configs" if IN_CHECKOUT else _INSIDE


def recipe_names() -> list[str]:
    """Returns the names of the recipes in `configs/`, without the sweeps."""
    names = sorted(path.stem for path in RECIPES.glob("*.py"))
    return [name for name in names if not name.startswith(SWEEP_PREFIX) and name != COMMON]


def sweep_names() -> list[str]:
    """Returns the names of the sweeps in `configs/`."""
    return sorted(path.stem for path in RECIPES.glob(f"{SWEEP_PREFIX}*.py"))


def load_recipe(name: str) -> tuple[Config, str]:
    """Returns the config and the docstring of a recipe; see `load_file` for the errors."""
    return load_file(name, "get_config", Config)


def load_file(name: str, function: str, kind: type[Kind]) -> tuple[Kind, str]:
    """Call `function` of a Python file; return its result (a `kind`) and the file's docstring.

    `name` is a path, or the name of a file in `configs/`. The file may import modules in its folder
    and `configs/common.py`. Raises ConfigError if the file is missing or raises an exception, or
    if the function returns another type or invalid values.
    """
    path, own = Path(name), RECIPES / f"{Path(name).stem}.py"
    # A name without a suffix means the file in configs/, even if the working directory has one too.
    if own.is_file() and (name == own.stem or (name == own.name and not path.is_file())):
        path = own
    if not path.is_file():
        what, known = ("recipe", recipe_names()) if kind is Config else ("sweep", sweep_names())
        raise ConfigError(
            f"unknown {what} {name}, neither a file nor in configs/; {suggestion(name, known)}"
        )
    module = types.ModuleType(f"recipe_{path.stem}")
    loader = importlib.machinery.SourceFileLoader(module.__name__, str(path))
    search_path = list(sys.path)
    sys.path += [str(path.parent.absolute()), str(RECIPES)]
    try:
        sys.modules.pop(COMMON, None)  # the file may import a common.py from its own folder
        loader.exec_module(module)
        given = getattr(module, function)()
        if not isinstance(given, kind):
            found = type(given).__name__
            raise ConfigError(f"{function}() returns a {found}, not a {kind.__name__}")
        check_limits(given)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"{path} fails with {type(error).__name__}: {error}") from error
    finally:
        sys.path[:] = search_path
        sys.modules.pop(COMMON, None)
    # --help wraps paragraphs itself; indented lines stay as they are.
    return given, re.sub(r"(?<=\S)\n(?=\S)", " ", inspect.cleandoc(module.__doc__ or ""))


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Configs to compare. Each is trained once with every seed."""

    configs: Annotated[Mapping[str, Config], Limit("at least one config", bool)]
    """Configs by name, in the order of the results table. The names are also folder names."""
    seeds: Count = 3
    """Number of runs of each config. The first uses the config's `seed`, the next `seed + 1` ..."""


def load_sweep(name: str) -> tuple[Sweep, str]:
    """Returns the sweep and the docstring of a Python file; see `load_file` for the errors."""
    sweep, docstring = load_file(name, "get_sweep", Sweep)
    for each in sweep.configs:
        if not re.fullmatch(r"[\w.+=-]*\w[\w.+=-]*", each):
            raise ConfigError(
                f"sweep {name} has a config called {each!r}; use only letters, digits and _ . + = -"
            )
    return sweep, docstring


def install(extra: str) -> str:
    """Returns the pip command that installs an optional dependency group (an extra)."""
    return f"pip install -e '.[{extra}]'" if IN_CHECKOUT else f"pip install 'gnet-jax[{extra}]'"


def needs(what: str, error: ImportError, extra: str) -> str:
    """Returns an error message: `what` requires a package, and which command installs it."""
    return f"{what} requires a package that cannot be imported ({error}): {install(extra)}"
