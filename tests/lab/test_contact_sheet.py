import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

from gnet_jax.cli.main import main
from gnet_jax.config import AugmentConfig, Preprocessing
from gnet_jax.data.augment import preprocess
from gnet_jax.data.batches import eval_batches
from gnet_jax.data.sources import DataError, open_source
from gnet_jax.lab.look import contact_sheet
from gnet_jax.lab.look.contact_sheet import (
    describe_augmentation,
    draw,
    evaluation_images,
    to_pixels,
    training_images,
)
from gnet_jax.training.program import augmentation, training_batches
from gnet_jax.training.step import step_keys
from tests.tiny import tiny_config

MIXED = AugmentConfig(crop_area=(0.4, 1.0), brightness=0.4, erase=0.4, mixup=0.8)


@pytest.fixture(scope="module")
def source():
    return open_source("digits", "train")


@pytest.fixture
def config(tmp_path):
    return tiny_config(tmp_path, augment=MIXED)


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_pixels_come_back_from_the_networks_inputs(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    p = Preprocessing(channels=channels, mean=(123.7, 11.0, 70.5), std=(58.4, 57.1, 3.0))
    x = np.asarray(preprocess(jax.numpy.asarray(pixels), preprocessing=p))
    np.testing.assert_array_equal(to_pixels(x, p), pixels)


def test_the_images_are_those_that_a_training_step_makes_of_the_whole_batch(config, source):
    step = 50
    batch = next(training_batches(config, source, start_step=step))
    key, _ = step_keys(jax.random.PRNGKey(config.seed), step)
    x, targets = jax.jit(augmentation(config, 10))(batch["image"], batch["label"], key)
    expected = to_pixels(np.asarray(x), config.data.preprocessing)
    for count in (5, 40):  # more than there are: all of them
        seen = training_images(config, source, step, count)
        np.testing.assert_array_equal(seen.images, expected[:count])
    mixed = 0
    for caption, target in zip(seen.captions, np.asarray(targets), strict=True):
        own, partner = np.argsort(-target, kind="stable")[:2]
        if target[partner] == 0:  # both images of the pair show the same digit
            assert caption == [str(own)]
        else:
            mixed += 1
            assert caption == [f"{target[own]:.0%} {own}", f"{target[partner]:.0%} {partner}"]
    assert mixed > 10


def test_the_untouched_images_are_the_same_examples(config, source):
    plain = dataclasses.replace(config, augment=AugmentConfig(flip=False))
    seen = training_images(plain, source, 3, 8)
    assert len(seen.untouched) == 8
    whole = {}
    for index in range(len(source)):
        enlarged = Image.fromarray(source[index].image).resize((16, 16), Image.Resampling.BILINEAR)
        whole[np.asarray(enlarged.convert("RGB")).tobytes()] = source[index].label
    for image, caption in zip(seen.untouched, seen.captions, strict=True):
        assert caption == [str(whole[image.tobytes()])]


def test_a_damaged_image_does_not_end_it(config, source):
    damaged = 3

    class Damaged(type(source)):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return example if index != damaged else example._replace(image=b"no image")

    broken = Damaged("train")
    assert len(training_images(config, broken, 0, 32).images) == 32
    evaluated = evaluation_images(config, broken, damaged // 200, 200)
    assert len(evaluated.images) == 199
    single = dataclasses.replace(config, eval_batch_size=1)
    with pytest.raises(DataError, match=f"batch {damaged} are corrupt; choose another --step"):
        evaluation_images(single, broken, damaged, 1)


def test_an_evaluation_shows_its_own_batch_without_padding(config):
    val = open_source("digits", "val")
    *_, last = eval_batches(val, batch_size=200, preprocessing=config.data.preprocessing)
    seen = evaluation_images(config, val, 1, 999)
    np.testing.assert_array_equal(seen.images, last["image"][:160])
    assert seen.untouched is None
    with pytest.raises(DataError, match=r"--step is 2, but .*\b1$"):
        evaluation_images(config, val, 2, 8)


def test_the_sheet_shows_every_pixel_enlarged(config, source):
    seen = training_images(config, source, 0, 6)
    sheet = np.asarray(draw(seen, 4, "a title", "a subtitle"))
    for image in (*seen.images, *seen.untouched):
        tile = image.repeat(8, axis=0).repeat(8, axis=1)
        assert any(
            np.array_equal(sheet[y : y + 128, x : x + 128], tile)
            for y in range(sheet.shape[0] - 127)
            for x in (28 + 138 * column for column in range(4))
        )


def test_the_title_tells_the_augmentation():
    assert describe_augmentation(AugmentConfig()) == (
        "crops of 8% to 100%, aspect 0.75 to 1.33, bilinear interpolation, mirrored"
    )
    words = describe_augmentation(
        dataclasses.replace(MIXED, hue=0.1, flip=False, shift=2, interpolation="random")
    )
    assert words.endswith("brightness ±40%, hue ±10%, 40% partly erased, mixup Beta(0.8, 0.8)")
    early = describe_augmentation(AugmentConfig(early_size=24, early_share=0.6))
    assert early.endswith("mirrored, reduced to 24x24 in the first 60% of the steps (not drawn)")
    assert "random interpolation, not mirrored, shifted by up to 2 pixels, " in words


def test_long_names_are_cut_off_within_their_tile():
    seen = contact_sheet.Seen(np.zeros((1, 16, 16, 3), np.uint8), [["long name " * 20]])
    sheet = np.asarray(draw(seen, 1, "t", "s"))
    rows = sheet.shape[0] - 24
    assert (sheet[rows - 24 :] < 255).any()
    assert (sheet[rows - 24 :, 28 + 130 :] == 255).all()


def test_show_data_writes_the_sheet_and_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sizes = ["--data.image-size", "16", "--data.resize-to", "16", "--data.source", "digits"]
    command = ["show-data", "finetune_folder", *sizes, "--rows", "2", "--columns", "3"]
    assert main([*command, "--augment.mixup", "0.2", "--out", "sheet.png"]) == 0
    assert "drew 6 images into sheet.png" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    with Image.open("sheet.png") as sheet:
        first = sheet.copy()
    assert main([*command, "--step", "1", "--out", "sheet.png"]) == 0
    with Image.open("sheet.png") as sheet:
        assert sheet.tobytes() != first.tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "unknown recipe nowhere"),
        (["--rows", "0"], "--rows is 0; it must be at least 1"),
        (["--step", "-1"], "--step is -1; it must be at least 0"),
        (["--out", "/no/sheet.png"], "folder /no not found"),
        (["--out", "sheet.txt"], "cannot write sheet.txt"),
        (["--data.source", "nothing"], "data source 'nothing'"),
        (["--split", "val", "--step", "3"], "--step is 3"),
        (["--augment.hue", "0.7"], "augment.hue is 0.7"),
        (["--augment.mixup", "1", "--batch-size", "25"], "augment.mixup=1 "),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["show-data", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gnet: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["0.png", "sheet.png"])
def test_no_sheet_is_written_into_the_data(name, tmp_path, capsys):
    for split in ("train", "val"):
        for label in "ab":
            (tmp_path / split / label).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(tmp_path / split / label / "0.png")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    out = tmp_path / "train" / "a" / name
    assert main(["show-data", "--data.source", f"folder:{tmp_path}", "--out", str(out)]) == 2
    assert f"{out} is an input or inside one" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == files


def test_a_folder_with_the_name_of_a_built_in_set_takes_a_sheet_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert main(["show-data", "digits", "--rows", "1", "--out", "digits/sheet.png"]) == 0
    assert (tmp_path / "digits" / "sheet.png").is_file()


def test_show_data_takes_the_fields_that_train_py_takes(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["show-data", "--augment.mixpu", "1"])
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert "--augment.mixup" in output.out + output.err


def test_one_line_of_title_and_one_of_subtitle_are_above_the_images():
    seen = contact_sheet.Seen(np.zeros((1, 16, 16, 3), np.uint8), [["a"]])
    sheet = np.asarray(draw(seen, 1, "", ""))
    y, x = np.nonzero((sheet[:, :150] == 0).all(axis=-1))
    assert (y.min(), x.min()) == (28 + 32 + 14, 28)


def test_images_are_placed_row_by_row_and_inside_the_margins():
    colours = np.arange(1, 6, dtype=np.uint8) * 40
    images = np.stack([np.full((16, 16, 3), (c, 7, 9), np.uint8) for c in colours])
    seen = contact_sheet.Seen(images, [["a"]] * 5)
    sheet = np.asarray(draw(seen, 2, "title", "a word " * 60))
    assert sheet.shape[1] == 640  # no narrower, so that the title fits
    corners = []
    for colour in colours:
        y, x = np.nonzero((sheet == (colour, 7, 9)).all(axis=-1))
        assert (len(x), np.ptp(x), np.ptp(y)) == (128 * 128, 127, 127)
        corners.append((int(x.min()), int(y.min())))
    top, row = corners[0][1], corners[2][1] - corners[0][1]
    assert corners == [(28 + 138 * (i % 2), top + row * (i // 2)) for i in range(5)]
    assert row > 128 + 18  # a caption fits between two rows
    assert sheet.shape[0] == top + 3 * row + 28 - 24
    ink = (sheet[:top] < 200).any(axis=-1)
    assert np.nonzero(ink.any(axis=0))[0].max() < 640 - 28  # the subtitle is wrapped
    assert not ink[-8:].any()
    rows = ink[:, 28:].any(axis=1).astype(int)
    assert (np.diff(rows) == 1).sum() >= 4  # the title and three lines


@pytest.mark.parametrize(
    ("size", "count", "hosts"), [(32, 5, 4), (32, 9, 2), (36, 9, 3), (32, 16, 2), (32, 40, 1)]
)
def test_no_more_is_read_than_an_even_share_with_the_images(
    config, source, monkeypatch, size, count, hosts
):
    def batches(config, source, *, start_step, hosts, bad):
        raise EOFError(start_step, hosts, bad.source)

    bad = type("", (), {"source": source})
    monkeypatch.setattr(contact_sheet, "training_batches", batches)
    monkeypatch.setattr(contact_sheet, "BadRecords", lambda *_: bad)
    with pytest.raises(EOFError) as raised:
        training_images(dataclasses.replace(config, batch_size=size), source, 7, count)
    assert raised.value.args == (7, hosts, source)


def test_the_untouched_image_is_the_central_square(config, source, monkeypatch):
    def plain(*_):
        return lambda image, label, key: (image, jax.nn.one_hot(label, 10))

    monkeypatch.setattr(contact_sheet, "augmentation", plain)

    class Wide(type(source)):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            edge = np.zeros_like(example.image)
            return example._replace(image=np.concatenate([edge, example.image, edge], axis=1))

    seen = [training_images(config, each, 0, 8).untouched for each in (source, Wide("train"))]
    np.testing.assert_array_equal(*seen)


def test_the_last_batch_of_an_evaluation_can_hold_one_image(config):
    val = open_source("digits", "val")
    config = dataclasses.replace(config, eval_batch_size=len(val) - 1)
    assert len(evaluation_images(config, val, 1, 9).images) == 1
    with pytest.raises(DataError, match="--step is 1"):
        evaluation_images(dataclasses.replace(config, eval_batch_size=len(val)), val, 1, 9)


def test_pixels_out_of_range_are_cut_off():
    x = np.array([[-9.0, 0.0, 9.0]])
    assert to_pixels(x, Preprocessing(mean=(0, 0, 0), std=(99, 99, 99))).tolist() == [[0, 0, 255]]


@pytest.mark.parametrize(("split", "word"), [("train", "training step 3"), ("val", "batch 3")])
def test_each_split_is_drawn_with_its_own_words(config, source, monkeypatch, split, word):
    asked, drawn, saved = [], [], []
    seen = contact_sheet.Seen(np.zeros((5, 16, 16, 3), np.uint8), [["a"]] * 5)
    for name in ("training_images", "evaluation_images"):
        note = partial(lambda name, *given: asked.append((name, given)) or seen, name)
        monkeypatch.setattr(contact_sheet, name, note)
    monkeypatch.setattr(contact_sheet, "draw", lambda *a: drawn.append(a) or "sheet")
    monkeypatch.setattr(contact_sheet, "save", lambda *a: saved.append(a))
    options = {"name": "tiny", "split": split, "step": 3, "rows": 2, "columns": 4}
    assert contact_sheet.draw_sheet(config, source, "out.png", **options) == 5
    function = "training_images" if split == "train" else "evaluation_images"
    assert asked == [(function, (config, source, 3, 8))]
    ((shown, columns, title, subtitle),) = drawn
    assert (shown, columns, saved) == (seen, 4, [("sheet", "out.png")])
    assert title.startswith("tiny: ")
    assert word in title
    for part in (split, "1,437 images", "10 classes", "16x16"):
        assert part in subtitle
    assert ("original images" in subtitle) == (split == "train")


def test_a_sheet_is_as_wide_as_its_columns():
    seen = contact_sheet.Seen(np.zeros((7, 16, 16, 3), np.uint8), [["a"]] * 7)
    assert draw(seen, 6, "t", "s").width == 28 + 6 * 128 + 5 * 10 + 28
    assert draw(seen, 9, "t", "s").width == 28 + 7 * 128 + 6 * 10 + 28
