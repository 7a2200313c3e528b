import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gnet_jax.cli.main import main
from gnet_jax.config import Preprocessing, UserError
from gnet_jax.inference.cam import ActivationMapper
from gnet_jax.lab.look import inside
from gnet_jax.lab.look.inside import activation_figure, filters_figure, heads_picture
from gnet_jax.model.googlenet import GoogLeNet, every_head, strip_aux
from gnet_jax.model_folder import TrainedModel, write_folder
from tests.tiny import tiny_arch, tiny_variables

PIXELS = Preprocessing(image_size=16, resize_to=16, mean=(99, 99, 99), std=(50, 50, 50))
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))


@pytest.fixture(scope="module")
def trained():
    model = GoogLeNet(tiny_arch())
    names = tuple(f"class {n}" for n in range(10))
    return TrainedModel(model, tiny_variables(model), PIXELS, names, {"format": "test"})


@pytest.fixture(scope="module")
def maps(trained):
    return ActivationMapper(trained)(PHOTO, 3)


def test_each_head_has_its_own_map_and_probability(trained, maps):
    assert list(maps) == ["main", "aux 4a"]
    aux = maps["aux 4a"]
    assert aux.evidence.shape == (4, 4)
    x = (np.asarray(PHOTO, np.float32)[None] - 99) / 50
    (logits,) = jax.jit(partial(every_head, trained.model))(trained.variables, x).aux_logits
    odds = np.exp(logits[0] - logits.max())
    assert aux.guess["probability"] == pytest.approx(float(odds[3] / odds.sum()), rel=1e-4)


@pytest.mark.slow
def test_the_training_net_without_dropout_has_the_same_auxiliary_logits(trained):
    """The heads taken alone are those of the network."""
    x = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
    model = GoogLeNet(dataclasses.replace(trained.model.arch, dropout=0.0, aux_dropout=0.0))
    apply = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    whole = apply(trained.variables, x)[0]
    alone = jax.jit(partial(every_head, trained.model))(trained.variables, x)
    np.testing.assert_allclose(alone.logits, whole.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(alone.aux_logits[0], whole.aux_logits[0], rtol=1e-4, atol=1e-5)


def test_weights_without_auxiliary_heads_have_the_main_map_alone(trained):
    variables = {name: strip_aux(tree) for name, tree in trained.variables.items()}
    assert list(ActivationMapper(dataclasses.replace(trained, variables=variables))(PHOTO)) == [
        "main"
    ]


def test_the_command_draws_everything(trained, tmp_path, capsys):
    write_folder(tmp_path / "model", trained)
    PHOTO.save(tmp_path / "photo.png")
    arguments = [str(tmp_path / "model"), str(tmp_path / "photo.png"), "--out", str(tmp_path / "o")]
    assert main(["inspect", *arguments, "--class-index", "2"]) == 0
    drawn = {Path(line.removeprefix("drew ")).name for line in capsys.readouterr().out.splitlines()}
    assert {"filters.png", "heads.png", "inception_3a-output.png"} <= drawn
    for name in drawn:
        with Image.open(tmp_path / "o" / name) as picture:
            assert min(picture.size) > 100
    assert main(["inspect", *arguments, "--endpoint", "inception_4a/5x"]) == 2
    assert "did you mean inception_4a/5x5?" in capsys.readouterr().err
    assert main(["inspect", arguments[0], str(tmp_path / "none.png")]) == 2
    assert "none.png" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["heads", "conv1-7x7_s2", "mixed3a-1"])
def test_the_command_does_not_overwrite_the_photo(trained, tmp_path, capsys, name):
    write_folder(tmp_path / "model", trained)
    photo = tmp_path / f"{name}.png"
    PHOTO.save(photo)
    before = photo.read_bytes()
    more = ["--endpoint", "mixed3a:1"] if name == "mixed3a-1" else []
    arguments = [str(tmp_path / "model"), str(photo), "--out", str(tmp_path), *more]
    assert main(["inspect", *arguments]) == 2
    assert f"{name}.png is an input" in capsys.readouterr().err
    assert photo.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_channels_of_a_bfloat16_network_are_drawn_as_float32(trained, tmp_path, monkeypatch):
    half = dataclasses.replace(trained, model=trained.model.clone(dtype=jnp.bfloat16))
    drawn = {}

    def keep(name, value, draw=activation_figure):
        drawn[name] = value
        return draw(name, value)

    monkeypatch.setattr(inside, "activation_figure", keep)
    inside.draw_inside(half, PHOTO, tmp_path, ["inception_3a/output"])
    assert drawn["inception_3a/output"].dtype == np.float32


def test_a_class_that_is_not_there_is_named(trained):
    with pytest.raises(UserError, match="there is no class 10; the model has classes 0 to 9"):
        ActivationMapper(trained)(PHOTO, 10)


