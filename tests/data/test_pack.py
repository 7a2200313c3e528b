import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from gnet_jax.cli.main import main
from gnet_jax.data.decode import decode
from gnet_jax.data.prepare.pack import FILE_RECORDS, pack, scaled_down
from gnet_jax.data.prepare.shards import PrepareError
from gnet_jax.data.sources import open_source
from gnet_jax.data.sources.tfds import record_ends
from tests.data.ilsvrc_tars import encoded, picture


@pytest.fixture
def folder(tmp_path):
    """Large and small photos of two classes."""
    for split, count in (("train", 5), ("val", 2)):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                size = (90, 60) if i % 2 else (20, 30)
                file = tmp_path / "photos" / split / name / f"{i}.jpg"
                file.write_bytes(encoded(picture(10 * number + i, size)))
    return tmp_path / "photos"


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_a_copy_holds_the_same_pictures_none_of_them_large(
    folder, tmp_path, monkeypatch, capsys, file_format
):
    command = ["prepare", str(folder), "--resize", "40", "--out", str(tmp_path / "photos_40")]
    assert main([*command, "--format", file_format]) == 0
    told = capsys.readouterr().out
    assert "10 train, 4 validation images" in told
    assert f"TFDS_DATA_DIR={tmp_path} gnet train folder --data.source tfds:photos_40" in told
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for split in ("train", "val"):
        original, copy = open_source(str(folder), split), open_source("tfds:photos_40", split)
        assert copy.class_names == original.class_names == ("cat", "dog")
        assert len(copy) == len(original)
        for i in range(len(copy)):
            assert copy[i].label == original[i].label
            large, small = decode(original[i].image), decode(copy[i].image)
            if large.size == (90, 60):
                assert small.size == (60, 40)
                expected = large.resize((60, 40), Image.Resampling.BILINEAR)
                difference = np.abs(np.asarray(small, int) - np.asarray(expected, int))
                assert difference.mean() < 1.5
            else:
                assert copy[i].image == original[i].image
    assert main([*command, "--format", file_format]) == 0  # it is there
    command[3] = "41"
    assert main([*command, "--format", file_format]) == 2
    assert "photos_40" in capsys.readouterr().err


def test_pixels_become_pngs(tmp_path, monkeypatch):
    assert pack("digits", tmp_path / "digits_png", 32).images == {"train": 1437, "validation": 360}
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    original, copy = open_source("digits", "val"), open_source("tfds:digits_png", "val")
    for i in (0, 100, 359):
        assert copy[i].image.startswith(b"\x89PNG")
        np.testing.assert_array_equal(decode(copy[i].image), decode(original[i].image))


@pytest.mark.parametrize(("most", "files"), [(10, 1), (9, 2), (3, 4), (1, 10)])
def test_files_hold_at_most_a_number_of_images(tmp_path, folder, monkeypatch, most, files):
    monkeypatch.setattr("gnet_jax.data.prepare.pack.FILE_RECORDS", most)
    found = pack(str(folder), tmp_path / "copy", 40, file_format="tfrecord")
    assert found.images == {"train": 10, "validation": 4}
    names = sorted(path.name for path in found.folder.glob("copy-train*"))
    assert names == [f"copy-train.tfrecord-{i:05d}-of-{files:05d}" for i in range(files)]
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    original, copy = open_source(str(folder), "train"), open_source("tfds:copy", "train")
    assert [copy[i].label for i in range(10)] == [original[i].label for i in range(10)]
    sizes = [len(record_ends(path)) for path in sorted(found.folder.glob("copy-train*"))]
    assert sum(sizes) == 10
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (40, 40), (39, 90)])
def test_an_image_of_the_limit_keeps_its_bytes(size):
    image = encoded(picture(1, size))
    assert scaled_down(image, 40) == image
    assert scaled_down(image, min(size) - 1) != image


def test_a_copy_has_jpegs_of_quality_95_and_files_of_2048_images():
    pixels = np.asarray(picture(1, (80, 60)))
    expected = io.BytesIO()
    small = Image.fromarray(pixels).resize((40, 30), Image.Resampling.BILINEAR)
    small.save(expected, "JPEG", quality=95)
    assert scaled_down(pixels, 30) == expected.getvalue()
    assert FILE_RECORDS == 2048


