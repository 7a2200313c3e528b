"""Sweeps: Python files that give several configurations to compare."""

import dataclasses
import re
from collections.abc import Mapping

from gnet_jax.config.fields import Config, ConfigError
from gnet_jax.config.recipe import load_file


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
