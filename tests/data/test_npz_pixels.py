"""Pixels of other types in .npz files: converted to uint8, or refused with code that works."""

import re

import numpy as np
import pytest

from gnet_jax.data.sources import DataError, npz, open_source

GENERATOR = np.random.default_rng(3)
PIXELS = GENERATOR.integers(0, 256, (6, 8, 9, 3), np.uint8)
PIXELS[0, 0, 0, :2] = 0, 255
LABELS = np.array([0, 1, 2, 2, 0, 1])
STANDARDISED = ((PIXELS / 255 - 0.45) / 0.225).astype(np.float32)


@pytest.fixture(autouse=True)
def fresh_lines():
    npz._print_once.cache_clear()


def save(folder, x, y=LABELS, **arrays) -> str:
    np.savez(folder / "set.npz", x_train=x, y_train=y, **arrays)
    return f"npz:{folder / 'set.npz'}"


def read(spec, split="train") -> np.ndarray:
    source = open_source(spec, split)
    return np.stack([source[i].image for i in range(len(source))])


STORED = {
    "float64 0..1": PIXELS / 255,
    "float32 0..1": (PIXELS / 255).astype(np.float32),
    "float16 0..1": (PIXELS / 255).astype(np.float16),
    "-1..1": PIXELS / 127.5 - 1,
    "float32 -1..1": (PIXELS / 127.5 - 1).astype(np.float32),
    "float 0..255": PIXELS.astype(np.float32),
    "float16 0..255": PIXELS.astype(np.float16),
    "int64": PIXELS.astype(np.int64),
    "big-endian int16": PIXELS.astype(">i2"),
    "uint16 0..65535": PIXELS.astype(np.uint16) * 257,
    "just outside of 0..1": PIXELS / 255 * 1.0000001 - 1e-8,
    "fortran order": np.asfortranarray(PIXELS / 255),
}


@pytest.mark.parametrize("kind", STORED)
def test_numbers_of_a_known_range_are_converted_and_a_line_says_how(kind, tmp_path, capsys):
    spec = save(tmp_path, STORED[kind])
    np.testing.assert_array_equal(read(spec), PIXELS)
    open_source(spec, "train")
    (line,) = capsys.readouterr().err.splitlines()
    assert "x_train" in line
    assert str(STORED[kind].dtype) in line


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_black_and_white_pictures_are_black_and_white(dtype, tmp_path, capsys):
    spec = save(tmp_path, (PIXELS > 99).astype(dtype))
    np.testing.assert_array_equal(read(spec), np.where(PIXELS > 99, 255, 0))
    assert "1 as white" in capsys.readouterr().err


