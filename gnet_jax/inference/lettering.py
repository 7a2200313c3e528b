"""Fonts for names in any script, so that no picture shows a row of boxes in place of a name."""

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# DejaVu Sans comes with matplotlib and has most alphabets.
DEFAULT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"  # which no font needs to draw
BESIDE = "0123456789.%\N{HORIZONTAL ELLIPSIS}"  # is written beside a name in the same font


def lettered(text: str, size: float) -> tuple[str, ImageFont.FreeTypeFont]:
    """Returns `text` as it can be drawn, and a font of `size` pixels that has all its letters.

    Control characters are escaped. If no font of the system has the letters, they are escaped too,
    and a line on standard error says so.
    """
    shown, file = _drawable(text)
    return shown, ImageFont.truetype(str(file), size)


def fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Returns `text`, cut off with an ellipsis if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "\N{HORIZONTAL ELLIPSIS}") > width:
        text = text[:-1]
    return text.rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def letter(figure: "Figure") -> None:
    """Give every text of a figure a font that has its letters, and take no dollar for a formula."""
    from matplotlib.text import Text  # takes a second, and photos need none of it

    for text in figure.findobj(Text):
        given = text.get_text()
        shown, file = _drawable(given, kept="\n")
        if shown != given:
            text.set_text(shown)
        if file != DEFAULT:
            properties = text.get_fontproperties().copy()
            properties.set_file(str(file))
            text.set_fontproperties(properties)
        if "$" in shown:
            text.set_parse_math(False)


def _drawable(text: str, kept: str = "") -> tuple[str, Path]:
    """`text` with what cannot be drawn escaped, and the file of a font."""
    kept += JOINERS
    shown = "".join(c if c.isprintable() or c in kept else _escaped(c) for c in text)
    missing = frozenset(shown) - letters(DEFAULT) - set(kept)
    if not missing:
        return shown, DEFAULT
    file = _font_with(frozenset(shown) - set(kept) | set(BESIDE), missing)
    if file is None:
        shown = "".join(_escaped(c) if c in missing else c for c in shown)
    return shown, file or DEFAULT


@functools.cache
def _font_with(wanted: frozenset[str], missing: frozenset[str]) -> Path | None:
    for file in _system_fonts():
        if wanted <= letters(file):
            return file
    _say_missing(missing)
    return None


@functools.cache
def _say_missing(missing: frozenset[str]) -> None:
    print(
        f"no font of this system has the letters {''.join(sorted(missing))!a}, which the picture "
        "shows as numbers; install one, such as the package fonts-noto-cjk",
        file=sys.stderr,
    )


@functools.cache
def _system_fonts() -> list[Path]:
    """Upright regular ones first. A "last resort" font has boxes for every letter."""
    from matplotlib.font_manager import findSystemFonts

    files = map(Path, findSystemFonts())
    known = (file for file in files if "lastresort" not in file.stem.lower().replace(" ", ""))
    slanted = ("bold", "italic", "oblique", "light", "thin", "black")
    return sorted(known, key=lambda f: (any(word in f.stem.lower() for word in slanted), str(f)))


@functools.cache
def letters(file: Path) -> frozenset[str]:
    """The characters that a font has; none if neither library can use it."""
    try:
        ImageFont.truetype(str(file), 18)  # a font of bitmaps has other sizes only
        return frozenset(map(chr, FT2Font(str(file)).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()


def _escaped(text: str) -> str:
    return text.encode("unicode_escape").decode()
