"""Names in any script can be drawn; letters that the font lacks are escaped."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from gnet_jax.inference.cam import ActivationMap, draw
from gnet_jax.inference.lettering import lettered, save
from gnet_jax.inference.predict import Guess
from gnet_jax.lab.look import contact_sheet
from gnet_jax.lab.look.inside import heads_picture


@pytest.mark.parametrize(
    "name", ["größer", "кот", "γάτα", "é", "e\N{COMBINING ACUTE ACCENT}", "a_$b$"]
)
def test_names_in_alphabets_that_come_with_matplotlib_are_drawn_as_they_are(name):
    assert lettered(name, 18)[0] == name


def test_letters_that_the_font_lacks_are_escaped():
    assert lettered("猫 cat", 18)[0] == "\\u732b cat"
    assert lettered("50% 猫", 13)[0] == "50% \\u732b"


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
def test_what_is_not_a_letter_is_escaped(name, shown):
    assert lettered(name, 18)[0] == shown


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


def test_figures_take_any_name(tmp_path):
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.plot([1, 1000], [1, 1000], label="猫")
    axes.set(title="猫: $\\nothing", xlabel="犬", ylabel="a$b$", xscale="log")
    axes.legend()
    save(figure, tmp_path / "a.png")  # warnings are errors here
    texts = {text.get_text() for text in figure.findobj(Text)}
    assert {"\\u732b: $\\nothing", "\\u72ac", "a$b$"} <= texts
    assert any(text.startswith("$\\mathdefault{10") for text in texts)
