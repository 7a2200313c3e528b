"""Probabilities, the classes that are shown, and their order."""

import dataclasses
import io
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from gnet_jax.config import Preprocessing
from gnet_jax.data.decode import ImageError, central_crop
from gnet_jax.inference import predict
from gnet_jax.inference.images import Picture
from gnet_jax.inference.predict import (
    Predictor,
    predictions,
    render,
    render_error,
    softmax,
    top_classes,
)


@pytest.fixture(scope="module")
def predictor(model_a):
    return Predictor(model_a, 4)


def squares_of(photos, preprocessing):
    return np.stack([central_crop(photo, preprocessing) for photo in photos])


@pytest.mark.parametrize("name", ["model_a", "model_b"])  # RGB, and BGR with another mean and std
def test_logits_are_the_networks_for_normalised_pixels(name, request, make_photo):
    trained = request.getfixturevalue(name)
    photos = [make_photo(i) for i in range(3)]
    squares, p = squares_of(photos, trained.preprocessing), trained.preprocessing
    ordered = squares[..., [2, 1, 0]] if name == "model_b" else squares
    x = ((ordered - np.array(p.mean)) / np.array(p.std)).astype(np.float32)
    expected = jax.jit(trained.model.apply)(trained.variables, x).logits
    found = Predictor(trained, 3).logits(squares)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert len({row.tobytes() for row in found}) == 3


@pytest.mark.parametrize("count", [0, 1, 4, 6])
def test_a_picture_gets_the_same_logits_in_any_batch(predictor, make_photo, count):
    squares = squares_of([make_photo(i) for i in range(6)], predictor.trained.preprocessing)
    together = predictor.logits(squares[:count])
    assert together.shape == (count, 7)
    for row, square in zip(together, squares, strict=False):
        np.testing.assert_allclose(row, predictor.logits(square[None])[0], rtol=1e-5, atol=1e-5)


def test_it_compiles_once_for_any_number_of_pictures_and_models(make_model, make_photo):
    p = Preprocessing(image_size=24, resize_to=24)
    trained = make_model(1, p)
    first, second = Predictor(trained, 4), Predictor(make_model(2, p), 4)
    first.warm_up()
    squares = squares_of([make_photo(i) for i in range(9)], p)
    results = [
        predictor.logits(squares[:count])[0]
        for count in (1, 3, 4, 9)
        for predictor in (first, second)
    ]
    assert first._program() is second._program()
    assert first._program().__wrapped__._cache_size() == 1  # pyright: ignore[reportFunctionMemberAccess]
    assert not np.allclose(results[0], results[1])  # each with its own weights
    other = dataclasses.replace(p, channels="BGR")
    assert Predictor(make_model(1, other), 4)._program() is not first._program()
    halved = dataclasses.replace(trained, model=trained.model.clone(dtype=jnp.bfloat16))
    assert Predictor(halved, 4)._program() is not first._program()
    assert Predictor(halved, 4).logits(squares[:1]).dtype == np.float32


def test_a_note_is_printed_if_the_first_call_is_slow_and_only_then(monkeypatch, capsys):
    monkeypatch.setattr(predict, "PATIENCE", 0.2)
    printed = threading.Event()
    monkeypatch.setattr(predict, "print", lambda *_, **__: printed.set(), raising=False)
    quick = predict.say_if_slow(lambda x: x + 1)
    assert quick(1) == 2
    assert not printed.wait(0.4)
    slow = predict.say_if_slow(printed.wait)
    assert slow(60)  # ends as soon as the note is printed
    printed.clear()
    assert not slow(0.4)
    with pytest.raises(ZeroDivisionError):
        predict.say_if_slow(lambda x: 1 / x)(0)
    assert not printed.wait(0.4)


def test_auxiliary_heads_are_not_used(model_a, predictor):
    assert any(name.startswith("aux_") for name in model_a.variables["params"])
    assert not any(name.startswith("aux_") for name in predictor.variables["params"])


def test_a_batch_is_split_over_this_processs_devices(model_a):
    devices = len(jax.local_devices())
    predictor = Predictor(model_a, devices + 1)
    assert predictor.batch_size == 2 * devices  # rounded up
    assert Predictor(model_a).batch_size == 8
    squares = np.zeros((predictor.batch_size, 32, 32, 3), np.uint8)
    assert len(predictor._program()(predictor.variables, squares).sharding.device_set) == devices


