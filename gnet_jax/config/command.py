"""A configuration from a command line: a recipe, any field changed, and how the run is started."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from gnet_jax.config.fields import Config, ConfigError
from gnet_jax.config.recipes import load_recipe, load_sweep, recipe_names, sweep_names


@dataclasses.dataclass(frozen=True)
class Launch:
    """One start of a run. It is no part of the recipe, and the next start may have another."""

    distributed: Literal["auto", "on", "off"] = "auto"
    """auto joins the other processes of a TPU VM, GKE, Slurm or Open MPI job where it finds itself
    in one, or where --coordinator is given, and trains alone elsewhere; on insists; off never."""
    coordinator: str | None = None
    """HOST:PORT at which process 0 listens and which all others reach; found out in those jobs."""
    num_processes: int | None = None
    """Of the whole run; found out in those jobs."""
    process_id: int | None = None
    """Of this one, from 0; found out in those jobs."""
    start_timeout: int = 300
    """Seconds that the processes wait for one another at the start."""
    supervise: bool = False
    """Start again after a crash, waiting longer each time, until three in a row bring no newer
    checkpoint. Not after a mistake (exit code 2), nor after a signal that stopped the run."""
    supervise_preempted: bool = False
    """Start again, too, when a signal stopped the run and its step is saved; implies --supervise.
    A signal to the supervisor itself still ends both."""
    restart_delay: float = 5.0
    """Seconds before the first restart; doubled at every crash without a newer checkpoint, up to
    five minutes."""


def check_launch(launch: Launch) -> None:
    """Refuse options that contradict each other.

    Raises:
        ConfigError: naming the option, its value and what it may be.
    """
    named = {
        "--coordinator": launch.coordinator,
        "--num-processes": launch.num_processes,
        "--process-id": launch.process_id,
    }
    given = [name for name, value in named.items() if value is not None]
    if launch.distributed == "off" and given:
        raise ConfigError(f"{given[0]} is given, but --distributed is off; leave one of them out")
    if launch.coordinator is not None:
        host, _, port = launch.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(
                f"--coordinator is {launch.coordinator}; it must be HOST:PORT, as 10.0.0.2:8476"
            )
    count, process = launch.num_processes, launch.process_id
    if count is not None and count < 1:
        raise ConfigError(f"--num-processes is {count}; it must be at least 1")
    if process is not None and (process < 0 or (count is not None and process >= count)):
        limit = "at least 0" if count is None else f"from 0 to {count - 1}, of {count} processes"
        raise ConfigError(f"--process-id is {process}; it must be {limit}")
    if launch.start_timeout < 1:
        raise ConfigError(f"--start-timeout is {launch.start_timeout}; it must be at least 1")
    if not 0 <= launch.restart_delay < math.inf:
        raise ConfigError(
            f"--restart-delay is {launch.restart_delay}; it must be at least 0, and finite"
        )


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
