import colorsys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from gnet_jax.config import AugmentConfig
from gnet_jax.data import augment
from gnet_jax.data.augment import FACTOR, distort, mean_grey

# Compiled, because JAX would compile each of their operations.
blend, grey, turn_hue = map(jax.jit, (augment.blend, augment.grey, augment.turn_hue))
PHOTO = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
FLOAT = jnp.asarray(PHOTO, jnp.float32)
COLOUR = np.uint8([200, 100, 50])  # far enough from the limits that nothing is cut off


def distorted(images, **strengths):
    keys = jax.random.split(jax.random.PRNGKey(0), len(images))
    compiled = jax.jit(partial(distort, augmentation=AugmentConfig(**strengths)))
    return np.asarray(compiled(images, keys))


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.75])
def test_the_blends_are_pillows(factor):
    others = {
        ImageEnhance.Brightness: 0.0,
        ImageEnhance.Contrast: mean_grey(grey(FLOAT)),
        ImageEnhance.Color: grey(FLOAT),
    }
    for enhance, other in others.items():
        expected = np.asarray(enhance(Image.fromarray(PHOTO)).enhance(factor), np.float32)
        found = np.asarray(blend(FLOAT, other, factor))
        assert np.abs(found - expected).max() <= 1.5, enhance  # Pillow cuts off to whole levels


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.25, 0.5])
def test_a_turned_hue_is_that_of_hsv(turn):
    expected = np.zeros((8, 9, 3))
    for place in np.ndindex(8, 9):
        hue, saturation, value = colorsys.rgb_to_hsv(*(PHOTO[place] / 255))
        expected[place] = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
    np.testing.assert_allclose(turn_hue(FLOAT, turn), 255 * expected, atol=0.1)


def test_factor_1_and_turn_0_change_no_bit():
    every = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3, indexing="ij"), -1)
    every = jnp.asarray(every.reshape(1, -1, 3), jnp.float32)
    np.testing.assert_array_equal(turn_hue(every, 0.0), every)
    np.testing.assert_array_equal(turn_hue(every, 1.0), every)
    np.testing.assert_array_equal(blend(every, grey(every), 1.0), every)


def test_half_a_turn_makes_red_cyan_and_leaves_grey():
    pixels = jnp.asarray([[[255.0, 0, 0], [0, 0, 255], [90, 90, 90], [0, 0, 0]]])
    expected = [[[0, 255, 255], [255, 255, 0], [90, 90, 90], [0, 0, 0]]]
    np.testing.assert_array_equal(turn_hue(pixels, 0.5), expected)


def test_grey_has_the_weights_of_bt_601_in_parts_of_256():
    pixels = jnp.asarray([[[128.0, 0, 0], [0, 128, 0], [0, 0, 128], [255, 255, 255]]])
    assert grey(pixels)[0, :, 0].tolist() == [38.5, 75, 14.5, 255]  # 77, 150 and 29, halved


def test_the_mean_of_grey_is_that_of_whole_levels():
    assert mean_grey(jnp.asarray([[0.4], [0.4], [7.6], [100.0]])) == 27  # 0, 0, 8, 100


def test_a_factor_is_1_plus_its_draw():
    key = jax.random.split(jax.random.split(jax.random.PRNGKey(0), 3)[2], 5)[1]
    factor = 1 + int(jax.random.randint(key, (), -205, 206)) / 1024  # 0.2 in parts of 1024
    found = distorted(np.tile(COLOUR, (3, 2, 2, 1)), brightness=0.2)[2, 0, 0]
    np.testing.assert_array_equal(found, np.round(COLOUR * factor * 16) / 16)


def test_saturation_0_is_grey_and_contrast_0_is_flat():
    found = np.asarray(blend(FLOAT, grey(FLOAT), 0.0))
    np.testing.assert_array_equal(found, np.repeat(grey(FLOAT), 3, axis=-1))
    assert found.std() > 10
    flat = np.asarray(blend(FLOAT, mean_grey(grey(FLOAT)), 0.0))
    assert np.ptp(flat) == 0
    luma = np.asarray(PHOTO @ np.array([0.299, 0.587, 0.114]))
    assert flat.mean() == pytest.approx(luma.mean(), abs=0.3)


def test_factors_are_uniform_within_their_strength():
    images = np.tile(COLOUR, (600, 2, 2, 1))
    factors = distorted(images, brightness=0.2)[:, 0, 0, 0] / 200
    check_uniform(factors, 0.8, 1.2)
    factors = (distorted(images, saturation=0.25)[:, 0, 0, 0] - 124.2) / (200 - 124.2)
    check_uniform(factors, 0.75, 1.25)
    halves = np.tile(np.uint8([[[100]], [[140]]]), (600, 1, 2, 3))
    factors = np.ptp(distorted(halves, contrast=0.5), axis=(1, 2, 3)) / 40
    check_uniform(factors, 0.5, 1.5)
    hues = [colorsys.rgb_to_hsv(*pixel / 255)[0] for pixel in distorted(images, hue=0.05)[:, 0, 0]]
    check_uniform(np.array(hues), 20 / 360 - 0.05, 20 / 360 + 0.05)


def check_uniform(values, low, high):
    slack, width = 2 / FACTOR, high - low
    assert low - slack <= values.min() < low + 0.03 * width
    assert high - 0.03 * width < values.max() <= high + slack
    assert values.mean() == pytest.approx(
        (low + high) / 2, abs=4 * width / (12 * len(values)) ** 0.5
    )
    assert values.std() == pytest.approx(width / 12**0.5, rel=0.1)


def test_values_stay_within_0_and_255_and_reach_both():
    found = distorted(np.tile(PHOTO, (50, 1, 1, 1)), brightness=1.0, contrast=1.0, hue=0.5)
    assert found.dtype == np.float32
    assert found.min() == 0
    assert found.max() == 255


def test_each_image_has_an_order_of_its_own():
    """Brightness and contrast commute but for what is cut off at 255: here, much."""
    halves = np.tile(np.uint8([[[100]], [[140]]]), (200, 1, 2, 3))
    bright = distorted(halves, brightness=0.75)[:, 0, 0, 0] / 100
    contrast = np.ptp(distorted(halves, contrast=0.75), axis=(1, 2, 3)) / 40
    light = np.tile(np.uint8([[[100]], [[240]]]), (200, 1, 2, 3))
    found = distorted(light, brightness=0.75, contrast=0.75)

    def contrasted(x, factor):
        return blend(x, mean_grey(grey(x)), factor)

    @jax.jit
    @jax.vmap
    def both_ways(image, b, c):
        x = image.astype(jnp.float32)
        return contrasted(blend(x, 0.0, b), c), blend(contrasted(x, c), 0.0, b)

    one, other = both_ways(light, bright, contrast)
    is_one, is_other = (np.abs(way - found).max((1, 2, 3)) < 1 for way in (one, other))
    assert (is_one | is_other).all()
    assert (is_one & ~is_other).sum() > 40
    assert (is_other & ~is_one).sum() > 40