def test_softmax_is_over_the_classes():
    logits = np.log(np.array([[1, 3, 4], [5, 2, 1]], np.float32))
    np.testing.assert_allclose(softmax(logits), [[1 / 8, 3 / 8, 1 / 2], [5 / 8, 1 / 4, 1 / 8]])
    np.testing.assert_allclose(softmax(logits[None])[0, 1], [5 / 8, 1 / 4, 1 / 8])


def test_softmax_keeps_the_order_of_distinct_logits():
    logits = np.array([[500.0, 0.0, -100.0, np.nextafter(np.float32(-100), np.float32(0))]])
    found = softmax(logits.astype(np.float32))
    assert np.argsort(-found[0]).tolist() == [0, 1, 3, 2]


def test_the_most_probable_classes_come_first_and_equal_ones_by_index():
    found = top_classes(np.array([0.1, 0.3, 0.3, 0.2], np.float32), ("a", "b", "c", "d"), k=3)
    assert [(guess["label"], guess["index"]) for guess in found] == [("b", 1), ("c", 2), ("d", 3)]
    assert [guess["probability"] for guess in found] == pytest.approx([0.3, 0.3, 0.2])
    assert [len(top_classes(np.full(6, 1 / 6), tuple("abcdef"), k)) for k in (1, 5, 9)] == [1, 5, 6]
    many = top_classes(np.tile([0.004, 0.016], 50), tuple(map(str, range(100))))
    assert [guess["index"] for guess in many] == [1, 3, 5, 7, 9]


def test_predictions_keep_the_order_and_name_what_failed(predictor, make_photo):
    lost = ImageError("not an image")
    strip = Image.new("RGB", (1, 600_000))  # too narrow to resize
    given = [make_photo(i) for i in range(6)]
    given[2:2] = [lost]
    given += [strip, lost]
    given += [lost] * predictor.batch_size  # a batch without a picture
    found = list(predictions(predictor, [Picture(str(i), p) for i, p in enumerate(given)], k=2))
    assert [p.name for p, _ in found] == [str(i) for i in range(len(given))]
    names = predictor.trained.class_names
    for picture, (seen, top) in zip(given, found, strict=True):
        if isinstance(picture, Image.Image) and picture is not strip:
            assert isinstance(top, list)
            square = central_crop(picture, predictor.trained.preprocessing)
            order = np.argsort(-predictor.logits(square[None])[0])[:2]
            assert [g["label"] for g in top] == [names[i] for i in order]
            assert seen.picture is picture
        else:
            assert isinstance(top, ImageError)
    assert found[2][1] is lost


def test_a_batch_is_shown_before_the_next_picture_is_read(predictor, make_photo):
    def given():
        yield from (Picture(str(i), make_photo(i)) for i in range(predictor.batch_size))
        raise AssertionError("the next one was read first")

    assert next(predictions(predictor, given()))[0].name == "0"


def written(width: int, terminal: bool, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    console = Console(file=file, width=width, force_terminal=terminal, color_system=None)
    label = "[bold]hay, a very long name that no terminal of 40 columns holds"
    render(console, "dir/[red]photo.jpg", top_classes(np.array([0.75, 0.25]), (label, "cat")))
    render_error(console, "a.jpg", ImageError("not an image"))
    file.seek(0)
    return file.read()


def test_render_shows_names_and_bars_in_the_terminals_width():
    name, first, second, error = written(40, terminal=True).splitlines()
    assert name == "dir/[red]photo.jpg"  # a name is never taken for markup
    assert first == " 75.00%  " + 10 * "━" + "     [bold]hay, a ve…"
    assert second == " 25.00%  " + 3 * "━" + "            cat"
    assert error == "a.jpg: not an image"
    assert written(100, terminal=True).splitlines()[1].count("━") == 18  # of at most 24


def test_control_characters_in_names_are_escaped():
    console = Console(file=io.StringIO(), width=80, color_system=None)
    render(console, "a\x1b[2Jb", [])
    render_error(console, "c\nd", ImageError("not an image"))
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert shown == "a\\x1b[2Jb\nc\\nd: not an image\n"


def test_long_paths_are_not_broken_into_lines():
    console = Console(file=io.StringIO(), width=20, color_system=None)
    render(console, "a path/" * 9, [])
    render_error(console, "a path/" * 9, ImageError("not an image"))
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert shown.splitlines() == ["a path/" * 9, "a path/" * 9 + ": not an image"]


def test_render_truncates_nothing_in_a_pipe_and_keeps_to_its_encoding():
    shown = written(40, terminal=False, encoding="ascii")
    assert "#####" in shown
    assert "of 40 columns holds" in shown
    assert shown.count("\n") == 4
