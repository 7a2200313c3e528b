"""Activation maps: their arithmetic, their place, and the picture."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gnet_jax.config import Preprocessing, UserError
from gnet_jax.data.decode import central_crop
from gnet_jax.inference.cam import ActivationMap, ActivationMapper, draw
from gnet_jax.inference.predict import Guess
from gnet_jax.model.googlenet import endpoints, googlenet


@pytest.fixture(scope="module")
def mapper(model_a):
    return ActivationMapper(model_a, exact=True)


@pytest.fixture(scope="module")
def features_and_logits(model_a):
    """The last block's output and the logits, by the network itself."""

    @jax.jit
    def compute(x):
        found = endpoints(model_a.model, model_a.variables, x)
        return found["inception_5a/output"][0], found["loss3/classifier"][0]

    def run(photo):
        p = model_a.preprocessing
        pixels = central_crop(photo, p)
        x = (jnp.asarray(pixels, jnp.float32)[None] - jnp.array(p.mean)) / jnp.array(p.std)
        return [np.asarray(value) for value in compute(x)]

    return run


def test_a_map_is_the_features_weighted_by_the_classs_column(
    model_a, mapper, features_and_logits, make_photo
):
    photo = make_photo(0)
    features, logits = features_and_logits(photo)
    kernel, bias = (
        np.asarray(model_a.variables["params"]["classifier"][n]) for n in ("kernel", "bias")
    )
    odds = np.exp(logits - logits.max())
    for index in range(7):
        found = mapper(photo, index)["main"]
        expected = sum(features[..., c] * kernel[c, index] for c in range(len(kernel)))
        np.testing.assert_allclose(found.evidence, expected, rtol=1e-3, atol=1e-3)
        assert found.evidence.mean() + bias[index] == pytest.approx(logits[index], rel=1e-3)
        assert found.guess["index"] == index
        assert found.guess["label"] == model_a.class_names[index]
        assert found.guess["probability"] == pytest.approx(odds[index] / odds.sum(), rel=1e-3)
        np.testing.assert_array_equal(found.square, central_crop(photo, model_a.preprocessing))


def test_without_an_index_the_main_heads_most_probable_class_is_mapped(
    mapper, features_and_logits, make_photo
):
    for seed in range(4):
        _, logits = features_and_logits(make_photo(seed))
        maps = mapper(make_photo(seed))
        assert list(maps) == ["main", "aux 4a"]
        assert [found.guess["index"] for found in maps.values()] == 2 * [logits.argmax()]
        probabilities, own = mapper.own(make_photo(seed), "aux 4a")
        assert own.guess["index"] == probabilities.argmax()
        assert probabilities.sum() == pytest.approx(1)


def passing_brightness(path, leaf) -> np.ndarray:
    """Weights that pass on the mean of the channels, so that class 3 is where the light is."""
    kernel = np.zeros(leaf.shape, np.float32)
    names = [key.key for key in path]
    if names[-1] == "kernel" and leaf.ndim == 4 and "pool_proj" not in names:  # pools smear
        kernel[leaf.shape[0] // 2, leaf.shape[1] // 2] = 1 / leaf.shape[2]
    elif names[-1] == "kernel" and leaf.ndim == 2:
        kernel[:, 3] = 1.0
    return kernel


@pytest.mark.parametrize(("column", "row"), [(0, 0), (1, 0), (0, 1), (1, 1), (1, 2)])
def test_the_map_peaks_where_the_thing_is(lamp_mapper, column, row):
    """A lamp of 12 pixels in a grid of 3 x 3 places, of which the network sees all."""
    photo = np.full((64, 64, 3), 120, np.uint8)
    photo[4 + 22 * row : 16 + 22 * row, 4 + 22 * column : 16 + 22 * column] = 255
    found = lamp_mapper(Image.fromarray(photo), 3)["main"]
    assert found.evidence.shape == (8, 8)
    lamp = np.array([10 + 22 * row, 10 + 22 * column])
    peak = np.argwhere(found.evidence == found.evidence.max()).mean(axis=0) * 8 + 4
    np.testing.assert_allclose(peak, lamp, atol=8)  # within one cell
    drawn = np.asarray(draw(found).convert("L"), int)[32:]
    bright = np.argwhere(drawn == drawn.max()).mean(axis=0) / 7  # drawn 7 times as large
    np.testing.assert_allclose(bright, lamp, atol=8)


@pytest.fixture(scope="module")
def lamp_mapper(make_model):
    trained = make_model(0, Preprocessing(image_size=64, resize_to=64))
    params = jax.tree_util.tree_map_with_path(passing_brightness, trained.variables["params"])
    variables = {"params": params, "batch_stats": {}}
    return ActivationMapper(dataclasses.replace(trained, variables=variables), exact=True)


@pytest.mark.parametrize(("side", "drawn"), [(16, 448), (32, 448), (224, 448), (299, 598)])
def test_the_drawing_has_a_title_line_and_a_readable_size(side, drawn):
    guess = Guess(index=0, label="a name " * 30, probability=0.5)
    evidence = np.eye(7, dtype=np.float32)
    found = ActivationMap(evidence, np.full((side, side, 3), 90, np.uint8), guess)
    picture = draw(found)
    assert picture.size == (drawn, drawn + 32)
    title = np.asarray(picture)[:32]
    assert title.min() < 100  # something is written
    assert (title[:, -8:] == 255).all()  # and it ends in front of the border


def test_a_constant_map_is_drawn_without_a_warning():
    guess = Guess(index=0, label="fog", probability=0.1)
    found = ActivationMap(np.ones((7, 7), np.float32), np.zeros((224, 224, 3), np.uint8), guess)
    with np.errstate(all="raise"):
        assert draw(found).size == (448, 480)


def test_the_map_covers_a_quarter_of_the_photo_where_it_is_low_and_seven_tenths_where_it_is_high():
    guess = Guess(index=0, label="fog", probability=0.1)
    evidence, grey = np.array([[-3], [5]], np.float32), np.full((224, 224, 3), 200, np.uint8)
    drawn = np.asarray(draw(ActivationMap(evidence, grey, guess)), int)
    low, high = np.array([0, 0, 4]), np.array([252, 255, 164])  # the ends of inferno
    np.testing.assert_allclose(drawn[32, 0], 0.75 * 200 + 0.25 * low, atol=1)
    np.testing.assert_allclose(drawn[-1, -1], 0.3 * 200 + 0.7 * high, atol=1)


def test_the_map_covers_at_most_seven_tenths_beside_a_steep_edge_too():
    guess = Guess(index=0, label="fog", probability=0.1)
    evidence = np.array([[0, 0, 1, 1]], np.float32)  # smoothed, it is above 1 and below 0 there
    black = np.zeros((224, 224, 3), np.uint8)
    drawn = np.asarray(draw(ActivationMap(evidence, black, guess)))[32:]
    assert drawn.max() <= 0.7 * 255


def test_a_class_or_map_that_does_not_exist_is_refused(model_a, mapper, make_photo):
    for index in (-1, 7):
        with pytest.raises(UserError, match=f"class {index}; .* 0 to 6"):
            mapper(make_photo(0), index)
    other = dataclasses.replace(model_a, model=googlenet(head="fc"))
    assert list(ActivationMapper(other).heads) == ["main", "aux 4a"]
    with pytest.raises(UserError, match="fc"):
        ActivationMapper(other, exact=True)
