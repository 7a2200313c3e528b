"""Parse a command line: a recipe, the fields that it overrides, and how the run starts."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from gnet_jax.config.fields import (
    Config,
    ConfigError,
    Count,
    Index,
    NotNegative,
    check_limits,
)
from gnet_jax.config.recipes import load_recipe, load_sweep, recipe_names, sweep_names


@dataclasses.dataclass(frozen=True)
class Launch:
    """How one start of a run is made. It is not part of the config and may differ at a resume."""

    distributed: Literal["auto", "on", "off"] = "auto"
    """Train together with other processes.
    auto: in a TPU VM, GKE, Slurm or Open MPI job, or if --coordinator is given.
    on: always, and fail if none are found. off: never."""
    coordinator: str | None = None
    """HOST:PORT on which process 0 listens. The jobs named above provide it."""
    num_processes: Count | None = None
    """Number of processes of the run. The jobs named above provide it."""
    process_id: Index | None = None
    """Number of this process, from 0. The jobs named above provide it."""
    start_timeout: Count = 300
    """Seconds to wait for the other processes at the start."""
    supervise: bool = False
    """Restart after a crash, until three in a row bring no newer checkpoint.
    A user mistake (exit code 2) or a signal that stops the run does not cause a restart."""
    supervise_preempted: bool = False
    """Restart also when a signal stopped the run and its step is saved; implies --supervise.
    A signal to the supervisor itself still stops both."""
    restart_delay: NotNegative = 5.0
    """Seconds before the first restart.
    They double at each crash without a newer checkpoint, up to five minutes."""


def check_launch(launch: Launch) -> None:
    """Raise if an option is out of its limit, or options contradict each other.

    Raises:
        ConfigError: naming the option, its value and its limit.
    """
    check_limits(launch, option=True)
    given = ["coordinator", "num_processes", "process_id"]
    given = [name for name in given if getattr(launch, name) is not None]
    if launch.distributed == "off" and given:
        option = given[0].replace("_", "-")
        raise ConfigError(f"--{option} is given, but --distributed is off; leave one of them out")
    if launch.coordinator is not None:
        host, _, port = launch.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(
                f"--coordinator is {launch.coordinator!r}; it must be HOST:PORT, as 10.0.0.2:8476"
            )
    count, process = launch.num_processes, launch.process_id
    if count is not None and process is not None and process >= count:
        raise ConfigError(f"--process-id is {process}; it must be below {count} (--num-processes)")


Options = TypeVar("Options")


@dataclasses.dataclass(frozen=True)
class Command(Generic[Options]):
    """A config and a command's own options, side by side on the command line."""

    config: Annotated[Config, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
    options: Annotated[Options, tyro.conf.arg(name=""), tyro.conf.FlagCreatePairsOff]


def parse_command(
    arguments: Sequence[str], prog: str, options: Options, about: str | None = None
) -> Command[Options]:
    """Returns the config and options of `[CONFIG] [--field.path value ...]`.

    `--help` and typos end the program.

    Args:
        arguments: what was typed after `prog`; CONFIG is a recipe's name ("digits" by default) or
            a Python file.
        prog: the command, for its help.
        options: the default values of a dataclass with the command's own options.
        about: what the command does; None shows the docstring of the recipe.

    Raises:
        ConfigError: if there is no such recipe.
    """
    named = _named(arguments)
    recipe = arguments[0] if named else "digits"
    config, docstring = load_recipe(recipe)
    return _parse(
        arguments[named:],
        f"{prog} {recipe if named else '[CONFIG]'}",
        Command(config, options),
        f"{docstring if about is None else about}\n\nThe defaults below are those of {recipe!r}. "
        f"CONFIG may be one of: {', '.join(recipe_names())}; or a Python file with a get_config().",
    )


def parse_launch(arguments: Sequence[str]) -> Launch:
    """Returns the options of the launch alone, for a command line with mistakes elsewhere."""
    given = [each for each in arguments if each not in ("-h", "--help")]
    launch, _ = tyro.cli(
        Launch, args=given, return_unknown_args=True, config=(tyro.conf.FlagCreatePairsOff,)
    )
    check_launch(launch)
    return launch


def parse_sweep(
    arguments: Sequence[str], prog: str, options: Any, about: str | None
) -> tuple[dict[str, Config], Any, str]:
    """Returns the configs of `SWEEP [--field.path value ...]`, the options and SWEEP's docstring.

    Args:
        arguments: what was typed after `prog`; SWEEP is a Python file, or the name of one in
            `configs/`.
        prog: the command, for its help.
        options: as in `parse_command`. Its `seeds` are replaced by those of the sweep, and the
            default workdir is runs/SWEEP.
        about: what the command does.

    Raises:
        ConfigError: if no sweep is named, or there is no such sweep.
    """
    named = _named(arguments)
    if not named and not {"--help", "-h"} & set(arguments):
        raise ConfigError(f"no sweep is named; {prog} SWEEP takes one of: {sweeps_in_words()}")
    name = arguments[0] if named else sweep_names()[0]
    sweep, docstring = load_sweep(name)
    options = dataclasses.replace(options, seeds=sweep.seeds)
    workdir = f"runs/{Path(name).stem}"
    commands = {
        each: _parse(
            arguments[named:],
            f"{prog} {name if named else 'SWEEP'}",
            Command(dataclasses.replace(config, workdir=workdir), options),
            f"{about}\n\n{docstring}\n\nEvery field changes in all configs of the sweep; the "
            "defaults below are those of its first. SWEEP may be one of: "
            f"{sweeps_in_words()}.",
        )
        for each, config in sweep.configs.items()
    }
    configs = {each: command.config for each, command in commands.items()}
    return configs, next(iter(commands.values())).options, docstring


def _named(arguments: Sequence[str]) -> bool:
    return bool(arguments) and not arguments[0].startswith("-")


def _parse(
    arguments: Sequence[str], prog: str, default: Command[Options], about: str
) -> Command[Options]:
    kind = Command[type(default.options)]
    return tyro.cli(kind, prog=prog, description=about, default=default, args=list(arguments))


def sweeps_in_words() -> str:
    """Returns the names of all sweeps, and that a file may be given instead."""
    return f"{', '.join(sweep_names())}; or a Python file with a get_sweep()"
