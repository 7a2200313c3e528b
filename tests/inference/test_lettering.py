"""Names in any script are readable in pictures, or escaped with a line that says so."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from gnet_jax.config import UserError
from gnet_jax.inference import lettering
from gnet_jax.inference.cam import ActivationMap, draw
from gnet_jax.inference.lettering import FONT, fitted, letter, lettered, save
from gnet_jax.inference.predict import Guess
from gnet_jax.lab.look import contact_sheet
from gnet_jax.lab.look.inside import heads_picture


@pytest.fixture(autouse=True)
def fresh_fonts(monkeypatch):
    """No font of this system, whatever it has."""
    monkeypatch.setattr(lettering, "_system_fonts", list)
    lettering._font_with.cache_clear()
    lettering._print_missing.cache_clear()
    yield
    lettering._font_with.cache_clear()


@pytest.fixture
def cat_font(tmp_path, monkeypatch):
    """A font with a cat and ASCII, found after one that is broken and one without the cat."""
    builders = pytest.importorskip("fontTools.fontBuilder")
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 700), (500, 700), (500, 0)):
        pen.lineTo(point)
    pen.closePath()
    glyph = pen.glyph()
    letters = [*map(chr, range(32, 127)), "\N{HORIZONTAL ELLIPSIS}", "猫"]
    names = [".notdef", *(f"g{ord(c):x}" for c in letters)]
    builder = builders.FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"g{ord(c):x}" for c in letters})
    builder.setupGlyf(dict.fromkeys(names, glyph))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Cats", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    file = tmp_path / "cats.ttf"
    builder.save(file)
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    monkeypatch.setattr(lettering, "_system_fonts", lambda: [broken, FONT, file])
    return file


@pytest.mark.parametrize(
    "name", ["größer", "кот", "γάτα", "é", "e\N{COMBINING ACUTE ACCENT}", "a_$b$", "a\u200db"]
)
def test_names_in_alphabets_that_come_with_matplotlib_are_drawn_as_they_are(name, capsys):
    shown, font = lettered(name, 18)
    assert (shown, font.path) == (name, str(FONT))
    assert capsys.readouterr().err == ""


def test_a_font_of_the_system_is_used_if_it_has_all_letters(cat_font, capsys):
    shown, font = lettered("猫 7", 18)
    assert (shown, font.path) == ("猫 7", str(cat_font))
    assert capsys.readouterr().err == ""


def test_without_a_font_the_letters_are_escaped_and_one_line_says_so(capsys):
    assert lettered("猫 cat", 18)[0] == "\\u732b cat"
    assert lettered("50% 猫", 13)[0] == "50% \\u732b"
    (line,) = capsys.readouterr().err.splitlines()
    assert "u732b" in line
    assert "猫" not in line  # a terminal may not have it either


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb", "a\\nb"),
        ("a\tb", "a\\tb"),
        ("a\udce9", "a\\udce9"),
        ("a\0", "a\\x00"),
        ("\u202eb", "\\u202eb"),
    ],
)
def test_what_is_not_a_letter_is_escaped(name, shown, capsys):
    assert lettered(name, 18)[0] == shown
    assert capsys.readouterr().err == ""


def test_regular_fonts_come_first_and_one_that_has_only_boxes_does_not(monkeypatch):
    monkeypatch.undo()
    files = ["/x/B-Bold.ttf", "/x/C.ttf", "/x/LastResort.otf", "/x/bold/A.ttf", "/x/AThin.ttf"]
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: files)
    found = [str(file) for file in lettering._system_fonts.__wrapped__()]
    assert found == ["/x/C.ttf", "/x/bold/A.ttf", "/x/AThin.ttf", "/x/B-Bold.ttf"]


def test_a_font_that_pillow_cannot_use_has_no_letters(monkeypatch):
    def refuse(file, size):
        raise OSError("invalid pixel size")

    monkeypatch.setattr(lettering.ImageFont, "truetype", refuse)
    assert lettering.letters.__wrapped__(FONT) == frozenset()


def test_a_picture_and_a_lettered_figure_are_saved_or_the_file_is_named(tmp_path):
    save(Image.new("RGB", (9, 8)), tmp_path / "a.png")
    figure = Figure(figsize=(2, 1))
    text = figure.text(0, 0, "a$b$\a")
    save(figure, tmp_path / "b.png", dpi=50)
    for name, size in (("a", (9, 8)), ("b", (100, 50))):
        with Image.open(tmp_path / f"{name}.png") as saved:
            assert saved.size == size
    assert text.get_text() == "a$b$\\x07"
    with pytest.raises(UserError, match=r"cannot write .*none/c\.png"):
        save(figure, tmp_path / "none" / "c.png")


def test_a_long_text_ends_with_an_ellipsis_and_no_space_before_it():
    _, font = lettered("a", 18)
    text, dots = "a         bcd", "\N{HORIZONTAL ELLIPSIS}"
    assert fitted(text, font, font.getlength(text)) == text
    assert fitted(text, font, font.getlength(f"a       {dots}")) == f"a{dots}"
    assert fitted(text, font, font.getlength(f"a       {dots}") - 1e-3) == f"a{dots}"
    assert fitted(text, font, 0) == dots
    assert fitted("abcdef", font, font.getlength(f"abc{dots}")) == f"abc{dots}"


def test_the_fonts_of_this_system_can_be_listed(monkeypatch):
    monkeypatch.undo()
    for file in lettering._system_fonts()[:3]:
        assert isinstance(lettering.letters(file), frozenset)


def titled(label: str) -> np.ndarray:
    guess = Guess(index=0, label=label, probability=0.5)
    found = ActivationMap(np.eye(7, dtype=np.float32), np.zeros((224, 224, 3), np.uint8), guess)
    return np.asarray(draw(found))


@pytest.mark.parametrize("name", ["猫", "a\nb", "a\udce9", "猫" * 99])
def test_maps_head_maps_and_contact_sheets_take_any_name(name):
    assert titled(name)[:32].min() < 100
    guess = Guess(index=0, label=name, probability=0.5)
    found = ActivationMap(np.eye(7, dtype=np.float32), np.zeros((224, 224, 3), np.uint8), guess)
    assert heads_picture({"main": found, "aux 4a": found}).height == 448 + 32
    seen = contact_sheet.Seen(np.zeros((2, 32, 32, 3), np.uint8), [[name], [name]])
    contact_sheet.draw(seen, 2, name, name)


def test_titles_differ_where_names_do():
    assert (titled("猫") != titled("犬")).any()


def test_figures_take_any_name(cat_font, tmp_path, capsys):
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.plot([1, 1000], [1, 1000], label="猫")
    axes.set(title="猫: $\\nothing\n.", xlabel="犬", ylabel="a$b$", xscale="log")
    axes.legend()
    letter(figure)
    figure.savefig(tmp_path / "a.png")  # warnings are errors here
    texts = {text.get_text(): text for text in figure.findobj(Text)}
    assert texts["猫"].get_fontproperties().get_file() == str(cat_font)
    assert not texts["a$b$"].get_parse_math()
    assert {"猫: $\\nothing\n.", "\\u72ac", "a$b$"} <= texts.keys()
    assert any(text.startswith("$\\mathdefault{10") for text in texts)
    assert "u72ac" in capsys.readouterr().err


def test_the_usual_font_is_kept_if_it_has_exactly_the_letters(monkeypatch):
    monkeypatch.setattr(lettering, "letters", lambda file: {"a", "b"})
    monkeypatch.setattr(lettering, "_system_fonts", lambda: [Path("/other.ttf")])
    font_with = lettering._font_with.__wrapped__
    assert font_with(frozenset("ab")) == lettering.FONT
    monkeypatch.setattr(
        lettering, "letters", lambda file: {"a"} if file == lettering.FONT else {"b"}
    )
    assert font_with(frozenset("b")) == Path("/other.ttf")
