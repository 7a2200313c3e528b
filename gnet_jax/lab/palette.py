"""The look of figures, with colours that colour-blind people can distinguish (Okabe and Ito)."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#000000")
WIDTHS = {1: 3.3, 2: 6.9}  # inches: one and two columns of a paper
# Settings of matplotlib. Text stays text in files, so that it can be selected and edited.
PAPER: dict[Any, Any] = {"svg.fonttype": "none", "pdf.fonttype": 42, "legend.frameon": False}
PAPER |= {"legend.fontsize": 7.0, "legend.title_fontsize": 7.0, "legend.columnspacing": 1.2}
PAPER |= {"font.size": 8.0, "axes.titlesize": 8.0, "lines.linewidth": 1.2, "lines.markersize": 3.0}
# Digits of the ticks of logarithmic axes whose ends have at least this ratio: three ticks or more.
LOG_TICKS = {1000: (1,), 30: (1, 3), 10: (1, 2, 5), 3.5: (1, 1.5, 2, 3, 5, 7)}


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
    """Label at least three ticks of a logarithmic axis with `text`; call this after plotting."""
    low, high = axis.get_view_interval()
    digits = next((each for ratio, each in LOG_TICKS.items() if high >= ratio * low), None)
    # An axis that is shorter than LOG_TICKS is almost linear.
    axis.set_major_locator(LogLocator(subs=digits) if digits else MaxNLocator(4, min_n_ticks=3))
    axis.set_major_formatter(lambda value, _: text(value))
    axis.set_minor_formatter(NullFormatter())


def legend_below(figure: Figure, axes: Axes, title: str | None = None) -> None:
    """Put the legend of `axes` below all axes, and make the figure taller by its height."""
    look: dict[str, Any] = {"loc": "outside lower center", "title": title}
    for columns in range(8, 0, -1):  # as many as fit
        legend = figure.legend(*axes.get_legend_handles_labels(), ncols=columns, **look)
        box = legend.get_window_extent()
        if columns == 1 or box.width < 0.95 * figure.bbox.width:
            figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)
            return
        legend.remove()