def test_montages_have_a_tile_for_each_channel_and_count_the_dead(maps):
    value = np.zeros((3, 3, 5), np.float32)
    value[1, 1, :4] = 1
    figure = activation_figure("inception_3a/5x5", value)
    assert sum(len(axes.images) for axes in figure.axes) == 5
    assert "5 channels of 3x3, 1 of them zero" in figure.get_suptitle()
    (bars,) = activation_figure("prob", np.array([0.25, 0.5, 0.125])).axes
    assert [bar.get_height() for bar in bars.patches] == [0.25, 0.5, 0.125]
    kernel = np.zeros((3, 3, 3, 2), np.float32)
    kernel[:, :, 0, 0] = 1  # of the first channel: blue in BGR
    figure = filters_figure(kernel, "BGR")
    first, second = (axes.images[0].get_array() for axes in figure.axes[:2])
    assert first[0, 0].tolist() == [0.5, 0.5, 1.0]
    assert second[0, 0].tolist() == [0.5, 0.5, 0.5]  # grey is 0
    assert "2 filters of 3x3," in figure.get_suptitle()
    assert not any(axes.axison for axes in figure.axes)
    small = filters_figure(kernel * [-0.2, 1], "RGB").axes[0].images[0].get_array()
    assert small[0, 0].tolist() == [0.0, 0.5, 0.5]  # scaled to the largest value of the filter
    assert heads_picture(maps).width == 2 * 448 + 12


def test_the_strongest_channels_come_first_and_share_one_scale():
    value = np.zeros((2, 2, 70), np.float32)
    value[0, 0] = np.arange(70)
    value[1, 1, 3] = 500
    figure = activation_figure("conv1", value)
    images = [axes.images[0] for axes in figure.axes if axes.images]
    tiles = [image.get_array() for image in images]
    assert [tile[0, 0] for tile in tiles] == [3, *range(69, 3, -1)][:64]
    assert {image.get_clim() for image in images} == {(0, 500)}
    assert "64 strongest" in figure.get_suptitle()


@pytest.mark.parametrize(("channels", "columns", "rows"), [(1, 1, 1), (8, 4, 2), (64, 11, 6)])
def test_a_montage_is_twice_as_wide_as_high(channels, columns, rows):
    figure = activation_figure("conv1", np.ones((2, 2, channels), np.float32))
    grid = figure.axes[0].get_gridspec()
    assert (grid.ncols, grid.nrows) == (columns, rows)


def test_endpoints_are_of_the_preprocessed_picture_and_by_default_the_known_ones(
    trained, tmp_path, monkeypatch
):
    drawn, saved = [], []
    names = ("inception_5b/output", "own", "inception_3a/output")
    given = dict.fromkeys(names)
    monkeypatch.setattr(inside, "endpoints", lambda model, _, x: dict.fromkeys(given, x))
    monkeypatch.setattr(inside, "ActivationMapper", lambda trained: lambda *asked: asked)
    monkeypatch.setattr(inside, "heads_picture", lambda maps: maps)
    monkeypatch.setattr(inside, "activation_figure", lambda *shown: drawn.append(shown))
    monkeypatch.setattr(inside, "save", lambda figure, file, dpi: saved.append((figure, file)))
    files = inside.draw_inside(trained, PHOTO, tmp_path / "new" / "folder", index=3)
    assert [file.name for file in files] == [
        "filters.png", "heads.png", "inception_3a-output.png", "inception_5b-output.png",
    ]  # fmt: skip
    assert [file for _, file in saved] == files
    assert saved[1][0] == (PHOTO, 3)
    assert [name for name, _ in drawn] == ["inception_3a/output", "inception_5b/output"]
    np.testing.assert_allclose(drawn[0][1], (np.asarray(PHOTO, np.float32) - 99) / 50, atol=1e-5)
    again = inside.draw_inside(trained, PHOTO, tmp_path / "new" / "folder", ["own"])
    assert [file.name for file in again] == ["filters.png", "heads.png", "own.png"]
    (*_, one) = inside.draw_inside(trained, PHOTO, tmp_path / "new" / "folder", ["mixed3a:1"])
    assert one.name == "mixed3a-1.png"
    np.testing.assert_array_equal(drawn[-1][1], np.asarray(drawn[0][1])[..., 1:2])


@pytest.mark.parametrize(("channels", "shown", "said"), [(4, 4, False), (5, 4, True)])
def test_a_choice_of_channels_is_said(monkeypatch, channels, shown, said):
    monkeypatch.setattr(inside, "SHOWN", 4)
    figure = activation_figure("conv1", np.ones((2, 2, channels), np.float32))
    assert sum(len(axes.images) for axes in figure.axes) == shown
    assert ("strongest" in figure.get_suptitle()) == said


def test_each_head_is_labelled_and_apart_from_the_next(maps, monkeypatch):
    labels = []

    def drawn(found):
        labels.append(found.guess["label"])
        return Image.new("RGB", (20, 10), (9, 9, 9))

    monkeypatch.setattr(inside, "draw", drawn)
    picture = np.asarray(heads_picture(maps))
    assert labels == ["main: class 3", "aux 4a: class 3"]
    assert picture.shape == (10, 52, 3)
    assert (picture[:, 20:32] == 255).all()
    assert (picture[:, :20] == 9).all()
    assert (picture[:, 32:] == 9).all()
