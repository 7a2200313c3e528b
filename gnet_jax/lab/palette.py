"""Colours that the colour-blind tell apart (Okabe and Ito), for lines and bars; styles of lines."""

from collections.abc import Sequence

COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#000000",
)  # fmt: skip


def colour_of(place: int) -> str:
    """The colour of the line, bar or point number `place`; they repeat."""
    return COLOURS[place % len(COLOURS)]


def hatch_of(place: int) -> str:
    """Matplotlib's hatch of the bar number `place`: none until the colours repeat."""
    return ("", "////", "....", "xxxx")[place // len(COLOURS) % 4]


def line_style(points: Sequence[object], usual: str = "-") -> str:
    """Matplotlib's format of a curve: with markers where so few points would hardly make one."""
    return usual if len(points) > 3 else "o-"
