"""Parse a command line: a recipe, overrides of its fields, and the options of the command."""

import dataclasses
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from gnet_jax.config.fields import Config, ConfigError, Count, Index, NotNegative, check_limits
from gnet_jax.config.recipes import (
    Sweep,
    check_sweep,
    load_recipe,
    load_sweep,
    recipe_names,
    sweep_names,
)


@dataclasses.dataclass(frozen=True)
class Join:
    """Options with which a process joins the others that run the same command."""

    distributed: Literal["auto", "on", "off"] = "auto"
    """Whether this process works together with other processes.
    auto: in a TPU VM, GKE, Kubernetes, Slurm or Open MPI job, or with one of the options below.
    on: always; it is an error if no other processes are found. off: never."""
    coordinator: str | None = None
    """HOST:PORT on which process 0 listens. Not needed in the jobs that `auto` detects."""
    num_processes: Count | None = None
    """Number of processes. Not needed in the jobs that `auto` detects."""
    process_id: Index | None = None
    """Index of this process, from 0. Not needed in the jobs that `auto` detects."""
    start_timeout: Count = 300
    """Seconds to wait at the start until all processes are connected."""


@dataclasses.dataclass(frozen=True)
class Launch(Join):
    """Options that start or restart a run. A resume may change them: they are not in the config."""

    supervise: bool = False
    """Restart the run after a crash; give up after three crashes without a new checkpoint.
    A user mistake (exit code 2) or a signal that stops the run does not cause a restart."""
    supervise_preempted: bool = False
    """Like --supervise, but also restart a run that a signal stopped and whose state was saved.
    A signal to the supervising process still stops both processes."""
    restart_delay: NotNegative = 5.0
    """Seconds to wait before the first restart.
    The wait doubles after each crash without a new checkpoint, up to five minutes."""
    track: Literal["wandb", "trackio"] | None = None
    """Also send the config, metrics and pictures to an experiment tracker (docs/pods.md).
    wandb: Weights & Biases; requires pip install -e ".[wandb]".
    trackio: Trackio; requires pip install -e ".[trackio]"."""


def check_launch(launch: Join) -> None:
    """Raise a ConfigError if an option is outside its limit or contradicts another."""
    check_limits(launch, option=True)
    for name in ("coordinator", "num_processes", "process_id"):
        if launch.distributed == "off" and getattr(launch, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} is given, but --distributed is off; remove one of them")
    if launch.coordinator is not None:
        host, _, port = launch.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(
                f"--coordinator is {launch.coordinator!r}; it must be HOST:PORT (10.0.0.2:8476)"
            )
    count, process = launch.num_processes, launch.process_id
    if count is not None and process is not None and process >= count:
        raise ConfigError(f"--process-id is {process}; it must be below {count} (--num-processes)")


Options = TypeVar("Options")


