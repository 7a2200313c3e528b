"""Probabilities, the classes that are shown, and their order."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from gnet_jax.config import Preprocessing, UserError
from gnet_jax.data import preprocess
from gnet_jax.data.decode import ImageError, central_crop
from gnet_jax.inference import predict
from gnet_jax.inference.images import Picture
from gnet_jax.inference.predict import Predictor, predictions, render, render_error, softmax, top


@pytest.fixture(scope="module")
def predictor(model_a):
    return Predictor(model_a, 4)


def test_probabilities_are_those_of_the_network(model_a, predictor, make_photo):
    photos = [make_photo(i) for i in range(3)]
    squares = np.stack([central_crop(photo, model_a.preprocessing) for photo in photos])
    x = preprocess(jnp.asarray(squares), preprocessing=model_a.preprocessing)
    logits = jax.jit(model_a.model.apply)(model_a.variables, x).logits
    found = predictor.probabilities(photos)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, jax.nn.softmax(logits), rtol=1e-4, atol=1e-6)
    assert len({row.tobytes() for row in found}) == 3


@pytest.mark.parametrize("count", [0, 1, 4, 6])
def test_a_picture_gets_the_same_probabilities_in_any_company(predictor, make_photo, count):
    photos = [make_photo(i) for i in range(count)]
    together = predictor.probabilities(photos)
    assert together.shape == (count, 7)
    for row, photo in zip(together, photos, strict=True):
        np.testing.assert_allclose(row, predictor.probabilities([photo])[0], rtol=1e-5)


def test_it_compiles_once_whatever_the_number_of_pictures_and_models(make_model, make_photo):
    p = Preprocessing(image_size=24, resize_to=24)
    trained = make_model(1, p)
    first, second = Predictor(trained, 4), Predictor(make_model(2, p), 4)
    first.warm_up()
    photos = [make_photo(i) for i in range(9)]
    results = [
        predictor.probabilities(photos[:count])[0]
        for count in (1, 3, 4, 9)
        for predictor in (first, second)
    ]
    assert first._program is second._program
    assert first._program._cache_size() == 1  # pyright: ignore[reportFunctionMemberAccess]
    assert not np.allclose(results[0], results[1])  # each with its own weights
    other = dataclasses.replace(p, channels="BGR")
    assert Predictor(make_model(1, other), 4)._program is not first._program
    halved = dataclasses.replace(trained, model=trained.model.clone(dtype=jnp.bfloat16))
    assert Predictor(halved, 4)._program is not first._program


def test_auxiliary_heads_are_left_out(model_a, predictor):
    assert any(name.startswith("aux_") for name in model_a.variables["params"])
    assert not any(name.startswith("aux_") for name in predictor.variables["params"])


def test_a_batch_of_none_is_refused(model_a):
    with pytest.raises(UserError, match="batch size is 0"):
        Predictor(model_a, 0)


def test_softmax_keeps_the_order_of_distinct_logits():
    logits = np.array([[500.0, 0.0, -100.0, np.nextafter(np.float32(-100), np.float32(0))]])
    found = softmax(logits.astype(np.float32))
    assert np.argsort(-found[0]).tolist() == [0, 1, 3, 2]
    np.testing.assert_allclose(found.sum(), 1)


def test_top_names_the_likeliest_and_the_first_of_equals_first():
    names = ("a", "b", "c", "d")
    found = top(np.array([0.1, 0.3, 0.3, 0.2], np.float32), names, k=3)
    assert [guess["label"] for guess in found] == ["b", "c", "d"]
    assert [guess["index"] for guess in found] == [1, 2, 3]
    assert found[0]["probability"] == pytest.approx(0.3)
    assert len(top(np.full(4, 0.25), names)) == 4


def test_predictions_keep_the_order_and_pass_on_what_failed(predictor, make_photo):
    lost = ImageError("not an image: it is empty")
    strip = Image.new("RGB", (1, 600_000))
    given = [make_photo(i) for i in range(6)]
    given[2:2] = [lost]
    given += [strip, lost]
    found = list(predictions(predictor, [Picture(str(i), p) for i, p in enumerate(given)], k=2))
    assert [p.name for p in found] == [str(i) for i in range(9)]
    for picture, prediction in zip(given, found, strict=True):
        if isinstance(picture, Image.Image) and picture is not strip:
            assert isinstance(prediction.top, list)
            expected = top(predictor.probabilities([picture])[0], predictor.trained.class_names, 2)
            assert [g["label"] for g in prediction.top] == [g["label"] for g in expected]
            assert prediction.picture is picture
        else:
            assert isinstance(prediction.top, ImageError)


def test_a_failure_in_front_of_everything_is_passed_on_at_once(predictor):
    def given():
        yield Picture("lost", ImageError("not an image"))
        raise AssertionError("the next one was asked for first")

    assert next(predictions(predictor, given())).name == "lost"


def written(width: int, terminal: bool, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    console = Console(file=file, width=width, force_terminal=terminal, color_system=None)
    label = "[bold]hay, a very long name that no terminal of 40 columns holds"
    render(console, "dir/[red]photo.jpg", top(np.array([0.75, 0.25]), (label, "cat")))
    render_error(console, "a.jpg", ImageError("not an image"))
    file.seek(0)
    return file.read()


def test_render_shows_names_and_bars_in_the_terminals_width():
    name, first, second, error = written(40, terminal=True).splitlines()
    assert name == "dir/[red]photo.jpg"  # a name is never taken for markup
    assert first == " 75.00%  " + 10 * "━" + "     [bold]hay, a ve…"
    assert second == " 25.00%  " + 3 * "━" + "            cat"
    assert error == "a.jpg: not an image"


def test_render_cuts_nothing_short_in_a_pipe_and_keeps_to_its_encoding():
    shown = written(40, terminal=False, encoding="ascii")
    assert "#####" in shown
    assert "of 40 columns holds" in shown
    assert shown.count("\n") == 4


def test_weights_of_another_dtype_give_float32(make_model, make_photo):
    trained = make_model(1)
    halved = dataclasses.replace(trained, model=trained.model.clone(dtype=jnp.bfloat16))
    assert predict.Predictor(halved, 2).probabilities([make_photo(0)]).dtype == np.float32


def test_a_batch_is_split_over_this_processs_devices(model_a):
    devices = len(jax.local_devices())
    predictor = Predictor(model_a, devices + 1)
    assert predictor.batch_size == 2 * devices  # rounded up, to divide
    squares = np.zeros((predictor.batch_size, 32, 32, 3), np.uint8)
    assert len(predictor._program(predictor.variables, squares).sharding.device_set) == devices
