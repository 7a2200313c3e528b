"""Commands about training runs: curves, diagnose, replay."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from gnet_jax.cli.output import check_picture, json_line, several
from gnet_jax.config import UserError


def curves(
    workdirs: Annotated[Positional[tuple[Path, ...]], several("WORKDIR ...")],
    out: Path = Path("curves.png"),
) -> None:
    """Draw loss and accuracy of every head over the steps of training runs.

    Args:
        workdirs: of runs that train or have trained; one row each.
        out: the picture, .png, .svg or .pdf.
    """
    from gnet_jax.lab.sweeps.curves import draw_curves

    if not workdirs:
        raise UserError("there is no run to draw; name at least one workdir")
    check_picture(out)
    draw_curves(workdirs, out)
    print(f"drew {out}")


def replay(file: Annotated[Positional[Path], arg(metavar="FILE")], json: bool = False) -> None:
    """Run a batch again that stopped a training run; tell which image and layer it begins in.

    Args:
        file: replay-STEP.npz, which the run left in its workdir.
        json: print everything as one line of JSON.
    """
    from gnet_jax.lab.look.replay import examine, read_replay

    found = examine(read_replay(file))
    if json:
        print(json_line(dataclasses.asdict(found)))
        return
    loss, norm = found.metrics["loss"], found.metrics["grad_norm"]
    again = "as in the run" if found.reproduced else "which is NOT what the run saw"
    print(f"step {found.step} again: loss {loss:g}, gradient's norm {norm:g}, {again}")
    for name in found.bad_params:
        print(f"not finite before the step: {name}")
    for bad in found.bad_examples[:10]:
        where = f"first in {bad.layer}" if bad.layer else "in its gradients only"
        print(
            f"image {bad.place} of the batch (example {bad.index}, label {bad.label}): "
            f"loss {bad.loss:g}, not finite {where}"
        )
    more = len(found.bad_examples) - 10
    if more > 0:
        print(f"and {more} more of {found.examples} images")
    if not found.bad_examples:
        print(f"each of the {found.examples} images alone is finite")
    print(f"the whole batch: not finite first in {found.layer or 'no layer'}")
    if found.bad_gradients:
        print(f"gradients not finite: {', '.join(found.bad_gradients[:10])}")
    if not found.bad_gradients and found.layer is None and found.metrics["skipped"]:
        print("loss and gradients are finite: the update is not; lower optim.learning_rate")


def diagnose(
    workdirs: Annotated[Positional[tuple[Path, ...]], several("WORKDIR ...")],
    out: Path = Path("diagnostics.png"),
) -> None:
    """Draw what went on inside the nets of runs that were trained with --diagnose N.

    The gradient of every block and the part that each head has in it, dead channels, and the size
    of the updates.

    Args:
        workdirs: of runs that train or have trained; one row each.
        out: the picture, .png, .svg or .pdf.
    """
    from gnet_jax.lab.look.diagnose_figures import draw_diagnostics

    if not workdirs:
        raise UserError("there is no run to draw; name at least one workdir")
    check_picture(out)
    draw_diagnostics(workdirs, out)
    print(f"drew {out}")
