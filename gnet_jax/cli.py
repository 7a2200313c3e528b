"""The `gnet` commands, each a thin call into one room of the package."""

import csv
import json
import os
import sys
from collections.abc import Sequence
from typing import Literal

import tyro
from rich.console import Console

from gnet_jax.config import ConfigError, UserError
from gnet_jax.lab.ledger import Ledger, network_ledger, worked_examples
from gnet_jax.lab.table import ledger_table
from gnet_jax.model import googlenet

app = tyro.extras.SubcommandApp()


@app.command
def summary(
    variant: Literal["paper", "batch_norm", "torchvision", "google_release", "naive"] = "paper",
    image_size: int = 224,
    num_classes: int | None = None,
    reduction_factor: float = 1.0,
    width_multiplier: float = 1.0,
    aux_after: tuple[str, ...] = ("4a", "4d"),
    head: Literal["average_pool", "fc"] = "average_pool",
    stem: Literal["imagenet", "small"] = "imagenet",
    format: Literal["table", "json", "csv"] = "table",
) -> None:
    """What every layer costs: kernel, output, parameters, multiply-adds of one image.

    Args:
        variant: the published network to start from.
        image_size: side of the input, in pixels.
        num_classes: outputs of the classifiers; None is the variant's own number.
        reduction_factor: scales the 1x1 reductions in front of the 3x3 and the 5x5 of every block.
        width_multiplier: scales every layer but the classifiers.
        aux_after: blocks that an auxiliary head follows.
        head: average_pool is the paper's; fc puts a fully connected layer in its place.
        stem: small has a 3x3 first layer and one pool, for images of 16 to 64 pixels.
        format: of the output.
    """
    try:
        model = googlenet(
            variant,
            num_classes,
            reduction_factor=reduction_factor,
            width_multiplier=width_multiplier,
            aux_after=aux_after,
            head=head,
            stem=stem,
        )
        costs = network_ledger(model, image_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if format == "json":
        print(json.dumps(costs.as_dict(), indent=2))
    elif format == "csv":
        _print_csv(costs)
    else:
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
        console.print(ledger_table(costs, f"GoogLeNet, {variant}, {image_size}x{image_size}"))
        for what, cost in worked_examples():
            console.print(f"{cost:>13,}  {what}")


def _print_csv(costs: Ledger) -> None:
    rows = costs.as_dict()["layers"]
    writer = csv.DictWriter(sys.stdout, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        sizes = {name: "x".join(map(str, row[name])) for name in ("kernel", "output")}
        writer.writerow(row | sizes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for a mistake of the user's."""
    try:
        app.cli(
            prog="gnet",
            args=arguments,
            description="GoogLeNet in JAX: what it costs, layer by layer.",
        )
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as error:
        print(f"gnet: error: {error}", file=sys.stderr)
        return 2
    return 0
