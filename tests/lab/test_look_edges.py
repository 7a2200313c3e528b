"""The look commands with unusual data, names and options, on a tiny network."""

import dataclasses
import math
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from gnet_jax.cli.main import main
from gnet_jax.config import UserError
from gnet_jax.inference.images import Pictures
from gnet_jax.lab.look import contact_sheet, examples, similarity, visualize
from gnet_jax.lab.look.dream import dream
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model_folder import TrainedModel, write_folder
from tests.lab.test_look import NAMES, PHOTO, PIXELS
from tests.tiny import tiny_arch, tiny_variables


@pytest.fixture(scope="module")
def trained():
    model = GoogLeNet(tiny_arch())
    return TrainedModel(model, tiny_variables(model), PIXELS, NAMES, {"file": "tiny"})


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("look") / "model"
    write_folder(path, trained)
    return str(path)


@pytest.mark.parametrize("command", ["attribute", "dream"])
def test_a_photo_is_not_overwritten(command, folder, tmp_path, capsys):
    photo = tmp_path / "mine.png"
    PHOTO.save(photo)
    before = photo.read_bytes()
    assert main([command, folder, str(photo), "--out", str(photo)]) == 2
    assert "mine.png is an input" in capsys.readouterr().err
    assert photo.read_bytes() == before


@pytest.mark.parametrize("name", ["1.png", "new.png"])
@pytest.mark.parametrize("command", [["top-images", "mixed3a:1"], ["compare", "other"]])
def test_no_picture_is_written_into_the_data(command, name, folder, tmp_path, capsys):
    photo = tmp_path / "1.png"
    PHOTO.save(photo)
    before = photo.read_bytes()
    arguments = [command[0], folder, *command[1:], "--data", f"folder:{tmp_path}#20"]
    assert main([*arguments, "--out", str(tmp_path / name)]) == 2
    assert name in capsys.readouterr().err
    assert photo.read_bytes() == before
    assert list(tmp_path.iterdir()) == [photo]


