"""Every fault that a data set may have is found and named."""

import io
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from gnet_jax.cli.main import main
from gnet_jax.data import DataError, open_source
from gnet_jax.data.check.scan import inspect, scan
from gnet_jax.data.sources import Example

SEEDS = iter(range(10**6))


def photo(width=60, height=50, mode="RGB"):
    """Noise, another one at each call, so that no two files are the same."""
    pixels = np.random.default_rng(next(SEEDS)).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(picture, kind="JPEG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """A good folder: 3 + 2 photos of each of two classes."""
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                (tmp_path / split / name / f"{i}.jpg").write_bytes(encoded(photo()))
    return tmp_path


def check(folder, *options):
    """Exit code of `gnet check-data` on a folder."""
    return main(["check-data", f"folder:{folder}", "--threads", "2", *options])


def test_good_data_have_nothing_to_mend(folder, capsys):
    assert check(folder) == 0
    output = capsys.readouterr()
    assert "nothing has to be mended" in output.out
    assert "there is no split test" in output.out
    assert "largest class / smallest: train 1.00, val 1.00" in output.out
    assert output.err == ""  # no terminal, no bar
    assert check(folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["must_be_mended"] == found["duplicates"] == []
    assert found["missing"] == ["test"]
    train, val = found["splits"]
    assert (train["images"], train["class_counts"], val["class_counts"]) == (6, [3, 3], [2, 2])
    assert (train["width"], train["height"]) == ([60, 60, 60], [50, 50, 50])


def test_damaged_files_are_named_with_the_reason(folder, capsys):
    whole = encoded(photo())
    faults = {
        "cut.jpg": whole[: len(whole) // 2],
        "empty.jpg": b"",
        "page.jpg": b"<!doctype html><h1>404</h1>",
    }
    for name, data in faults.items():
        (folder / "train" / "cat" / name).write_bytes(data)
    assert check(folder) == 1
    output = capsys.readouterr().out
    assert "damaged in train: 3" in output
    assert "cat/cut.jpg: a damaged image: image file is truncated" in output
    assert "cat/empty.jpg: not an image: it is empty" in output
    assert "cat/page.jpg: not an image: its 27 bytes are none of JPEG" in output
    assert "to be mended: 3 damaged images in train" in output
    found = scan(str(folder)).splits[0]
    assert [record.name.rsplit("/", 1)[1] for record in found.bad] == list(faults)
    assert found.images == 9


ODD = {
    "a format other than its suffix says": ("png.jpg", encoded(photo(), "PNG")),
    "CMYK": ("cmyk.jpg", encoded(photo(mode="CMYK"))),
    "grey": ("grey.jpg", encoded(photo(mode="L"))),
    "palette": ("palette.png", encoded(photo().quantize(16), "PNG")),
    "16 bit": (
        "wide.png",
        encoded(Image.fromarray(np.arange(3000, dtype=np.uint16).reshape(50, 60)), "PNG"),
    ),
    "transparent": ("clear.png", encoded(photo(mode="RGBA"), "PNG")),
    "several pictures": (
        "moving.gif",
        encoded(photo().quantize(), "GIF", save_all=True, append_images=[photo().quantize()]),
    ),
    "a side below 32 pixels": ("small.jpg", encoded(photo(40, 31))),
    "longer than 4 : 1": ("long.jpg", encoded(photo(201, 50))),
}


@pytest.mark.parametrize("kind", [*ODD, "turned by EXIF"])
def test_odd_images_are_listed_and_are_no_fault(kind, folder, capsys):
    if kind == "turned by EXIF":
        exif = Image.Exif()
        exif[0x0112] = 6
        name, data = "turned.jpg", encoded(photo(), exif=exif)
    else:
        name, data = ODD[kind]
    (folder / "val" / "dog" / name).write_bytes(data)
    found = scan(str(folder))
    assert list(found.splits[0].odd) == []
    listed = found.splits[1].odd
    assert name in listed[kind][0]
    allowed = {"grey"} if kind == "16 bit" else {"palette"} if kind == "several pictures" else set()
    assert set(listed) <= {kind} | allowed
    assert found.must_be_mended == []
    assert check(folder) == 0
    assert f"{kind}, in val: 1" in capsys.readouterr().out


def test_colour_of_16_bits_is_told(folder):
    from tests.data.test_decode import png_of

    rows = b"".join(b"\0" + bytes(6 * 40) for _ in range(40))
    (folder / "train" / "cat" / "wide.png").write_bytes(png_of(40, 40, 16, rows))
    assert "wide.png" in scan(str(folder)).splits[0].odd["16 bit"][0]


def test_an_image_turned_by_exif_has_its_upright_size(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "val" / "dog" / "turned.jpg").write_bytes(encoded(photo(90, 80), exif=exif))
    found = scan(str(folder)).splits[1]
    assert (found.width, found.height) == ((60, 60, 80), (50, 50, 90))


def test_of_many_duplicates_the_first_are_named(folder, capsys):
    data = encoded(photo())
    for number in range(30):
        (folder / "train" / "dog" / f"again{number}.jpg").write_bytes(data)
    check(folder)
    output = capsys.readouterr().out
    assert output.count("again") == 10
    assert "and 20 more" in output


def test_duplicates_within_a_split_are_listed_and_between_splits_are_to_be_mended(folder, capsys):
    train, val = folder / "train", folder / "val"
    (train / "dog" / "again.jpg").write_bytes((train / "dog" / "0.jpg").read_bytes())
    assert check(folder) == 0
    output = capsys.readouterr().out
    assert "the same bytes twice in one split: 1" in output
    assert "dog/0.jpg = " in output
    assert "dog/again.jpg" in output
    (train / "dog" / "copy.jpg").write_bytes((val / "cat" / "1.jpg").read_bytes())
    assert check(folder) == 1
    output = capsys.readouterr().out
    assert "to be mended: 1 image in more than one split; 1 image under more than one" in output
    assert "the same bytes under different labels: 1" in output
    leak = next(group for group in scan(str(folder)).duplicates if group.leak)
    assert (leak.splits, leak.labels, leak.contradict) == (["train", "val"], ["dog", "cat"], True)
    for name in ("a.jpg", "b.jpg"):  # damaged in the same way, and no duplicates for it
        (train / "cat" / name).write_bytes(b"")
    assert len(scan(str(folder)).duplicates) == 2


def test_an_image_under_two_labels_of_a_split_is_to_be_mended(folder, capsys):
    train = folder / "train"
    (train / "dog" / "again.jpg").write_bytes((train / "cat" / "2.jpg").read_bytes())
    assert check(folder, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    (group,) = found["duplicates"]
    assert (group["leak"], group["contradict"]) == (False, True)
    assert group["labels"] == ["cat", "dog"]
    assert len(found["must_be_mended"]) == 1


def test_classes_that_train_lacks_are_named(folder, capsys):
    (folder / "val" / "dog").rename(folder / "val" / "owl")
    assert check(folder, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["must_be_mended"] == ["1 class in val that train lacks: owl"]


def test_a_split_that_lacks_a_class_of_train_need_not_be_mended(folder, capsys):
    shutil.rmtree(folder / "val" / "cat")
    assert check(folder, "--json") == 0
    val = json.loads(capsys.readouterr().out)["splits"][1]
    assert dict(zip(val["class_names"], val["class_counts"], strict=True)) == {"cat": 0, "dog": 2}


def test_the_table_of_many_classes_shows_the_smallest_and_the_largest(tmp_path, capsys):
    for number in range(35):
        (tmp_path / "train" / f"c{number:02}").mkdir(parents=True)
        for i in range(1 if number == 20 else 3 if number == 7 else 2):
            (tmp_path / "train" / f"c{number:02}" / f"{i}.png").write_bytes(encoded(photo(), "PNG"))
    assert check(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.startswith("│ ")][1:]
    assert rows[0][1] == "c20"
    assert rows[15][1:3] == ["...", "5"]
    assert rows[-1][1] == "c07"
    assert len(rows) == 31


class Labelled:
    """Pixels with any labels."""

    split = "train"
    class_names = ("a", "b", "c")

    def __init__(self, labels):
        self.left_out = {}
        self._labels = labels

    def __len__(self):
        return len(self._labels)

    def __getitem__(self, index):
        return Example(np.full((40, 40, 3), index, np.uint8), self._labels[index])

    def describe(self, index):
        return f"example {index}"

    def fingerprint(self):
        return "labelled"


def test_labels_out_of_range_and_empty_classes_are_to_be_mended(monkeypatch):
    source = Labelled([0, 1, 3, -1])
    monkeypatch.setattr("gnet_jax.data.check.scan.open_splits", lambda _: ([source], []))
    found = scan("anything", threads=1)
    assert found.splits[0].labels_out_of_range == ["example 2: 3", "example 3: -1"]
    assert found.splits[0].class_counts == [1, 1, 0]
    assert found.must_be_mended == [
        "2 labels out of range (0 to 2) in train",
        "1 class without an image in train: c",
    ]


def test_a_file_that_cannot_be_read_is_damaged():
    class Gone(Labelled):
        def __getitem__(self, index):
            raise PermissionError(13, "Permission denied")

    assert inspect(Gone([0]), 0).bad == "cannot be read: Permission denied"


def test_digits_and_arrays_are_scanned_and_a_split_is_read_once(tmp_path, capsys):
    assert main(["check-data", "digits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [split["images"] for split in found["splits"]] == [1437, 360]
    assert len(found["splits"][0]["odd"]["grey"]) == 1437
    pixels = np.random.default_rng(0).integers(0, 256, (6, 40, 50, 3), np.uint8)
    arrays = {"x_train": pixels, "y_train": [0, 1] * 3, "x_test": pixels[4:] // 2, "y_test": [0, 1]}
    np.savez(tmp_path / "a.npz", **arrays)
    assert main(["check-data", f"npz:{tmp_path / 'a.npz'}", "--json"]) == 0  # val is test
    found = json.loads(capsys.readouterr().out)
    assert [split["split"] for split in found["splits"]] == ["train", "test"]
    assert found["missing"] == []
    np.savez(tmp_path / "a.npz", **arrays | {"x_test": pixels[4:]})
    assert main(["check-data", f"npz:{tmp_path / 'a.npz'}"]) == 1
    assert "2 images in more than one split" in capsys.readouterr().out


def test_a_manifest_finds_what_decodes_but_was_changed(folder, tmp_path, capsys):
    manifest = tmp_path / "manifest.jsonl"
    assert check(folder, "--write-manifest", str(manifest)) == 0
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert [line["name"] for line in lines][:2] == ["train/cat/0.jpg", "train/cat/1.jpg"]
    assert lines[0]["bytes"] == (folder / "train" / "cat" / "0.jpg").stat().st_size
    moved = folder.rename(folder.with_name("moved"))
    manifest = moved / "manifest.jsonl"
    assert check(moved, "--manifest", str(manifest)) == 0
    flipped = moved / "train" / "dog" / "1.jpg"
    data = bytearray(flipped.read_bytes())
    data[-400] ^= 4  # in the picture's own bytes, where no decoder minds
    flipped.write_bytes(data)
    (moved / "val" / "cat" / "0.jpg").unlink()
    (moved / "val" / "cat" / "new.jpg").write_bytes(encoded(photo()))
    capsys.readouterr()
    assert check(moved) == 0
    assert check(moved, "--manifest", str(manifest), "--json") == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["splits"][0]["bad"] == []
    differ = found["manifest"]
    assert differ["changed"] == ["train/dog/1.jpg"]
    assert differ["missing"] == ["val/cat/0.jpg"]
    assert differ["new"] == ["val/cat/new.jpg"]
    assert check(moved, "--manifest", str(manifest)) == 1
    assert f"changed since {manifest}: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mnist"], "data source 'mnist' is none of"),
        (["folder:/nowhere"], "/nowhere/train not found"),
        (["digits", "--threads", "0"], "--threads is 0; it must be at least 1"),
        (["digits", "--manifest", "/no/m"], "cannot read the manifest /no/m: No such file"),
        (["digits", "--manifest", "/proc/version"], "is no manifest: its line 1 is not what"),
        (["digits", "--write-manifest", "/no/m"], "cannot write the manifest /no/m: No such file"),
    ],
)
def test_what_cannot_be_scanned_is_one_sentence(arguments, message, capsys):
    assert main(["check-data", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gnet: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_scan_that_fails_leaves_no_manifest(folder, tmp_path):
    (folder / "train" / "owl").mkdir()
    with pytest.raises(DataError, match="owl holds no image files"):
        scan(str(folder))
    assert check(folder, "--write-manifest", str(tmp_path / "m.jsonl")) == 2
    assert list(tmp_path.glob("m.jsonl*")) == []


def test_a_bar_is_shown_on_a_terminal(folder, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert check(folder, "--json") == 0
    assert "0/10" in capsys.readouterr().err


def test_a_name_that_is_no_text_is_met(folder, capsys):
    name = os.fsencode(folder / "train" / "cat") + b"/caf\xe9.jpg"
    with open(name, "wb") as file:
        file.write(b"")
    assert check(folder) == 1
    assert check(folder, "--json") == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert os.fsencode(found["splits"][0]["bad"][0]["name"]).endswith(b"caf\xe9.jpg")
    assert open_source(f"folder:{folder}", "train").fingerprint()


def test_a_gif_that_is_cut_in_a_later_picture_is_odd_and_ends_nothing(folder):
    later = [photo().quantize() for _ in range(3)]
    whole = encoded(photo().quantize(), "GIF", save_all=True, append_images=later)
    for cut in range(len(whole) // 2, len(whole), 101):
        (folder / "val" / "dog" / "moving.gif").write_bytes(whole[:cut])
        facts = inspect(open_source(f"folder:{folder}", "val"), 4)
        assert facts.label == 1


@pytest.mark.parametrize("place", [".", "train"])
def test_a_manifest_that_cannot_be_written_is_refused_before_the_scan(
    folder, capsys, monkeypatch, place
):
    monkeypatch.chdir(folder)
    assert check(folder, "--write-manifest", place) == 2
    assert "it is a folder; name a file" in capsys.readouterr().err