@dataclasses.dataclass(frozen=True)
class Command(Generic[Options]):
    """The two parts of a parsed command line: the config and the command's own options."""

    config: Annotated[Config, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
    options: Annotated[Options, tyro.conf.arg(name=""), tyro.conf.FlagCreatePairsOff]


def parse_command(
    arguments: Sequence[str], prog: str, options: Options, about: str | None = None
) -> Command[Options]:
    """Parse the arguments `[CONFIG] [--field.path value ...]` of the command `prog`.

    CONFIG is a recipe's name ("digits" by default) or a Python file. `options` is a dataclass with
    the defaults of the command's own options. The help begins with `about`, by default the recipe's
    docstring. Exits for `--help` and for typos. Raises ConfigError if the recipe is not found.
    """
    named = _named(arguments)
    recipe = arguments[0] if named else "digits"
    config, docstring = load_recipe(recipe)
    about = (
        f"{about or docstring}\n\nCONFIG is a Python file with a get_config(), or one of: "
        f"{', '.join(recipe_names())}.\n\nAll options are optional; the defaults below are those "
        f"of {recipe!r}. --model.* changes the network, --data.* the input, --augment.* the "
        "training images, --loss.* the loss, --optim.* the optimiser."
    )
    prog = f"{prog} {recipe if named else '[CONFIG]'}"
    return _parse(arguments[named:], prog, Command(config, options), about)


def parse_launch(arguments: Sequence[str]) -> Launch:
    """Returns the launch options of a command line whose other arguments may have mistakes."""
    given = [each for each in arguments if each not in ("-h", "--help")]
    launch, _ = tyro.cli(
        Launch, args=given, return_unknown_args=True, config=(tyro.conf.FlagCreatePairsOff,)
    )
    check_launch(launch)
    return launch


def parse_sweep(
    arguments: Sequence[str], prog: str, options: Any, about: str | None
) -> tuple[Sweep, Any, str]:
    """Parse `SWEEP [--field.path value ...]` and return the sweep, the options and the docstring.

    Like `parse_command`. Options with the name of a field of `Sweep` change this field. The default
    workdir is runs/SWEEP. Raises ConfigError if no sweep is given or the sweep is not found.
    """
    known = f"a Python file with a get_sweep(), or one of: {', '.join(sweep_names())}"
    named = _named(arguments)
    if not named and not {"--help", "-h"} & set(arguments):
        raise ConfigError(f"no sweep is given; type `{prog} SWEEP`, where SWEEP is {known}")
    name = arguments[0] if named else sweep_names()[0]
    sweep, docstring = load_sweep(name)
    own = {field.name for field in dataclasses.fields(options)}
    shared = [field.name for field in dataclasses.fields(Sweep) if field.name in own]
    options = dataclasses.replace(options, **{each: getattr(sweep, each) for each in shared})
    about = (
        f"{about}\n\n{docstring}\n\nSWEEP is {known}.\n\nA field given here is set in all "
        "configs of the sweep; the defaults below are those of the first config."
    )
    prog, workdir = f"{prog} {name if named else 'SWEEP'}", f"runs/{Path(name).stem}"
    defaults = [dataclasses.replace(each, workdir=workdir) for each in sweep.configs.values()]
    commands = [_parse(arguments[named:], prog, Command(each, options), about) for each in defaults]
    configs = {name: each.config for name, each in zip(sweep.configs, commands, strict=True)}
    options = commands[0].options
    chosen = {each: getattr(options, each) for each in shared}
    sweep = dataclasses.replace(sweep, configs=configs, **chosen)
    check_sweep(sweep, option=True)
    given = {each.partition("=")[0].replace("_", "-") for each in arguments}
    if sweep.learning_rates and not given.isdisjoint(("--lr", "--optim.learning-rate")):
        rates = ", ".join(f"{rate:g}" for rate in sweep.learning_rates)
        raise ConfigError(
            "--optim.learning-rate has no effect, because the sweep tries the learning rates "
            f"{rates}; use --learning-rates to try others, or, without a value, to turn tuning off"
        )
    return sweep, options, docstring


def _named(arguments: Sequence[str]) -> bool:
    return bool(arguments) and not arguments[0].startswith("-")


def _parse(
    arguments: Sequence[str], prog: str, default: Command[Options], about: str
) -> Command[Options]:
    # tyro does not wrap text. It joins a line that begins with a letter to the one before, and adds
    # a blank line before any other line. Indenting all lines but the first keeps the line breaks.
    columns, paragraphs = shutil.get_terminal_size().columns, ""
    for each in about.split("\n\n"):
        is_code = each.startswith(" ")
        text = each if is_code else textwrap.fill(each, columns, subsequent_indent="  ")
        paragraphs += ("\n" if is_code else "\n\n") + text
    kind = Command[type(default.options)]
    return tyro.cli(
        kind, prog=prog, description=paragraphs.strip(), default=default, args=list(arguments)
    )