def test_uint8_is_read_unchanged_and_without_output(tmp_path, capsys):
    for divisor in (16, 100):  # up to 15, and up to 2
        spec = save(tmp_path, PIXELS // divisor)
        np.testing.assert_array_equal(read(spec), PIXELS // divisor)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["float64 0..1", "-1..1", "float 0..255", "uint16 0..65535"])
def test_a_dark_test_split_is_converted_as_the_training_split(kind, tmp_path):
    train = STORED[kind]
    black, white = train.min(), train.max()
    dark = (black + (PIXELS[:2] / 255 * 0.2) * (white - black)).astype(train.dtype)
    spec = save(tmp_path, train, x_test=dark, y_test=LABELS[:2])
    found = read(spec, "test").astype(float)
    assert np.abs(found - PIXELS[:2] * 0.2).max() <= 1.0
    assert found.max() < 60


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (PIXELS.astype(np.float32), (PIXELS / 255).astype(np.float32)),
        (PIXELS / 255, PIXELS / 127.5 - 1),
        (PIXELS / 255, PIXELS.astype(float)),
        (PIXELS, PIXELS / 255),
        (PIXELS, (PIXELS / 255 * 0.3).astype(np.float32)),
        (PIXELS.astype(np.uint16) * 257, PIXELS.astype(np.int64)),
        (PIXELS / 255, np.zeros_like(PIXELS / 255)),
        (PIXELS // 16, PIXELS // 128),
        (PIXELS / 255, (PIXELS - 0.7) / 255),  # -0.7 would become 255
    ],
)
def test_a_test_split_of_another_range_or_type_is_refused(train, test, tmp_path):
    spec = save(tmp_path, train, x_test=test, y_test=LABELS)
    open_source(spec, "train")
    with pytest.raises(DataError, match="x_test"):
        open_source(spec, "test")


@pytest.mark.parametrize(
    ("train", "test"),
    [(PIXELS / 255, (PIXELS / 255).astype(np.float32)), (PIXELS, PIXELS.astype(np.int64))],
)
def test_a_test_split_of_the_same_range_may_have_another_precision(train, test, tmp_path):
    spec = save(tmp_path, train, x_test=test, y_test=LABELS)
    np.testing.assert_array_equal(read(spec, "test"), PIXELS)


def test_a_split_that_a_worker_process_opens_again_is_not_announced(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(npz.multiprocessing, "parent_process", lambda: "a process")
    open_source(save(tmp_path, PIXELS / 255), "train")
    assert capsys.readouterr().err == ""


def test_numbers_of_64_bits_are_rounded_in_64_bits(tmp_path):
    x = PIXELS / 255
    x[0, 0, 0, 2] = (1.5 - 1e-8) / 255  # 2 in 32 bits
    assert read(save(tmp_path, x))[0, 0, 0, 2] == 1


def test_a_test_split_alone_shows_its_own_range(tmp_path):
    np.savez(tmp_path / "test.npz", x=PIXELS / 255, y=LABELS)
    np.testing.assert_array_equal(read(f"npz:{tmp_path}", "test"), PIXELS)


def test_pixels_beside_a_training_split_of_encoded_images_show_their_own_range(tmp_path):
    jpeg, offsets = np.zeros(6, np.uint8), np.arange(7)  # damaged images, which is no matter here
    np.savez(tmp_path / "train.npz", jpeg=jpeg, offsets=offsets, y=LABELS)
    np.savez(tmp_path / "test.npz", x=PIXELS / 255, y=LABELS)
    np.testing.assert_array_equal(read(f"npz:{tmp_path}", "test"), PIXELS)


def advice(error: DataError) -> str:
    """The code in the message."""
    message = str(error)
    (code,) = re.findall(r"np\.\w+\(x, .*?astype\(np\.uint8\)", message)
    return code


@pytest.mark.parametrize(
    "x",
    [
        STANDARDISED,
        PIXELS.astype(np.int16) - 128,
        (PIXELS.astype(np.int16) - 128).astype(np.int8),
        PIXELS.astype(np.uint16) * 16,  # 12 bits
        PIXELS / 255 * 0.3,
        PIXELS / 255 - 0.5,
        PIXELS / 16,
        PIXELS / 255 * 100,
        PIXELS / 255 * 1.3 - 0.3,  # neither dark enough for -1 to 1
        PIXELS / 255 * 1.3 - 1,  # nor bright enough
    ],
)
def test_the_advice_for_an_unknown_range_works_when_followed(x, tmp_path):
    with pytest.raises(DataError, match="x_train") as caught:
        open_source(save(tmp_path, x), "train")
    assert str(x.dtype) in str(caught.value)
    saved = eval(advice(caught.value), {"np": np, "x": x})
    assert np.abs(read(save(tmp_path, saved)).astype(int) - PIXELS).max() <= 1


GREY = PIXELS[..., 0]
ALPHA = np.concatenate([PIXELS, PIXELS[..., :1]], axis=-1)


@pytest.mark.parametrize(
    ("x", "code", "expected"),
    [
        (PIXELS.transpose(0, 3, 1, 2), "x.transpose(0, 2, 3, 1)", PIXELS),
        (GREY[:, None], "x.transpose(0, 2, 3, 1)", GREY),
        (ALPHA, "x[..., :3]", PIXELS),
        (GREY.reshape(6, -1), "x.reshape(-1, H, W)", GREY),
        (
            PIXELS.transpose(0, 3, 1, 2).reshape(6, -1),
            "x.reshape(-1, 3, H, W).transpose(0, 2, 3, 1)",
            PIXELS,
        ),
    ],
)
def test_the_advice_for_another_shape_works_when_followed(x, code, expected, tmp_path):
    with pytest.raises(DataError, match=re.escape(str(x.shape))) as caught:
        open_source(save(tmp_path, x), "train")
    assert code in str(caught.value)
    saved = eval(code, {"x": x, "H": 8, "W": 9})
    np.testing.assert_array_equal(read(save(tmp_path, saved)), expected)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.0019, 0.51, (0, 1)),  # half a grey level is 0.5 / 255 = 0.00196
        (-0.002, 0.51, None),
        (0, 1.0019, (0, 1)),
        (0, 1.002, None),
        (0, 0.5, None),
        (-1.0039, 1.0039, (-1, 1)),
        (-1.004, 1, None),
        (-0.51, 0.51, (-1, 1)),
        (-0.5, 0.51, None),
        (-0.51, 0.5, None),
        (-0.4995, 255.4995, (0, 255)),
        (-0.5, 255, None),
        (0, 255.5, None),
        (0, 127.5, None),
        (0, 127.6, (0, 255)),
        (-128.4, 65663.4, (0, 65535)),
        (-128.5, 65535, None),
        (0, 65663.5, None),
    ],
)
def test_a_range_is_known_up_to_half_a_grey_level(low, high, expected):
    assert npz._range(low, high) == expected


@pytest.mark.parametrize(
    ("low", "high", "refused"),
    [(-0.4995, 9, False), (-0.5, 9, True), (0, 255.4995, False), (0, 255.5, True), (0, 0.9, True)],
)
def test_a_dark_split_may_leave_the_range_by_half_a_grey_level(low, high, refused):
    pixels = np.array([[[low, high]]])
    if refused:
        with pytest.raises(DataError, match="0 to 255"):
            npz._to_uint8(pixels, (0, 255), "x_test")
    else:
        assert npz._to_uint8(pixels, (0, 255), "x_test").tolist() == [[[0, int(high)]]]


def test_one_picture_and_arrays_of_no_picture_are_refused(tmp_path):
    others = PIXELS.astype(np.complex64), PIXELS.astype(str)
    for x in (PIXELS[0], ALPHA[0], LABELS, PIXELS[None], *others):
        with pytest.raises(DataError, match="x_train"):
            open_source(save(tmp_path, x), "train")


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, bool, np.int64])
@pytest.mark.parametrize("value", [0, 1])
def test_constant_pictures_are_refused(value, dtype, tmp_path):
    x = np.full_like(PIXELS, value, dtype)
    with pytest.raises(DataError, match=f"every pixel of x_train .* is {value};"):
        open_source(save(tmp_path, x), "train")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_named_and_the_advice_leaves_them_out(value, tmp_path):
    x = PIXELS / 255
    x[4, 2, 2, 0] = value
    with pytest.raises(DataError, match="1 of 6 images, first in image 4") as caught:
        open_source(save(tmp_path, x), "train")
    names = {"np": np, "x": x, "y": LABELS}
    exec(str(caught.value).partition("these images: ")[2].replace("; ", "\n"), names)
    np.testing.assert_array_equal(
        read(save(tmp_path, names["x"], names["y"])), np.delete(PIXELS, 4, 0)
    )
