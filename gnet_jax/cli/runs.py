"""Commands about training runs: curves, diagnose, replay."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from gnet_jax.cli.output import check_picture, json_line, several
from gnet_jax.config import UserError

Workdirs = Annotated[Positional[tuple[Path, ...]], several("WORKDIR ...")]


def curves(workdirs: Workdirs, out: Path = Path("curves.png")) -> None:
    """Draw loss and accuracy of every head over the steps of training runs.

    Args:
        workdirs: of running or finished training runs; one row each.
        out: the picture, .png, .svg or .pdf.
    """
    from gnet_jax.lab.sweeps.curves import draw_curves

    _check(workdirs, out)
    draw_curves(workdirs, out)
    print(f"drew {out}")


def diagnose(workdirs: Workdirs, out: Path = Path("diagnostics.png")) -> None:
    """Draw gradients, dead channels and updates of runs that were trained with --diagnose N.

    Gradients are drawn by block, for the whole loss and for each head's part in it.

    Args:
        workdirs: of running or finished training runs; one row each.
        out: the picture, .png, .svg or .pdf.
    """
    from gnet_jax.lab.look.diagnose_figures import draw_diagnostics

    _check(workdirs, out)
    draw_diagnostics(workdirs, out)
    print(f"drew {out}")


def _check(workdirs: tuple[Path, ...], out: Path) -> None:
    if not workdirs:
        raise UserError("no run to draw; name at least one workdir")
    check_picture(out)


def replay(file: Annotated[Positional[Path], arg(metavar="FILE")], json: bool = False) -> None:
    """Run a batch again that stopped a training run; find the image and layer that caused it.

    Args:
        file: replay-STEP.npz in the run's workdir.
        json: print everything as one line of JSON.
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
        print(f"not finite before the step: {name}")
    for bad in found.bad_examples[:10]:
        where = f"first in {bad.layer}" if bad.layer else "in its gradients only"
        print(
            f"image {bad.place} of the batch (example {bad.index}, label {bad.label}): "
            f"loss {bad.loss:g}, not finite {where}"
        )
    if len(found.bad_examples) > 10:
        print(f"and {len(found.bad_examples) - 10} more of {found.examples} images")
    if not found.bad_examples:
        print(f"each of the {found.examples} images alone is finite")
    print(f"the whole batch: not finite first in {found.layer or 'no layer'}")
    if found.bad_gradients:
        print(f"gradients not finite: {', '.join(found.bad_gradients[:10])}")
    elif found.layer is None and found.metrics["skipped"]:
        print("loss and gradients are finite, but not the update; lower optim.learning_rate")
