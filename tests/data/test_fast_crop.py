import io
import itertools
import sys

import numpy as np
import pytest
from PIL import Image

from gnet_jax.config import AugmentConfig, Config, ConfigError, DataConfig, Preprocessing, check
from gnet_jax.data.batches import BadRecords, cropper, train_batches
from gnet_jax.data.decode import ImageError, pillow_crop, training_box
from gnet_jax.data.sources import DataError, Example

GENERATOR = np.random.default_rng(0)
SIZE = Preprocessing(image_size=48)


def picture(width: int, height: int, *, detail: int = 25) -> Image.Image:
    """Blurred noise: one random pixel for each `detail` pixels of a side."""
    coarse = GENERATOR.integers(0, 256, (height // detail, width // detail, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


PHOTO = picture(200, 150)
TURNED = Image.Exif()
TURNED[0x0112] = 6


@pytest.fixture
def fast_crop():
    pytest.importorskip("simplejpeg")
    pytest.importorskip("cv2")
    return cropper("fast")


def both(fast_crop, image, seed=0, p=SIZE, **options):
    a = AugmentConfig(**options)
    crops = (crop(image, np.random.default_rng(seed), p, a) for crop in (fast_crop, pillow_crop))
    return [crop.astype(int) for crop in crops]


@pytest.mark.parametrize("crop", ["random_area", "fixed_scale"])
def test_fast_crops_show_what_pillows_show(fast_crop, crop):
    image = encoded(PHOTO, quality=95)
    found, expected = zip(
        *(both(fast_crop, image, seed, crop=crop) for seed in range(40)), strict=True
    )
    difference = np.abs(np.array(found) - expected)
    assert difference.mean() < 1.5
    assert abs(np.mean(found) - np.mean(expected)) < 0.2
    other = np.abs(np.array(found) - np.roll(expected, 1, axis=0)).mean()
    assert other > 10 * difference.mean()


@pytest.mark.parametrize("size", [(192, 48), (48, 144), (144, 100), (240, 300)])
def test_shrinking_is_antialiased_as_pillows(fast_crop, size):
    """Of noise, what is left after shrinking is set by the filter; aliasing would keep it all."""
    noise = Image.fromarray(GENERATOR.integers(0, 256, (*size[::-1], 3), np.uint8))
    shape = size[0] / size[1]
    whole = {"crop_area": (1.0, 1.0), "crop_aspect": (shape, shape)}
    found, expected = both(fast_crop, encoded(noise, "PNG"), **whole)
    assert found.std() == pytest.approx(expected.std(), rel=0.15)


def test_a_large_photo_is_decoded_at_a_fraction_of_its_size(fast_crop, monkeypatch):
    import simplejpeg

    shapes = []
    decode_jpeg = simplejpeg.decode_jpeg

    def observed(*args, **options):
        pixels = decode_jpeg(*args, **options)
        shapes.append(pixels.shape)
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", observed)
    image = encoded(picture(800, 600, detail=40), quality=95)
    for area, aspect in ((1.0, 1.0), (0.04, 1.0), (0.16, 4.0), (0.16, 0.25)):
        box = {"crop_area": (area, area), "crop_aspect": (aspect, aspect)}
        found, expected = both(fast_crop, image, **box)
        assert np.abs(found - expected).mean() < 1.5
    (tall, wide, _), small, *long = shapes
    assert 48 <= tall <= 100  # the crop is as high as the picture
    assert wide == pytest.approx(tall * 4 / 3, abs=1)
    assert small == (225, 300, 3)  # three eighths: the crop of 139 pixels then has 52
    assert long == [(225, 300, 3)] * 2  # the shorter side of 138 then has 52


@pytest.mark.parametrize(
    "image",
    [
        encoded(PHOTO, "PNG"),
        encoded(PHOTO.convert("L"), quality=95),
        encoded(PHOTO.convert("CMYK"), quality=95),
        encoded(PHOTO, quality=95, progressive=True),
        encoded(PHOTO, quality=95, exif=TURNED),
        np.asarray(PHOTO),
        np.asarray(PHOTO.convert("L")),
    ],
    ids=["png", "grey", "cmyk", "progressive", "turned", "pixels", "grey pixels"],
)
def test_every_kind_of_image_is_read_by_pillows_rules(fast_crop, image):
    found, expected = both(fast_crop, image, seed=3)
    assert found.shape == (48, 48, 3)
    assert np.abs(found - expected).mean() < 2.5


def test_a_damaged_photo_is_refused(fast_crop):
    image = encoded(PHOTO, quality=95)
    for damaged in (b"", b"<html>", image[: len(image) // 2], image[:300]):
        with pytest.raises(ImageError):
            fast_crop(damaged, np.random.default_rng(0), SIZE, AugmentConfig())


def test_a_box_narrower_than_a_pixel_has_one(fast_crop):
    strip = encoded(Image.new("RGB", (1, 3000), (9, 99, 199)), "PNG")
    found, _ = both(fast_crop, strip, crop_area=(0.0001, 0.0001))
    np.testing.assert_array_equal(found, np.broadcast_to((9, 99, 199), found.shape))


class Photos:
    """Ten JPEGs; the fourth is cut short."""

    class_names = ("a", "b")
    split = "train"

    def __init__(self):
        self._images = [encoded(picture(80, 60), quality=90) for _ in range(10)]
        self._images[3] = self._images[3][:-400]

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return Example(self._images[index], index % 2)

    def describe(self, index):
        return f"photo {index}"

    def fingerprint(self):
        return "photos"


def test_fast_batches_are_a_function_of_seed_and_step_too(fast_crop):
    source = Photos()

    def images(start, threads):
        bad = BadRecords(source, 0.1)
        batches = train_batches(
            source,
            batch_size=4,
            preprocessing=SIZE,
            augmentation=AugmentConfig(),
            decoder="fast",
            seed=5,
            start_step=start,
            threads=threads,
            bad=bad,
        )
        taken = [batch["image"] for batch in itertools.islice(batches, 6 - start)]
        assert [record.index for record in bad] == [3]
        return taken

    whole = images(0, 1)
    for start, threads in ((0, 3), (2, 2)):
        np.testing.assert_array_equal(images(start, threads), whole[start:])


def test_the_box_is_drawn_as_pillows():
    a, draw = AugmentConfig(), np.random.default_rng
    box = training_box((200, 150), draw(4), SIZE, a)
    expected = PHOTO.resize((48, 48), Image.Resampling.BILINEAR, box=box)
    np.testing.assert_array_equal(pillow_crop(encoded(PHOTO, "PNG"), draw(4), SIZE, a), expected)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.delitem(sys.modules, "gnet_jax.data.fast_crop", raising=False)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DataError, match=r"cv2.*\[fast\]"):
        cropper("fast")


def test_random_interpolation_is_pillows_alone():
    config = Config(data=DataConfig(decoder="fast"), augment=AugmentConfig(interpolation="random"))
    with pytest.raises(ConfigError, match=r"data\.decoder is fast"):
        check(config)


def test_opencv_starts_no_threads_of_its_own(fast_crop):
    import cv2

    assert cv2.getNumThreads() == 1


def test_what_the_fast_decoder_finds_fault_with_is_left_to_pillow(fast_crop, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("Corrupt JPEG data: extraneous bytes before marker")

    monkeypatch.setattr("simplejpeg.decode_jpeg", refuse)
    found, expected = both(fast_crop, encoded(PHOTO, quality=95))
    assert np.abs(found - expected).mean() < 1.5
    with pytest.raises(ImageError):
        both(fast_crop, encoded(PHOTO)[:500])