def test_no_folder_of_pictures_is_made_of_the_data(folder, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    PHOTO.save(photos / "1.png")
    arguments = ["top-images", folder, "inception_4a:0", "--data", str(photos)]
    assert main([*arguments, "--out", f"{photos}.png"]) == 2
    assert f"{photos} is an input" in capsys.readouterr().err
    assert [file.name for file in photos.iterdir()] == ["1.png"]


def test_a_probe_does_not_depend_on_the_order_of_the_classes():
    label = np.arange(400) % 2  # every second image is of the same class
    x = np.random.default_rng(0).normal(size=(400, 4)) + 3 * label[:, None]
    order = np.argsort(label, kind="stable")
    assert similarity.probe(x, label) > 0.95
    assert similarity.probe(x[order], label[order]) > 0.95


def test_the_halves_of_a_probe_have_equal_shares_of_each_class():
    label = np.repeat(np.arange(40), 2)  # one image of each class in each half
    assert similarity.probe(np.eye(40)[label], label) == 1


def test_the_similarity_of_constant_features_is_undefined():
    x, constant = np.random.default_rng(0).normal(size=(30, 3)), np.full((30, 2), 0.1, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(similarity.cka(x, constant))
        assert math.isnan(similarity.cka(constant, constant))
    blocks = {"a": ["3a"], "b": ["3a"]}
    cka = dict.fromkeys(blocks, np.array([[np.nan]]))
    found = similarity.Comparison(blocks, cka, {"a": [0.5], "b": [0.5]})
    (text,) = similarity.draw_comparison(found).axes[0].texts
    assert (text.get_text(), text.get_color()) == ("\N{EN DASH}", "black")


def test_the_probes_of_networks_of_other_depths_are_in_the_order_of_the_blocks():
    blocks = {"a": ["3a", "5a"], "b": ["3a", "4a", "5a"]}
    cka = {name: np.ones((2, len(own))) for name, own in blocks.items()}
    probes = {"a": [0.1, 0.3], "b": [0.1, 0.2, 0.3]}
    figure = similarity.draw_comparison(similarity.Comparison(blocks, cka, probes))
    figure.draw_without_rendering()
    axes = figure.axes[-1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["3a", "4a", "5a"]
    assert [line.get_xdata(orig=False).tolist() for line in axes.lines] == [[0, 2], [0, 1, 2]]


def test_networks_that_crop_differently_are_compared_on_their_own_crops(trained):
    smaller = dataclasses.replace(PIXELS, resize_to=24)
    models = {"a": trained, "b": dataclasses.replace(trained, preprocessing=smaller)}
    found = similarity.compare(models, Pictures("digits#40"))
    np.testing.assert_allclose(np.diag(found.cka["a"]), 1)
    assert np.all(np.diag(found.cka["b"]) < 1)


def test_probes_need_labels(trained, tmp_path):
    for number in range(20):
        PHOTO.save(tmp_path / f"{number}.png")
    with pytest.raises(UserError, match="labelled images"):
        similarity.compare({"a": trained}, Pictures(str(tmp_path)))


NAMES_OF_OBJECTIVES = (
    *("mixed4a:1", "-mixed4a:1", "mixed4a:11", "mixed3a/1x1:1", "class:a b", "class:a-b"),
    *(
        "class:a_b",
        "class:a/b",
        "class:\N{CJK UNIFIED IDEOGRAPH-732B}",
        "class:\N{GREEK SMALL LETTER PHI}",
    ),
    *("+".join(f"mixed4a:{n}" for n in range(count)) for count in (2, 99, 100)),
)


def test_every_objective_has_a_file_of_its_own(tmp_path):
    files = [visualize._file_name(name) for name in NAMES_OF_OBJECTIVES]
    assert files[:4] == ["mixed4a-1.png", "-mixed4a-1.png", "mixed4a-11.png", "mixed3a-1x1-1.png"]
    for file in files:
        (tmp_path / file).touch()
    assert len(list(tmp_path.iterdir())) == len(files)


def silenced(trained, block, number):
    """Returns the network, in which a channel of the 1x1 branch of `block` is 0 for all photos."""
    params = jax.tree.map(np.array, trained.variables["params"])
    params[f"inception_{block}"]["b1"]["conv"]["bias"][number] = -1e6
    return dataclasses.replace(trained, variables={**trained.variables, "params": params})


def test_a_dream_of_a_dead_channel_changes_the_photo(trained):
    dead = silenced(trained, "3a", 1)
    changed = dream(dead, PHOTO, "mixed3a:1", octaves=1, steps=1)
    assert np.any(np.asarray(changed) != np.asarray(PHOTO))
    with pytest.raises(UserError, match=r"0\*mixed3a:1 has no gradient"):
        dream(trained, PHOTO, "0*mixed3a:1", octaves=1, steps=1)


@pytest.mark.parametrize("steps", ["0", "1"])
def test_a_dead_channel_is_silent_on_all_images(steps, trained, tmp_path, capsys, monkeypatch):
    write_folder(tmp_path / "model", silenced(trained, "3a", 1))
    for number in range(3):
        PHOTO.rotate(90 * number).save(tmp_path / f"{number}.png")
    drawn = []
    run = examples.draw
    monkeypatch.setattr(examples, "draw", lambda *given: drawn.append(given) or run(*given))
    (tmp_path / "3.png").write_bytes(b"no picture")
    arguments = ["top-images", str(tmp_path / "model"), "mixed3a:1", "mixed3a:2", "--steps", steps]
    data = ["--data", f"{tmp_path}/", "--out", str(tmp_path.parent / f"top-{steps}.png")]
    assert main([*arguments, *data]) == 1
    dead, other = capsys.readouterr().out.splitlines()[:2]
    assert dead == "inception_3a/output:1  silent on all images"
    assert all(f"{number}.png" in other for number in range(3))
    ((seen, columns, _, subtitle),) = drawn
    assert "of 3 images" in subtitle
    assert len(seen.images) == len(seen.captions) == 2 * columns == 2 * (3 + int(steps))
    first, *rest = seen.captions[int(steps) : columns]
    assert (first, rest) == (["inception_3a:1", "silent on all images"], [[], []])


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("dream", ["--seed", "-1"], "--seed is -1"),
        ("visualize", ["--seed", "99999999999999999999"], "--seed is 9999"),
        ("dream", ["--octaves", "2500"], "at most 11"),
        ("dream", ["--octaves", "2", "--octave-scale", "inf"], "at most 1 for"),
        ("dream", ["--strength", "nan"], "--strength is nan"),
        ("dream", ["--strength", "1e300"], "--strength is 1e+300"),
    ],
)
def test_options_out_of_range_are_refused(command, options, words, folder, tmp_path, capsys):
    PHOTO.save(tmp_path / "photo.png")
    first = {"dream": str(tmp_path / "photo.png"), "visualize": "mixed3a:1"}[command]
    assert main([command, folder, first, *options, "--out", str(tmp_path / "a.png")]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["visualize", "inception_3a", "--columns", "1", "--size", "200"], "a.webp"),
        (["visualize", "inception_3a", "--columns", "99", "--size", "5000"], "a.jpg"),
        (["top-images", "inception_3a", "--data", "digits#9", "--top", "12"], "a.webp"),
    ],
)
def test_a_sheet_that_the_format_cannot_store_is_refused_at_once(
    command, name, folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(visualize, "visualize", None)  # nothing is optimised
    monkeypatch.setattr(contact_sheet, "LIMITS", {".webp": 1383, ".jpg": 65_500})
    command = [command[0], folder, *command[1:], "--out", str(tmp_path / name)]
    assert main(command) == 2
    assert f"{name} would have" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_hides_a_data_set_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    PHOTO.save(tmp_path / "digits" / "0.png")
    assert len(Pictures("digits")) == 1
    assert "digits#100%" in capsys.readouterr().err
    assert len(Pictures("digits#100%")) == 360
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("count", "side", "columns"), [(5, 16, 2), (30, 200, 1), (3, 130, 9)])
def test_a_sheet_has_at_most_the_size_that_is_checked(count, side, columns, monkeypatch):
    images = np.zeros((count, side, side, 3), np.uint8)
    seen = contact_sheet.Seen(images, [["objective", "1"]] * count)
    sheet = contact_sheet.draw(seen, columns, "title", "A subtitle of some sentences. " * 7)
    monkeypatch.setattr(contact_sheet, "LIMITS", {".jpg": sheet.height - 1})
    with pytest.raises(UserError, match=r"a\.jpg would have"):
        contact_sheet.check_fits(Path("a.jpg"), count, side, columns)
    contact_sheet.check_fits(Path("a.png"), count, side, columns)
