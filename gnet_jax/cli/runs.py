"""The commands that analyse training runs: curves, diagnose, replay."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from gnet_jax.cli.output import check_picture, json_line, several
from gnet_jax.config import UserError

Workdirs = Annotated[Positional[tuple[Path, ...]], several("WORKDIR ...")]


def curves(workdirs: Workdirs, out: Path = Path("curves.png")) -> None:
    """Plot the loss and accuracy of every head over the training steps.

    Args:
        workdirs: workdirs of running or finished training runs; each gets one row of the figure.
        out: the picture to write; its suffix is .png, .svg or .pdf.
    """
    from gnet_jax.lab.sweeps.figures import draw_curves

    _check(workdirs, out)
    draw_curves(workdirs, out)
    print(f"drew {out}")


def diagnose(workdirs: Workdirs, out: Path = Path("diagnostics.png")) -> None:
    """Plot the gradients, dead channels and updates of runs that were trained with --diagnose N.

    Gradients are plotted for each block, for the total loss and for the loss of each head.

    Args:
        workdirs: workdirs of running or finished training runs; each gets one row of the figure.
        out: the picture to write; its suffix is .png, .svg or .pdf.
    """
    from gnet_jax.lab.sweeps.figures import draw_diagnostics

    _check(workdirs, out)
    draw_diagnostics(workdirs, out)
    print(f"drew {out}")


def _check(workdirs: tuple[Path, ...], out: Path) -> None:
    if not workdirs:
        raise UserError("there is no run to plot; give at least one workdir")
    check_picture(out)


def replay(file: Annotated[Positional[Path], arg(metavar="FILE")], json: bool = False) -> None:
    """Rerun the batch that stopped a training run, and print which image and layer caused the stop.

    Args:
        file: the replay file, replay-STEP.npz in the workdir of the run.
        json: print the result as one line of JSON.
    """
    from gnet_jax.lab.look.replay import examine, read_replay

    found = examine(read_replay(file))
    if json:
        print(json_line(dataclasses.asdict(found)))
        return
    loss, norm = found.metrics["loss"], found.metrics["grad_norm"]
    same = "as in the run" if found.reproduced else "NOT the same as in the run"
    print(f"step {found.step} again: loss {loss:g}, gradient norm {norm:g}, {same}")
    for name in found.bad_params:
        print(f"parameter already not finite before the step: {name}")
    for bad in found.bad_examples[:10]:
        where = f"first in layer {bad.layer}" if bad.layer else "only in its gradients"
        print(
            f"image {bad.place} of the batch (example {bad.index}, label {bad.label}): "
            f"loss {bad.loss:g}, not finite {where}"
        )
    if len(found.bad_examples) > 10:
        print(f"and {len(found.bad_examples) - 10} more of the batch's {found.examples} images")
    if not found.bad_examples:
        print(f"all values are finite when each of the {found.examples} images is run alone")
    print(f"first layer that is not finite for the whole batch: {found.layer or 'none'}")
    if found.bad_gradients:
        print(f"gradients not finite: {', '.join(found.bad_gradients[:10])}")
    elif found.layer is None and found.metrics["skipped"]:
        print("loss and gradients are finite, but the update is not; lower optim.learning_rate")