def test_a_test_split_is_copied_under_its_own_name(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    labels = np.array([0, 1, 0, 1, 0, 1])
    splits = {"train": slice(0, 6), "val": slice(0, 3), "test": slice(2, 4)}
    for names in (("train", "test"), ("train", "val", "test")):
        arrays = {f"x_{name}": pixels[splits[name]] for name in names}
        arrays |= {f"y_{name}": labels[splits[name]] for name in names}
        np.savez(tmp_path / "a.npz", **arrays)
        images = pack(f"npz:{tmp_path / 'a.npz'}", tmp_path / f"copy{len(names)}", 8).images
        expected = {"train": 6, "validation": 3, "test": 2}
        if "val" not in names:
            del expected["validation"]
        assert images == expected
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert [len(open_source(f"tfds:copy{n}", "val")) for n in (2, 3)] == [2, 3]


def test_large_pixels_become_jpegs():
    with Image.open(io.BytesIO(scaled_down(np.asarray(picture(1, (80, 60))), 30))) as small:
        assert (small.format, small.size) == ("JPEG", (40, 30))


def test_a_damaged_image_is_named_and_nothing_looks_whole(folder, tmp_path):
    damaged = folder / "train" / "dog" / "3.jpg"
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(PrepareError, match=r"dog/3.jpg: a corrupt image"):
        pack(str(folder), tmp_path / "copy", 40)
    assert not (tmp_path / "copy" / "1.0.0").exists()
    damaged.write_bytes(encoded(picture(3)))
    (next((tmp_path / "copy").iterdir()) / "copy-train.array_record-00000-of-00001").touch()
    with pytest.raises(PrepareError, match="unfinished"):
        pack(str(folder), tmp_path / "copy", 40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resize", "40"], "--resize and --out"),
        (["--out", "a"], "--resize and --out"),
        (["--resize", "0", "--out", "a"], "--resize is 0"),
        (["--resize", "40", "--out", "My-set"], "'My-set'"),
        (["--resize", "40", "--out", "cifar10"], " cifar10"),
        (["--resize", "40", "--out", "a", "--data-dir", "b"], "--data-dir"),
        (["--resize", "40", "--out", "a", "--subset"], "--subset"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "digits", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gnet: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["cat ", " ", "\u3000cat"])
def test_a_class_that_the_format_would_store_under_another_name_is_refused(folder, tmp_path, name):
    (folder / "train" / "dog").rename(folder / "train" / name)
    (folder / "val" / "dog").rename(folder / "val" / name)
    with pytest.raises(PrepareError, match=re.escape(repr(name))):
        pack(str(folder), tmp_path / "copy", 40)
    assert not (tmp_path / "copy").exists()


def test_an_error_names_a_file_in_one_line(folder, tmp_path):
    (folder / "train" / "dog" / "a\nb.png").write_bytes(b"none")
    with pytest.raises(PrepareError, match=r"a\\nb\.png: not an image") as caught:
        pack(str(folder), tmp_path / "copy", 40)
    assert "\n" not in str(caught.value)


def test_the_metadata_tell_what_it_is_a_copy_of(tmp_path):
    folder = pack("digits", tmp_path / "digits_4", 4).folder
    info = json.loads((folder / "dataset_info.json").read_text())
    about, _, copied = info["description"].partition("; fingerprint ")
    assert about == "digits, shorter side at most 4 pixels"
    assert len(copied) >= 16


def test_a_finished_copy_of_what_has_changed_since_is_refused(folder, tmp_path):
    pack(str(folder), tmp_path / "copy", 40)
    with pytest.raises(PrepareError, match=r"copy \(array_record\)"):
        pack(str(folder), tmp_path / "copy", 40, file_format="tfrecord")
    (folder / "train" / "dog" / "9.jpg").write_bytes(encoded(picture(99)))
    with pytest.raises(PrepareError, match="already has a copy"):
        pack(str(folder), tmp_path / "copy", 40)


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
@pytest.mark.parametrize("name", ["x[1]", "a*?\\#% '\"\n;", "\udcff"])
def test_a_copy_below_any_name_is_written_and_found(
    folder, tmp_path, monkeypatch, name, file_format
):
    odd = tmp_path / name
    source = folder.rename(tmp_path / f"photos {name}")
    command = ["prepare", str(source), "--resize", "40", "--out", str(odd / "copy")]
    for _ in ("it is written", "it is found"):
        assert main([*command, "--format", file_format]) == 0
    monkeypatch.setenv("TFDS_DATA_DIR", str(odd))
    assert len(open_source("tfds:copy", "train")) == 10
    assert sorted(path.name for path in odd.iterdir()) == ["copy"]
