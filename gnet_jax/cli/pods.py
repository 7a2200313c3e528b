"""Commands about machines that are not there: plan."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Sequence

from gnet_jax.cli.output import console, json_line
from gnet_jax.config import UserError, check
from gnet_jax.config.command import parse_command


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What `gnet plan` takes besides a config."""

    topology: tuple[str, ...] = ()
    """v5e:16x16, v4:2x2x2, h100:8 ...; several give a table side by side."""
    batch: int | None = None
    """Images a step, over all chips together: sets --batch-size and --eval-batch-size at once."""
    json: bool = False
    """Print one JSON object (a list of them where there are several topologies)."""
    images: int | None = None
    """Images to train on, where the data are not on this machine (ImageNet's are known)."""
    classes: int | None = None
    """Their classes."""


def plan(arguments: Sequence[str]) -> int:
    """What a run takes of a pod or a GPU server: memory, arithmetic, traffic, days at best.

    Takes a recipe and its fields as train.py does: `gnet plan CONFIG --topology v5e:16x16`. Its
    training step is compiled for each topology, which takes minutes and no accelerator. Exit code 1
    where it does not fit.
    """
    command = parse_command(arguments, "gnet plan", PlanOptions(), inspect.getdoc(plan))
    config, given = command.config, command.options
    if not given.topology:
        raise UserError("there is no machine to plan for; name one or more: --topology v5e:16x16")
    for name in ("batch", "images", "classes"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1")
    if given.batch is not None:  # the evaluation's batch follows it
        config = dataclasses.replace(config, batch_size=given.batch, eval_batch_size=None)
    check(config)
    # Imported here, so that --help and a typo answer at once.
    from gnet_jax.pods.data_size import data_size
    from gnet_jax.pods.plan import plan_program, program_for
    from gnet_jax.pods.table import plan_table
    from gnet_jax.pods.topology import get_topology, parse_topology

    for text in given.topology:
        parse_topology(text)
    size = data_size(config.data.source, given.images, given.classes)
    # Everything that can be refused is, before the first of them compiles.
    machines = [get_topology(text) for text in given.topology]
    programs = [program_for(config, machine, size) for machine in machines]
    plans = []
    for program, machine in zip(programs, machines, strict=True):
        print(
            f"compiling the training step for {machine.name}; it takes minutes ...",
            file=sys.stderr,
            flush=True,
        )
        plans.append(plan_program(program, machine))
    if given.json:
        found = [each.as_dict() for each in plans]
        print(json_line(found[0] if len(found) == 1 else found))
    else:
        recipe = arguments[0] if arguments[0][0] != "-" else "digits"
        console().print(
            plan_table(plans, f"{recipe}: {config.epochs:g} epochs of {size.images:,} images")
        )
    return 0 if all(each.fits for each in plans) else 1
