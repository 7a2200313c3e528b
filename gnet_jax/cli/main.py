"""The `gnet` commands. Only the module of the command that was typed is imported."""

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import tyro

from gnet_jax import __version__
from gnet_jax.cli.output import leave_at_once, print_error, reader_may_leave, set_up_process
from gnet_jax.config import UserError, suggestion

MODULES = {  # the commands of each module of gnet_jax.cli, in the order of the help
    "train": ("train",),
    "vision": ("predict", "evaluate", "inspect", "demo"),
    "models": ("convert", "export", "summary"),
    "data": ("prepare", "check-data", "show-data"),
    "runs": ("curves", "diagnose", "replay"),
    "lab": ("ablate", "report"),
    "pods": ("plan",),
}
COMMANDS = {name: module for module, names in MODULES.items() for name in names}
USAGE = """usage: gnet COMMAND [OPTIONS], or gnet --version

GoogLeNet in JAX. `gnet COMMAND --help` explains a command.
"""


def console_script() -> NoReturn:
    """Run `gnet` or `python -m gnet_jax`, and end the process with the exit code of `main`."""
    try:
        code = main()
    except KeyboardInterrupt:
        leave_at_once("gnet: interrupted")
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code, which is 2 for a mistake of the user."""
    arguments = sys.argv[1:] if arguments is None else arguments
    set_up_process()
    try:
        if arguments[:1] == ["train"]:  # the run continues when nobody reads its output
            return _load("train")(arguments[1:])
        with reader_may_leave():
            return _run(arguments)
    except UserError as error:
        print_error(f"gnet: error: {error}")
        return 2


def _run(arguments: Sequence[str]) -> int:
    first = arguments[0] if arguments else ""
    name = first.replace("_", "-")
    if first == "--version":
        print(f"gnet {__version__}")
    elif first in ("-h", "--help"):
        print(_help())
    elif not first:
        print_error(_help())
        return 2
    elif name not in COMMANDS:
        raise UserError(f"there is no command {first!r}; {suggestion(name, COMMANDS)}")
    else:
        command = _load(name)
        if "arguments" in inspect.signature(command).parameters:  # it parses a config itself
            return command(arguments[1:]) or 0
        return tyro.cli(command, prog=f"gnet {name}", args=arguments[1:]) or 0
    return 0


def _load(name: str) -> Callable[..., Any]:
    module = importlib.import_module(f"gnet_jax.cli.{COMMANDS[name]}")
    return getattr(module, name.replace("-", "_"))


def _help() -> str:
    lines = [USAGE]
    for name in COMMANDS:
        summary, _, _ = (inspect.getdoc(_load(name)) or "").partition("\n")
        lines.append(f"  {name:<12}{summary}")
    return "\n".join(lines)
