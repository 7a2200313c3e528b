"""The look of figures, with colours that colour-blind people can distinguish (Okabe and Ito)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#000000")
WIDTHS = {1: 3.3, 2: 6.9}  # inches: one and two columns of a paper
# Settings of matplotlib. Text stays text, so that it can be selected, searched and edited.
PAPER: dict[Any, Any] = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "legend.title_fontsize": 7.0,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.0,
}


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


def label_log_axis(axis: Axis, text: Callable[[float], str] = "{:g}".format) -> None:
    """Label three to seven ticks of a logarithmic axis, also if its data span less than a decade.

    Call this after plotting, because the ticks depend on the limits. `text` formats a tick.
    """
    low, high = sorted(axis.get_view_interval())
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [x for k in decades for d in digits if low <= (x := float(f"{d}e{k}")) <= high]
        if len(ticks) >= 3:
            break
    else:  # the axis is so short that it is almost linear
        linear = MaxNLocator(4, min_n_ticks=3).tick_values(low, high)
        ticks = [tick for tick in linear if low <= tick <= high]
    axis.set_major_locator(FixedLocator(ticks, nbins=6))
    axis.set_major_formatter(lambda value, _: text(value))
    axis.set_minor_formatter(NullFormatter())


def legend_below(figure: Figure, title: str | None = None) -> None:
    """Put one legend of all axes below them, and make the figure taller by its height."""
    shown: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    look: dict[str, Any] = {"loc": "outside lower center", "title": title, "columnspacing": 1.2}
    for columns in range(len(shown), 0, -1):  # as many as fit
        legend = figure.legend(shown.values(), shown.keys(), ncols=columns, **look)
        box = legend.get_window_extent()
        if columns == 1 or box.width <= figure.bbox.width:
            figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)
            break
        legend.remove()
