"""A configuration from a command line: a recipe, and any field changed."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import tyro

from gnet_jax.config.fields import Config
from gnet_jax.config.recipe import RECIPES, load_recipe

Kind = TypeVar("Kind", bound=Config)


def parse_config(
    arguments: Sequence[str],
    prog: str,
    kind: type[Kind] = Config,
    about: str | None = None,
) -> Kind:
    """The config of `[CONFIG] [--field.path value ...]`. `--help` and typos end the program.

    Args:
        arguments: what was typed behind `prog`; CONFIG is a recipe's name ("digits" where there is
            none) or a Python file.
        prog: the command, for its help.
        kind: a subclass of `Config` where a command has fields of its own besides.
        about: what the command does; None shows the docstring of the recipe.

    Raises:
        ConfigError: if there is no such recipe.
    """
    named = bool(arguments) and not arguments[0].startswith("-")
    recipe = arguments[0] if named else "digits"
    config, docstring = load_recipe(recipe)
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    recipes = ", ".join(sorted(path.stem for path in RECIPES.glob("*.py")))
    return tyro.cli(
        kind,
        prog=f"{prog} {recipe}" if named else f"{prog} [CONFIG]",
        description=f"{docstring if about is None else about}\n\nThe defaults below are those of "
        f"{recipe!r}. CONFIG may be one of: {recipes}; or a Python file with a get_config().",
        default=kind(**own),
        args=list(arguments[named:]),
        config=(tyro.conf.FlagConversionOff,),
    )
