"""The look of figures, with colours that colour-blind people can distinguish (Okabe and Ito)."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#000000")


def colour_of(place: int) -> str:
    """Returns the colour of the line, bar or point number `place`; the colours repeat."""
    return COLOURS[place % len(COLOURS)]


def line_style(points: Sequence[object], usual: str = "-") -> str:
    """Returns matplotlib's format of a curve: "o-" for at most three points, otherwise `usual`."""
    return usual if len(points) > 3 else "o-"


def style(axes: Axes, **grid: Any) -> None:
    """Give axes a pale grid behind the data, and no frame; `grid` are options of `Axes.grid`."""
    axes.set_axisbelow(True)
    axes.grid(alpha=0.25, **grid)
    axes.spines[["top", "right"]].set_visible(False)
