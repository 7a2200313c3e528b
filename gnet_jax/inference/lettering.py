"""Finds fonts for class names in any script. The default font draws boxes for many scripts."""

import functools
import re
import string
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageFont

from gnet_jax.config import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# DejaVu Sans comes with matplotlib and has most alphabets.
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"  # need no glyph
# Needed too, for the numbers next to names and for escaped characters, such as \u4e00.
BESIDE = string.digits + string.ascii_lowercase + ".%\\\N{HORIZONTAL ELLIPSIS}"


def lettered(text: str, size: float) -> tuple[str, ImageFont.FreeTypeFont]:
    """Returns the text to draw, and a font of `size` pixels that has all its letters.

    Control characters are escaped. Letters that no font has are escaped too, and listed on
    standard error.
    """
    shown, file = _drawable(text)
    return shown, ImageFont.truetype(str(file), size)


def fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Returns `text`, truncated with an ellipsis if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "\N{HORIZONTAL ELLIPSIS}") > width:
        text = text[:-1]
    return text.rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def letter(figure: "Figure") -> None:
    """Set a suitable font for each text in a figure, and do not interpret "$" as math."""
    from matplotlib.text import Text  # imported here, because this takes a second

    for text in figure.findobj(Text):
        given = text.get_text()
        shown, file = _drawable(given, kept="\n")
        if shown != given:
            text.set_text(shown)
        if file != FONT:
            properties = text.get_fontproperties().copy()
            properties.set_file(str(file))
            text.set_fontproperties(properties)
        if "$" in shown:
            text.set_parse_math(False)


def save(picture: "Figure | Image.Image", out: Path, **options: Any) -> None:
    """Write an image, or a figure with the `options` of `savefig`. Raises UserError on failure."""
    try:
        if isinstance(picture, Image.Image):
            picture.save(out)
        else:
            letter(picture)
            picture.savefig(out, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {out}: {error}") from error


def _drawable(text: str, kept: str = "") -> tuple[str, Path]:
    """Returns `text`, and a font file to draw it. Escapes missing characters, but not `kept`."""
    kept += JOINERS
    wanted = frozenset(c for c in text if c.isprintable() and c not in kept)
    file = _font_with(wanted | set(BESIDE))
    drawn = (wanted & letters(file)) | set(kept)
    return "".join(c if c in drawn else c.encode("unicode_escape").decode() for c in text), file


@functools.cache
def _font_with(wanted: frozenset[str]) -> Path:
    if not wanted <= letters(FONT):
        for file in _system_fonts():
            if wanted <= letters(file):
                return file
        _print_missing(wanted - letters(FONT))
    return FONT


@functools.cache
def _print_missing(missing: frozenset[str]) -> None:
    print(
        f"no font of this system has the letters {''.join(sorted(missing))!a}; the picture shows "
        "their code points. Install a font, for example the package fonts-noto-cjk",
        file=sys.stderr,
    )


@functools.cache
def _system_fonts() -> list[Path]:
    """Returns the font files, bold and italic last. Skips LastResort, which draws only boxes."""
    from matplotlib.font_manager import findSystemFonts

    files = (file for file in findSystemFonts() if "lastresort" not in file.lower())
    slanted = re.compile("bold|italic|oblique|light|thin|black", re.IGNORECASE)
    return sorted(map(Path, files), key=lambda f: (bool(slanted.search(f.stem)), str(f)))


@functools.cache
def letters(file: Path) -> frozenset[str]:
    """Returns the characters of a font, or none if Pillow or matplotlib cannot use the font."""
    try:
        ImageFont.truetype(str(file), 18)  # raises an error for a bitmap font of another size
        return frozenset(map(chr, FT2Font(str(file)).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()
