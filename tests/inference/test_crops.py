"""The paper's crops, box by box."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from gnet_jax.config import Preprocessing
from gnet_jax.data.decode import ImageError, central_crop
from gnet_jax.inference.evaluate import Crop, crop_plan, extract

PAPER = Preprocessing()  # 224 from a shorter side of 256


def corners_centre_and_whole(left: int, top: int, side: int) -> list[tuple]:
    """What the paper takes of a square: (box, resize) of the centre, four corners, the whole."""
    middle, far = {256: (16, 32), 288: (32, 64), 320: (48, 96), 352: (64, 128)}[side]
    places = [(middle, middle), (0, 0), (far, 0), (0, far), (far, far)]
    small = [((left + x, top + y, left + x + 224, top + y + 224), None) for x, y in places]
    return [*small, ((left, top, left + side, top + side), 224)]


# A photo of 640 x 426 at the four scales, and where its three squares begin. 640 * 256 / 426 is
# 384.6, then 432.7, 480.8 and 528.8; 385 - 256 = 129 is the last square's place, and half of it,
# rounded down, the central one's.
LANDSCAPE = {
    (385, 256): [0, 64, 129],
    (433, 288): [0, 72, 145],
    (481, 320): [0, 80, 161],
    (529, 352): [0, 88, 177],
}
# One of 300 x 650: 650 * 256 / 300 = 554.67, 624, 693.33, 762.67, and 555 - 256 = 299 and so on.
PORTRAIT = {
    (256, 555): [0, 149, 299],
    (288, 624): [0, 168, 336],
    (320, 693): [0, 186, 373],
    (352, 763): [0, 205, 411],
}


def test_144_crops_of_a_landscape_photo_are_the_papers():
    plan = crop_plan(640, 426, 144, PAPER)
    expected = [
        Crop(scale, box, resize, mirror)
        for scale, starts in LANDSCAPE.items()
        for start in starts
        for box, resize in corners_centre_and_whole(start, 0, scale[1])
        for mirror in (False, True)
    ]
    assert plan == expected
    assert len(set(plan)) == 144
    assert len({(c.scale, c.box, c.resize) for c in plan}) == 72


def test_144_crops_of_a_portrait_photo_are_the_papers():
    plan = crop_plan(300, 650, 144, PAPER)
    expected = [
        Crop(scale, box, resize, mirror)
        for scale, starts in PORTRAIT.items()
        for start in starts
        for box, resize in corners_centre_and_whole(0, start, scale[0])
        for mirror in (False, True)
    ]
    assert plan == expected
    assert len(set(plan)) == 144
    assert len({(c.scale, c.box, c.resize) for c in plan}) == 72


def test_144_crops_lie_inside_the_photo_and_are_6_of_each_square_at_each_scale():
    for width, height in ((500, 400), (300, 650), (333, 1000), (224, 225)):
        plan = crop_plan(width, height, 144, PAPER)
        for crop in plan:
            left, top, right, bottom = crop.box
            assert 0 <= left < right <= crop.scale[0]
            assert 0 <= top < bottom <= crop.scale[1]
            assert right - left == bottom - top
        assert Counter(min(crop.scale) for crop in plan) == dict.fromkeys((256, 288, 320, 352), 36)
        assert sum(crop.mirror for crop in plan) == 72
        assert sum(crop.resize == 224 for crop in plan) == 24


def test_a_square_photo_has_144_crops_of_which_the_three_squares_coincide():
    plan = crop_plan(400, 400, 144, PAPER)
    assert len(plan) == 144
    assert Counter(plan) == dict.fromkeys(set(plan), 3)


def test_in_a_photo_of_5_to_4_some_corners_of_neighbouring_squares_coincide():
    """At 320 x 256 the squares are 32 apart, as are the corners of each: the paper's arithmetic."""
    assert len(set(crop_plan(500, 400, 144, PAPER))) == 136


def test_10_crops_are_the_centre_the_corners_and_their_mirrors():
    boxes = [
        (48, 16, 272, 240),  # of 320 x 256
        (0, 0, 224, 224),
        (96, 0, 320, 224),
        (0, 32, 224, 256),
        (96, 32, 320, 256),
    ]
    expected = [Crop((320, 256), box, None, mirror) for box in boxes for mirror in (False, True)]
    assert crop_plan(500, 400, 10, PAPER) == expected


def test_10_crops_of_a_warped_photo_are_those_of_the_square():
    plan = crop_plan(500, 400, 10, Preprocessing(resize="warp"))
    assert {crop.scale for crop in plan} == {(256, 256)}
    assert [crop.box[:2] for crop in plan[::2]] == [(16, 16), (0, 0), (32, 0), (0, 32), (32, 32)]


@pytest.mark.parametrize("resize", ["shorter_side", "warp"])
@pytest.mark.parametrize(("width", "height"), [(60, 45), (45, 61), (50, 50), (301, 97)])
def test_one_crop_has_the_pixels_of_the_central_crop(make_photo, width, height, resize):
    p = Preprocessing(image_size=32, resize_to=37, resize=resize)
    picture = make_photo(0, width, height)
    one, ten = crop_plan(width, height, 1, p), crop_plan(width, height, 10, p)
    assert len(one) == 1
    for plan in (one, ten):  # of ten it is the first
        np.testing.assert_array_equal(extract(picture, plan)[0], central_crop(picture, p))


def test_extracted_crops_are_where_their_boxes_say():
    x, y = np.meshgrid(np.arange(160), np.arange(128))  # the scale of 128 leaves it as it is
    picture = Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))
    plan = crop_plan(160, 128, 144, Preprocessing(image_size=112, resize_to=128))
    crops = extract(picture, plan)
    assert crops.shape == (144, 112, 112, 3)
    assert crops.dtype == np.uint8
    for crop, pixels in zip(plan, crops, strict=True):
        if crop.scale != (160, 128):
            continue
        left, top, right, bottom = crop.box
        shown = pixels[:, ::-1] if crop.mirror else pixels
        if crop.resize is None:
            assert shown[0, 0].tolist() == [left, top, 0]
            assert shown[-1, -1].tolist() == [right - 1, bottom - 1, 0]
        else:  # a square of 128 made smaller: its centre stays its centre
            middle = [(left + right) / 2, (top + bottom) / 2, 0]
            np.testing.assert_allclose(shown[55:57, 55:57].mean((0, 1)), middle, atol=1)


@pytest.mark.parametrize(("width", "height"), [(64, 43), (43, 64)])
def test_all_144_views_of_a_photo_differ(make_photo, width, height):
    plan = crop_plan(width, height, 144, Preprocessing(image_size=64, resize_to=73))
    views = extract(make_photo(3, width, height), plan)
    assert len({view.tobytes() for view in views}) == 144


def test_other_image_sizes_scale_the_whole_protocol():
    plan = crop_plan(500, 400, 144, Preprocessing(image_size=112, resize_to=128))
    assert {min(crop.scale) for crop in plan} == {128, 144, 160, 176}


def test_what_cannot_be_cropped_is_refused():
    with pytest.raises(ImageError, match="50 million"):
        crop_plan(1, 50_000, 144, PAPER)
