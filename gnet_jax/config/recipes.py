"""Load recipes and sweeps: Python files that return one configuration, or several to compare."""

import dataclasses
import inspect
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from gnet_jax.config.fields import Config, ConfigError, Count, Limit, check_limits
from gnet_jax.errors import suggestion
from gnet_jax.model.custom import executed

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
    try:
        # A program that loads one of our recipes can have a common.py of its own.
        with executed(path, RECIPES, first=path.resolve() == own) as module:
            if not hasattr(module, function):
                uses = {"get_sweep": "sweep; use gnet ablate", "get_config": "recipe; use train.py"}
                hints = (f", but is a {use}" for name, use in uses.items() if hasattr(module, name))
                raise ConfigError(f"it has no function {function}{''.join(hints)}")
            given = getattr(module, function)()
        if not isinstance(given, kind):
            found = type(given).__name__
            raise ConfigError(f"{function}() returns a {found}, not a {kind.__name__}")
        check_limits(given)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"{path} fails with {type(error).__name__}: {error}") from error
    # --help wraps paragraphs itself; indented lines stay as they are.
    return given, re.sub(r"(?<=\S)\n(?=\S)", " ", inspect.cleandoc(module.__doc__ or ""))


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Configs to compare. Each is trained once with every seed."""

    configs: Annotated[Mapping[str, Config], Limit("at least one config", bool)]
    """Configs by name, in the order of the results table. The names are also folder names."""
    seeds: Count = 3
    """Number of runs of each config. The first uses the config's `seed`, the next `seed + 1` ..."""
    baseline: str | None = None
    """Config with which the others are compared; None is the first."""
    learning_rates: Annotated[
        tuple[float, ...], Limit("above 0", lambda rates: all(rate > 0 for rate in rates))
    ] = ()
    """Learning rates to try. A config is trained with each of them on 90 % of its training images.
    Its runs use the rate with the best top-1 on the other 10 %. Without rates, nothing is tuned."""
    families: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Config name -> name of the config whose tuned learning rate it uses, instead of its own."""


def change(config: Kind, fields: Mapping[str, Any]) -> Kind:
    """Returns `config` with other values of `fields`, whose names are dotted: "optim.power"."""
    for name, value in fields.items():
        first, _, rest = name.partition(".")
        known = [field.name for field in dataclasses.fields(config)]  # pyright: ignore
        if first not in known:
            raise ConfigError(f"unknown field {first!r}; {suggestion(first, known)}")
        new = change(getattr(config, first), {rest: value}) if rest else value
        config = dataclasses.replace(config, **{first: new})  # pyright: ignore
    return config


def grid(
    base: Config, fields: Mapping[str, Mapping[str, Any] | Sequence[Any]]
) -> dict[str, Config]:
    """Returns a config for every combination of values, by name, as `Sweep.configs` needs them.

    `fields` maps dotted field names to values, or to a mapping from labels to values. A config's
    name joins the labels with "+". Without a label, it is "FIELD=VALUE", such as "power=0.5".
    """
    axes = []
    for name, values in fields.items():
        last = name.rpartition(".")[2]
        labelled = [(f"{last}={_label(value)}", value) for value in values]
        pairs = values.items() if isinstance(values, Mapping) else labelled
        axes.append([(label, name, value) for label, value in pairs])
    configs: dict[str, Config] = {}
    for point in itertools.product(*axes):
        label = "+".join(label for label, _, _ in point)
        if label in configs:
            raise ConfigError(f"grid() makes the config {label!r} twice; use other labels")
        configs[label] = change(base, {name: value for _, name, value in point})
    return configs


def _label(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(_label, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def load_sweep(name: str) -> tuple[Sweep, str]:
    """Returns the sweep and the docstring of a Python file; see `load_file` for the errors."""
    sweep, docstring = load_file(name, "get_sweep", Sweep)
    for each in sweep.configs:
        if each == "sweep.json" or not re.fullmatch(r"[\w.+=-]*\w[\w.+=-]*", each):
            raise ConfigError(
                f"sweep {name} has a config called {each!r}; use only letters, digits and _ . + = -"
            )
    return sweep, docstring


def check_sweep(sweep: Sweep, *, option: bool = False) -> None:
    """Raise a ConfigError if a field is invalid, or names a config that the sweep does not have.

    The message names the field or, if `option`, the command-line option.
    """
    check_limits(dataclasses.replace(sweep, configs={"any": Config()}), option=option)
    named = [*sweep.families, *sweep.families.values()]
    for each in named if sweep.baseline is None else [*named, sweep.baseline]:
        if each not in sweep.configs:
            raise ConfigError(f"no config {each!r} in the sweep; {suggestion(each, sweep.configs)}")


def install(extra: str) -> str:
    """Returns the pip command that installs an optional dependency group (an extra)."""
    return f"pip install -e '.[{extra}]'" if IN_CHECKOUT else f"pip install 'gnet-jax[{extra}]'"


def needs(what: str, error: ImportError, extra: str) -> str:
    """Returns an error message: `what` requires a package, and which command installs it."""
    return f"{what} requires a package that cannot be imported ({error}): {install(extra)}"
