"""Commands about training runs: curves, diagnose."""

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


def diagnose(
    workdirs: Annotated[Positional[tuple[Path, ...]], arg(metavar="WORKDIR ...")],
    out: Path = Path("diagnostics.png"),
) -> None:
    """Draw what went on inside the nets of runs that were trained with --diagnose N.

    The gradient of every block and the part that each head has in it, dead channels, and the size
    of the updates.

    Args:
        workdirs: of runs that train or have trained; one row each.
        out: the picture, .png, .svg or .pdf.
    """
    from gnet_jax.lab.diagnose_figures import draw_diagnostics

    if not workdirs:
        raise UserError("there is no run to draw; name at least one workdir")
    draw_diagnostics(workdirs, out)
    print(f"drew {out}")
