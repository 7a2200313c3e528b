"""Colours that the colour-blind tell apart (Okabe and Ito), for lines and bars."""

COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#000000",
)  # fmt: skip


def colour_of(place: int) -> str:
    """The colour of the line, bar or point number `place`; they repeat."""
    return COLOURS[place % len(COLOURS)]
