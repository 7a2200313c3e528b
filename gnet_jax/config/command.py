"""Parse a command line: a recipe, the fields that it overrides, and how the run starts."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

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


Kind = TypeVar("Kind", bound=Config)


@dataclasses.dataclass(frozen=True)
class Command:
    """What `train.py` is asked to do; both parts lie side by side on the command line."""

    config: Annotated[Config, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
    launch: Annotated[Launch, tyro.conf.arg(name=""), tyro.conf.FlagCreatePairsOff]


def parse_command(arguments: Sequence[str], prog: str) -> Command:
    """The run of `[CONFIG] [--field.path value ...]` and its launch. `--help` and typos end here.

    Raises:
        ConfigError: if there is no such recipe, or options of the launch contradict each other.
    """
    config, docstring = load_recipe(_recipe(arguments))
    command = _parse(arguments, prog, Command, Command(config, Launch()), docstring)
    check_launch(command.launch)
    return command


def parse_launch(arguments: Sequence[str]) -> Launch:
    """The options of the launch alone, where the rest of the command line is of no use."""
    given = [each for each in arguments if each not in ("-h", "--help")]
    launch, _ = tyro.cli(
        Launch, args=given, return_unknown_args=True, config=(tyro.conf.FlagCreatePairsOff,)
    )
    check_launch(launch)
    return launch


def parse_config(
    arguments: Sequence[str],
    prog: str,
    kind: type[Kind] = Config,
    about: str | None = None,
) -> Kind:
    """The config of `[CONFIG] [--field.path value ...]`. `--help` and typos end the program.

    Args:
        arguments: what was typed after `prog`; CONFIG is a recipe's name ("digits" where there is
            none) or a Python file.
        prog: the command, for its help.
        kind: a subclass of `Config` where a command has fields of its own besides.
        about: what the command does; None shows the docstring of the recipe.

    Raises:
        ConfigError: if there is no such recipe.
    """
    config, docstring = load_recipe(_recipe(arguments))
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    plain = tyro.conf.FlagConversionOff
    return _parse(arguments, prog, kind, kind(**own), docstring if about is None else about, plain)


def _named(arguments: Sequence[str]) -> bool:
    return bool(arguments) and not arguments[0].startswith("-")


def _recipe(arguments: Sequence[str]) -> str:
    return arguments[0] if _named(arguments) else "digits"


def _parse(
    arguments: Sequence[str], prog: str, kind: type[Any], default: Any, about: str, *markers: Any
) -> Any:
    named, recipe = _named(arguments), _recipe(arguments)
    recipes = ", ".join(recipe_names())
    return tyro.cli(
        kind,
        prog=f"{prog} {recipe}" if named else f"{prog} [CONFIG]",
        description=f"{about}\n\nThe defaults below are those of "
        f"{recipe!r}. CONFIG may be one of: {recipes}; or a Python file with a get_config().",
        default=default,
        args=list(arguments[named:]),
        config=markers,
    )


def parse_sweep(
    arguments: Sequence[str], prog: str, kind: type[Kind], about: str | None
) -> tuple[dict[str, Kind], str]:
    """The configs of `SWEEP [--field.path value ...]`, and the docstring of its file.

    Args:
        arguments: what was typed after `prog`; SWEEP is a Python file, or the name of one in
            `configs/`.
        prog: the command, for its help.
        kind: a subclass of `Config` with the command's own fields, `seeds` among them: the sweep's
            number is its default, and runs/SWEEP that of `workdir`.
        about: what the command does.

    Raises:
        ConfigError: if no sweep is named, or there is no such sweep.
    """
    named = bool(arguments) and not arguments[0].startswith("-")
    if not named and not {"--help", "-h"} & set(arguments):
        raise ConfigError(f"no sweep is named; {prog} SWEEP takes one of: {sweeps_in_words()}")
    name = arguments[0] if named else sweep_names()[0]
    sweep, docstring = load_sweep(name)

    def parse(config: Config) -> Kind:
        own = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        own |= {"workdir": f"runs/{Path(name).stem}", "seeds": sweep.seeds}
        return tyro.cli(
            kind,
            prog=f"{prog} {name}" if named else f"{prog} SWEEP",
            description=f"{about}\n\n{docstring}\n\nEvery field changes in all configs of the "
            f"sweep; the defaults below are those of its first. SWEEP may be one of: "
            f"{sweeps_in_words()}.",
            default=kind(**own),
            args=list(arguments[named:]),
            config=(tyro.conf.FlagConversionOff,),
        )

    return {each: parse(config) for each, config in sweep.configs.items()}, docstring


def sweeps_in_words() -> str:
    """The sweeps that there are, and that another file will do."""
    return f"{', '.join(sweep_names())}; or a Python file with a get_sweep()"
