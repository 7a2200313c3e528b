"""The `gnet` commands, each a thin call into one part of the package."""

import os
import sys
from collections.abc import Sequence

import tyro

from gnet_jax.cli import data, lab, models, pods, runs, vision
from gnet_jax.cli.output import print_any_name
from gnet_jax.config import UserError

app = tyro.extras.SubcommandApp()
for command in (
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
):
    app.command(command)
# These take a recipe, or a sweep, and the fields of a config, as train.py does.
WITH_CONFIG = {
    "show-data": data.show_data,
    "show_data": data.show_data,
    "plan": pods.plan,
    "ablate": lab.ablate,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for a mistake of the user's."""
    arguments = sys.argv[1:] if arguments is None else arguments
    print_any_name()
    try:
        if arguments and arguments[0] in WITH_CONFIG:
            return WITH_CONFIG[arguments[0]](arguments[1:]) or 0
        about = "GoogLeNet in JAX: its cost, its weights, and what it sees."
        return app.cli(prog="gnet", args=arguments, description=about) or 0
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UserError as error:
        print(f"gnet: error: {error}", file=sys.stderr)
        return 2
