"""Commands about training runs: curves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from gnet_jax.config import UserError


def curves(
    workdirs: Annotated[Positional[tuple[Path, ...]], arg(metavar="WORKDIR ...")],
    out: Path = Path("curves.png"),
) -> None:
    """Draw loss and accuracy of every head over the steps of training runs.

    Args:
        workdirs: of runs that train or have trained; one row each.
        out: the picture, .png, .svg or .pdf.
    """
    from gnet_jax.lab.curves import draw_curves

    if not workdirs:
        raise UserError("there is no run to draw; name at least one workdir")
    draw_curves(workdirs, out)
    print(f"drew {out}")
