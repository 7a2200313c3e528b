"""The `gnet` commands, each a thin call into one part of the package."""

import sys
from collections.abc import Sequence
from typing import NoReturn

import tyro

from gnet_jax import __version__
from gnet_jax.cli import data, lab, models, pods, runs, train, vision
from gnet_jax.cli.output import leave_at_once, print_error, reader_may_leave, set_up_process
from gnet_jax.config import UserError, suggestion

COMMANDS = (
    train.train,
    models.summary,
    models.convert,
    vision.predict,
    vision.evaluate,
    vision.inspect,
    vision.demo,
    models.export,
    data.prepare,
    runs.curves,
    runs.replay,
    runs.diagnose,
    data.check_data,
    data.show_data,
    lab.ablate,
    lab.report,
    pods.plan,
)
NAMES = [command.__name__.replace("_", "-") for command in COMMANDS]
app = tyro.extras.SubcommandApp()
for command in COMMANDS:
    app.command(command)
# These take a recipe, or a sweep, and the fields of a config.
WITH_CONFIG = {
    "show-data": data.show_data,
    "show_data": data.show_data,
    "plan": pods.plan,
    "ablate": lab.ablate,
}


def console_script() -> NoReturn:
    """`gnet` and `python -m gnet_jax`: `main`, whose exit code ends the process."""
    try:
        code = main()
    except KeyboardInterrupt:
        leave_at_once("gnet: interrupted")
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for a mistake of the user's."""
    arguments = sys.argv[1:] if arguments is None else arguments
    set_up_process()
    try:
        if arguments[:1] == ["train"]:  # the run goes on when the reader leaves
            return train.train(arguments[1:])
        with reader_may_leave():
            return _run(arguments)
    except UserError as error:
        print_error(f"gnet: error: {error}")
        return 2


def _run(arguments: Sequence[str]) -> int:
    if list(arguments) == ["--version"]:
        print(f"gnet {__version__}")
        return 0
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if name in WITH_CONFIG:
        return WITH_CONFIG[name](arguments[1:]) or 0
    if name is not None and name.replace("_", "-") not in NAMES:
        raise UserError(f"there is no command {name!r}; {suggestion(name, NAMES)}")
    about = (
        "GoogLeNet in JAX: its cost, its weights, and what it sees. `gnet COMMAND --help` explains "
        "a command, `gnet --version` prints the version."
    )
    return app.cli(prog="gnet", args=arguments, description=about) or 0
