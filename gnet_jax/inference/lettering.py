"""Text in pictures: drawn as it is, and escaped where the font would draw a box."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageFont

from gnet_jax.config import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# DejaVu Sans comes with matplotlib, has most alphabets and is its default.
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"  # the font needs no glyph for these


def drawable(text: str, kept: str = JOINERS) -> str:
    """Returns `text` with control characters and letters that the font lacks escaped."""
    return "".join(
        c if c in kept or (c.isprintable() and c in _letters()) else _escape(c) for c in text
    )


@functools.cache
def _letters() -> frozenset[str]:
    return frozenset(map(chr, FT2Font(str(FONT)).get_charmap()))


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def lettered(text: str, size: float) -> tuple[str, ImageFont.FreeTypeFont]:
    """Returns drawable text, and the font in `size` pixels."""
    return drawable(text), ImageFont.truetype(str(FONT), size)


def fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Returns `text`, truncated with an ellipsis if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "\N{HORIZONTAL ELLIPSIS}") > width:
        text = text[:-1]
    return text.rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def letter(figure: "Figure") -> None:
    """Make each text of a figure drawable, and draw dollars as they are."""
    from matplotlib.text import Text  # takes a second to import

    for text in figure.findobj(Text):
        given = text.get_text()
        shown = drawable(given, JOINERS + "\n")
        if shown != given:
            text.set_text(shown)
        if "$" in shown:
            text.set_parse_math(False)


def save(picture: "Figure | Image.Image", out: Path, **options: Any) -> None:
    """Write an image, or a figure with the `options` of `savefig`; raise UserError if it fails."""
    try:
        if isinstance(picture, Image.Image):
            picture.save(out)
        else:
            letter(picture)
            picture.savefig(out, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {out}: {error}") from error
