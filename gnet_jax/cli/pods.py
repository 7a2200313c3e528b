"""The command `gnet plan`, which estimates the cost of a run on machines you do not have."""

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
    """The options of `gnet plan`."""

    topology: tuple[str, ...] = ()
    """Machines such as v5e:16x16, v4:2x2x2 or h100:8. Each gets a column of the table."""
    batch: int | None = None
    """Images per step over all chips; sets --batch-size and --eval-batch-size."""
    json: bool = False
    """Print a JSON object, or a list of objects if there are several topologies."""
    images: int | None = None
    """Number of training images, if the data are not on this machine (ImageNet's is known)."""
    classes: int | None = None
    """Number of classes, if the data are not on this machine (ImageNet's is known)."""


def plan(arguments: Sequence[str]) -> int:
    """Estimate the memory, arithmetic, traffic and shortest time of a run on TPU pods or GPUs.

    CONFIG and the fields are the same as for train.py: `gnet plan CONFIG --topology v5e:16x16`. The
    training step is compiled for each topology, which takes minutes but requires no accelerator.
    The exit code is 1 if the step does not fit into the memory.
    """
    command = parse_command(arguments, "gnet plan", PlanOptions(), inspect.getdoc(plan))
    config, given = command.config, command.options
    if not given.topology:
        raise UserError("no topology given; give at least one, such as --topology v5e:16x16")
    for name in ("batch", "images", "classes"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1")
    if given.batch is not None:  # None: same as batch_size
        config = dataclasses.replace(config, batch_size=given.batch, eval_batch_size=None)
    check(config)
    # Imported here, so that --help and command-line errors return immediately.
    from gnet_jax.pods.plan import data_size, plan_program, plan_table, program_for
    from gnet_jax.pods.topology import get_topology, parse_topology

    # Find every user error before the first compilation, which takes minutes.
    for text in given.topology:
        parse_topology(text)
    size = data_size(config.data.source, given.images, given.classes)
    machines = [get_topology(text) for text in given.topology]
    programs = [program_for(config, machine, size) for machine in machines]
    plans = []
    for program, machine in zip(programs, machines, strict=True):
        note = f"compiling the training step for {machine.name}; this takes minutes ..."
        print(note, file=sys.stderr, flush=True)
        plans.append(plan_program(program, machine))
    if given.json:
        found = [dataclasses.asdict(each) for each in plans]
        print(json_line(found[0] if len(found) == 1 else found))
    else:
        recipe = arguments[0] if arguments[0][0] != "-" else "digits"
        title = f"{recipe}: {config.epochs:g} epochs of {size.images:,} images"
        console().print(plan_table(plans, title))
    return 0 if all(each.fits for each in plans) else 1
