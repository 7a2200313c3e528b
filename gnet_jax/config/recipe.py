"""Recipes: Python files that give a configuration."""

import importlib.machinery
import types
from pathlib import Path

from gnet_jax.config.fields import Config, ConfigError

# Beside the package in a checkout, inside it where it was installed from a wheel.
_HERE = Path(__file__).resolve().parents[1]
RECIPES = next((p for p in (_HERE.parent / "configs", _HERE / "configs") if p.is_dir()), _HERE)


def load_recipe(name: str) -> tuple[Config, str]:
    """The configuration that a recipe file gives, and the file's docstring.

    Args:
        name: a path to a Python file that defines `get_config()`, or the name of one in `configs/`.

    Raises:
        ConfigError: if there is no such file, it fails, or gives no `Config`.
    """
    path = Path(name)
    if not path.is_file():
        path = RECIPES / f"{name.removesuffix('.py')}.py" if path.parent == Path() else path
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.py")))
        raise ConfigError(f"there is no config file {name}; the recipes in configs/ are: {known}")
    loader = importlib.machinery.SourceFileLoader(f"recipe_{path.stem}", str(path))
    module = types.ModuleType(loader.name)
    try:
        loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise ConfigError(f"{path} defines no get_config() -> Config")
        config = module.get_config()
    except ConfigError:
        raise
    except Exception as error:  # it is the user's code; what went wrong in it is for the user
        raise ConfigError(f"{path} fails with {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"get_config() of {path} gives a {type(config).__name__}, not a Config")
    return config, module.__doc__ or ""
