import math

import numpy as np
import pytest
from PIL import Image

from gnet_jax.config import AugmentConfig, Preprocessing
from gnet_jax.data.decode import FILTERS, central_crop, pillow_crop, training_box

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
# Its pixels are their own coordinates, so a crop of it tells where it was cut.
MAP = Image.fromarray(
    np.stack([*np.meshgrid(np.arange(200), np.arange(100)), np.zeros((100, 200))], -1).astype(
        np.uint8
    )
)


def crops(picture, count, size=16, **options):
    preprocessing = Preprocessing(image_size=size)
    return np.stack(
        [
            pillow_crop(
                np.asarray(picture),
                np.random.default_rng(seed),
                preprocessing,
                AugmentConfig(**options),
            )
            for seed in range(count)
        ]
    )


def test_crops_have_the_papers_area_and_aspect():
    found = crops(MAP, 1000, size=50).astype(float)
    # from the first pixel's centre to the last one's it is 49 / 50 of a side
    width = np.ptp(found[..., 0], axis=(1, 2)) * 50 / 49
    height = np.ptp(found[..., 1], axis=(1, 2)) * 50 / 49
    area, aspect = width * height / (200 * 100), width / height
    assert 0.07 < area.min() < 0.11
    assert area.max() > 0.55  # a wider crop does not fit into a picture of 2:1
    assert 0.7 < aspect.min() < 0.8
    assert 1.28 < aspect.max() < 1.4
    assert np.log(aspect).mean() == pytest.approx(0, abs=0.05)


def test_a_box_that_does_not_fit_is_the_largest_central_rectangle():
    (crop,) = crops(MAP, 1, size=100, crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0))
    np.testing.assert_array_equal(crop, np.asarray(MAP)[:, 50:150])


def test_a_box_of_the_whole_picture_fits_at_the_first_draw():
    generator, other = np.random.default_rng(1), np.random.default_rng(1)
    whole = AugmentConfig(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0))
    assert training_box((100, 100), generator, Preprocessing(), whole) == (0, 0, 100, 100)
    other.uniform(size=4)  # area, aspect, left and top
    assert generator.random() == other.random()


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((200, 100), (100 - 200 / 3, 0, 100 + 200 / 3, 100)),  # too wide: 4 / 3
        ((100, 200), (0, 100 - 200 / 3, 100, 100 + 200 / 3)),  # too high: 3 / 4
    ],
)
def test_after_ten_draws_that_do_not_fit_the_aspect_is_clipped(size, box):
    generator, other = np.random.default_rng(1), np.random.default_rng(1)
    found = training_box(size, generator, Preprocessing(), AugmentConfig(crop_area=(1.0, 1.0)))
    assert found == pytest.approx(box)
    other.uniform(size=2 * 10)
    assert generator.random() == other.random()


def test_random_interpolation_draws_each_filter_for_a_quarter_of_the_crops():
    found = crops(NOISE, 400, size=8, crop_area=(0.08, 0.5), interpolation="random")
    bilinear = crops(NOISE, 400, size=8, crop_area=(0.08, 0.5))
    same = (found == bilinear).all((1, 2, 3))
    assert 70 < same.sum() < 130  # and the same rectangle, for it is drawn first
    drawn = dict.fromkeys(FILTERS, 0)
    for seed in range(400):
        box = box_of(np.random.default_rng(seed), NOISE.size)
        (kind,) = [
            kind
            for kind in FILTERS
            if np.array_equal(found[seed], NOISE.resize((8, 8), kind, box=box))
        ]
        drawn[kind] += 1
        order = ("BILINEAR", "BOX", "BICUBIC", "NEAREST")  # as in old runs
        assert kind.name == order[box_and_filter(seed)]
    assert min(drawn.values()) > 70


def box_and_filter(seed):
    """The number of the filter, which is drawn after the box."""
    generator = np.random.default_rng(seed)
    box_of(generator, NOISE.size)
    return int(generator.integers(4))


def box_of(generator, size):
    """The rectangle as it has always been drawn: the batches of old runs must not change."""
    width, height = size
    while True:
        area = width * height * generator.uniform(0.08, 0.5)
        ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = generator.uniform(0, width - w), generator.uniform(0, height - h)
            return left, top, left + w, top + h


def test_bilinear_draws_nothing_but_the_rectangle():
    generator, other = np.random.default_rng(5), np.random.default_rng(5)
    found = pillow_crop(
        np.asarray(NOISE),
        generator,
        Preprocessing(image_size=16),
        AugmentConfig(crop_area=(0.08, 0.5)),
    )
    box = box_of(other, NOISE.size)
    expected = NOISE.resize((16, 16), Image.Resampling.BILINEAR, box=box)
    np.testing.assert_array_equal(found, np.asarray(expected))
    assert generator.random() == other.random()


@pytest.mark.parametrize("resize", ["warp", "shorter_side"])
def test_fixed_scale_takes_squares_of_what_evaluation_crops_centrally(resize):
    p = Preprocessing(image_size=40, resize=resize, resize_to=50)
    width, height = (50, 50) if resize == "warp" else (100, 50)
    whole = np.asarray(MAP.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    corners = set()
    for seed in range(300):
        crop = pillow_crop(
            np.asarray(MAP), np.random.default_rng(seed), p, AugmentConfig(crop="fixed_scale")
        )
        left = round(crop[20, 20, 0] / 200 * width - 20.5)
        top = round(crop[20, 20, 1] / 100 * height - 20.5)
        expected = whole[top : top + 40, left : left + 40]
        # the border apart, where the resized whole still sees a pixel beyond
        np.testing.assert_allclose(crop[1:-1, 1:-1].astype(int), expected[1:-1, 1:-1], atol=1)
        corners.add((left, top))
    assert {x for x, _ in corners} >= {0, width - 40}
    assert {y for _, y in corners} == set(range(11))
    assert central_crop(MAP, p).shape == (40, 40, 3)
