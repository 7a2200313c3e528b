"""The look commands with unusual data, names and options, on a tiny network."""

import dataclasses
import math
import warnings

import numpy as np
import pytest

from gnet_jax.cli.main import main
from gnet_jax.config import UserError
from gnet_jax.inference.images import Pictures
from gnet_jax.lab.look import similarity
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


def test_networks_that_crop_differently_are_compared_on_their_own_crops(trained):
    smaller = dataclasses.replace(PIXELS, resize_to=24)
    models = {"a": trained, "b": dataclasses.replace(trained, preprocessing=smaller)}
    found = similarity.compare(models, Pictures("digits#40"))
    np.testing.assert_allclose(np.diag(found.cka["a"]), 1)
    assert np.all(np.diag(found.cka["b"]) < 1)


def test_probes_need_labels(trained, tmp_path):
    for number in range(20):
        PHOTO.save(tmp_path / f"{number}.png")
    with pytest.raises(UserError, match=r"\.png has no label"):
        similarity.compare({"a": trained}, Pictures(str(tmp_path)))
