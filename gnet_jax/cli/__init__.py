"""The `gnet` commands, each a thin call into one room of the package."""

import os
import sys
from collections.abc import Sequence

import tyro

from gnet_jax.cli import data, lab, models, runs, vision
from gnet_jax.config import UserError

app = tyro.extras.SubcommandApp()
for command in (
    models.summary,
    models.convert,
    vision.predict,
    vision.evaluate,
    vision.inspect,
    models.export,
    data.prepare,
    runs.curves,
    runs.replay,
    runs.diagnose,
    data.check_data,
    data.show_data,
    lab.ablate,
    lab.report,
):
    app.command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for a mistake of the user's."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments and arguments[0] in ("show-data", "show_data"):
            data.show_data(arguments[1:])  # takes the fields of a recipe, as train.py does
            return 0
        if arguments and arguments[0] == "ablate":
            return lab.ablate(arguments[1:])  # so does this one, of a sweep's
        about = "GoogLeNet in JAX: its cost, its weights, and what it sees."
        return app.cli(prog="gnet", args=arguments, description=about) or 0
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UserError as error:
        print(f"gnet: error: {error}", file=sys.stderr)
        return 2
