"""`gnet check-data` finds and names every fault of a data set."""

import io
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from gnet_jax.cli.main import main
from gnet_jax.data.batches import BadRecord
from gnet_jax.data.check import Duplicates, Scan, SplitScan, inspect, print_scan, scan
from gnet_jax.data.sources import DataError, Example, open_source

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


def test_good_data_have_nothing_to_fix(folder, capsys):
    assert check(folder) == 0
    output = capsys.readouterr()
    assert output.err == ""  # no bar without a terminal
    assert check(folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["must_be_mended"] == found["duplicates"] == []
    assert found["missing"] == ["test"]
    train, val = found["splits"]
    assert (train["images"], train["class_counts"], val["class_counts"]) == (6, [3, 3], [2, 2])
    assert (train["width"], train["height"]) == ([60, 60, 60], [50, 50, 50])


def test_images_are_counted_by_class_and_their_sides_by_size(folder, capsys):
    for number, (width, height) in enumerate([(61, 40), (100, 41), (64, 200)]):
        picture = encoded(photo(width, height))
        (folder / "train" / "dog" / f"more{number}.jpg").write_bytes(picture)
    (folder / "val" / "cat" / "0.jpg").unlink()
    train, val = scan(str(folder)).splits
    assert train.class_names == ("cat", "dog")
    assert (train.class_counts, val.class_counts) == ([3, 6], [1, 2])
    # Widths 60 (six times), 61, 64, 100; heights 40, 41, 50 (six times), 200.
    assert (train.width, train.height) == ((60, 60, 100), (40, 50, 200))
    assert check(folder) == 0
    printed = capsys.readouterr().out
    assert "train 2.00, val 2.00" in printed
    assert ["cat", "3", "1"] in [line.replace("│", " ").split() for line in printed.splitlines()]


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
    for name, reason in (("cut", "truncated"), ("empty", "empty"), ("page", "27 bytes")):
        assert any(f"cat/{name}.jpg" in line and reason in line for line in output.splitlines())
    scanned = scan(str(folder))
    assert scanned.must_be_mended == ["3 corrupt images in train"]
    found = scanned.splits[0]
    assert found.class_counts == [6, 3]  # a damaged image has a label
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
def test_odd_images_are_listed_and_need_no_fix(kind, folder, capsys):
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
    assert kind in capsys.readouterr().out


def test_colour_of_16_bits_is_odd(folder):
    from tests.data.test_decode import png_of

    rows = b"".join(b"\0" + bytes(6 * 40) for _ in range(40))
    (folder / "train" / "cat" / "wide.png").write_bytes(png_of(40, 40, 16, rows))
    assert "wide.png" in scan(str(folder)).splits[0].odd["16 bit"][0]


@pytest.mark.parametrize(
    ("size", "odd"),
    [
        ((40, 32), False),
        ((32, 40), False),
        ((31, 40), "a side below 32 pixels"),
        ((160, 40), False),
        ((161, 40), "longer than 4 : 1"),
        ((40, 161), "longer than 4 : 1"),
    ],
)
def test_small_and_narrow_images_are_odd(size, odd):
    source = Labelled([0])
    source.pixels = np.zeros((size[1], size[0], 3), np.uint8)
    assert [kind for kind, _ in inspect(source, 0).odd] == ([odd] if odd else [])


def test_an_image_turned_by_exif_has_its_upright_size(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "val" / "dog" / "turned.jpg").write_bytes(encoded(photo(90, 80), exif=exif))
    found = scan(str(folder)).splits[1]
    assert (found.width, found.height) == ((60, 60, 80), (50, 50, 90))


def test_only_the_first_of_many_duplicates_are_named(folder, capsys):
    data = encoded(photo())
    for number in range(30):
        (folder / "train" / "dog" / f"again{number}.jpg").write_bytes(data)
    check(folder)
    output = capsys.readouterr().out
    assert output.count("again") == 10
    assert "and 20 more" in output


def test_duplicates_within_a_split_are_listed_and_between_splits_must_be_fixed(folder, capsys):
    train, val = folder / "train", folder / "val"
    (train / "dog" / "again.jpg").write_bytes((train / "dog" / "0.jpg").read_bytes())
    found = scan(str(folder))
    (group,) = found.duplicates
    assert [name.rsplit("/", 1)[1] for name in group.names] == ["0.jpg", "again.jpg"]
    assert (group.splits, group.labels) == (["train", "train"], ["dog", "dog"])
    assert (group.leak, group.contradict, found.must_be_mended) == (False, False, [])
    assert check(folder) == 0
    assert "dog/0.jpg = " in capsys.readouterr().out
    (train / "dog" / "copy.jpg").write_bytes((val / "cat" / "1.jpg").read_bytes())
    assert check(folder) == 1
    found = scan(str(folder))
    assert found.must_be_mended == [
        "1 image in more than one split",
        "1 image under more than one label",
    ]
    leak = next(group for group in found.duplicates if group.leak)
    assert (leak.splits, leak.labels, leak.contradict) == (["train", "val"], ["dog", "cat"], True)
    for name in ("a.jpg", "b.jpg"):  # damaged in the same way, but no duplicates
        (train / "cat" / name).write_bytes(b"")
    assert len(scan(str(folder)).duplicates) == 2


def test_the_same_image_in_two_splits_under_one_label_must_be_fixed(folder):
    image = (folder / "train" / "cat" / "0.jpg").read_bytes()
    (folder / "val" / "cat" / "copy.jpg").write_bytes(image)
    found = scan(str(folder))
    assert [(group.leak, group.contradict) for group in found.duplicates] == [(True, False)]
    assert found.must_be_mended == ["1 image in more than one split"]


def test_pixels_of_the_same_bytes_and_another_shape_are_no_duplicates():
    source = Labelled([0])
    digests = set()
    for shape in ((40, 60, 3), (60, 40, 3)):
        source.pixels = np.zeros(shape, np.uint8)
        digests.add(inspect(source, 0).digest)
    assert len(digests) == 2


def test_an_image_under_two_labels_of_a_split_must_be_fixed(folder, capsys):
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


def test_a_split_may_lack_a_class_of_train(folder, capsys):
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


def printed(*splits, duplicates=(), left_out=None, missing=()):
    """The lines of the report of these findings."""
    file = io.StringIO()
    found = Scan("folder:[a]", list(splits), list(missing), list(duplicates), left_out or {})
    print_scan(Console(file=file, width=200), found)
    return file.getvalue().splitlines()


def split_scan(classes=2, images=100, **findings):
    counts = [images // classes] * classes
    names = tuple(f"c{i}" for i in range(classes))
    return SplitScan("train", images, names, counts, **findings)


def files(count):
    return [f"file{i}.jpg" for i in range(count)]


def pairs(*counts):
    """Groups of so many equal images."""
    return [Duplicates(["train"] * n, files(n), ["c0"] * n, False, False) for n in counts]


@pytest.mark.parametrize(
    ("named", "findings"),
    [
        (10, lambda n: {"labels_out_of_range": files(n)}),
        (10, lambda n: {"bad": [BadRecord(i, name, "why") for i, name in enumerate(files(n))]}),
        (3, lambda n: {"odd": {"grey": files(n)}}),
    ],
)
def test_the_report_names_the_first_examples_and_counts_the_others(named, findings):
    for count in (named, named + 1, named + 1000):
        lines = printed(split_scan(**findings(count), images=2000))
        assert sum("file" in line for line in lines) == named
        assert sum(f"{count:,}" in line.split() for line in lines) >= 1
        more = [line.split()[1] for line in lines if line.startswith("  and ")]
        assert more == ([] if count == named else [f"{count - named:,}"])


def test_the_report_names_ten_of_equal_images_and_of_their_groups():
    for count, more in ((10, None), (11, "and 1 more"), (1011, "and 1,001 more")):
        (line,) = [line for line in printed(split_scan(), duplicates=pairs(count)) if " = " in line]
        assert line.count(".jpg") == 10
        assert line.endswith(more or "file9.jpg")
    lines = printed(split_scan(), duplicates=pairs(*[2] * 12))
    assert sum(" = " in line for line in lines) == 10
    assert "the same bytes more than once in one split: 12" in lines


def test_the_report_says_all_instead_of_naming_every_image():
    assert "grey, in train: all" in printed(split_scan(images=4, odd={"grey": files(4)}))
    assert "grey, in train: 3" in printed(split_scan(images=4, odd={"grey": files(3)}))


@pytest.mark.parametrize(("classes", "rows"), [(30, 30), (31, 31), (50, 31)])
def test_the_report_shows_at_most_30_classes(classes, rows):
    found = split_scan(classes)
    found.class_counts = list(range(100, 100 + classes))
    lines = printed(found)
    table = lines[lines.index(next(line for line in lines if "images per class" in line)) :]
    cells = [line.replace("│", " ").split() for line in table if line.startswith("│")]
    assert len(cells) == rows
    if classes == 50:
        counts = [int(row[-1]) for row in cells if row[0] != "..."]
        assert counts == [*range(100, 115), *range(135, 150)]
        assert cells[15] == ["...", "20", "more"]


def test_the_report_has_the_sizes_of_each_split():
    def row(found):
        (line,) = [line for line in printed(found) if line.startswith("│ train")]
        return [cell.strip() for cell in line.strip("│").split("│")]

    bad = [BadRecord(0, "a", "why")]
    found = split_scan(images=1200, bad=bad, width=(1, 2, 3000), height=(4, 5, 6))
    assert row(found) == ["train", "1,200", "1", "2", "1 2 3,000", "4 5 6"]
    assert row(split_scan()) == ["train", "100", "0", "2", "", ""]


def test_the_report_ends_with_what_must_be_fixed():
    assert printed(split_scan())[-1] == "nothing needs to be fixed"
    lines = printed(
        split_scan(labels_out_of_range=["a: 7"]),
        left_out={"broken link": ["[b]"], "junk": ["c"]},
        missing=["val", "test"],
    )
    assert lines[-1].startswith("must be fixed: 1 label out of range (0 to 1) in train; ")
    assert "broken link 1" in lines[-1]
    assert "junk" not in lines[-1]
    assert "split val or test not found" in lines
    assert "train with 'folder:[a]#holdout=10%', which validates on a tenth" in lines
    assert not any("holdout" in line for line in printed(split_scan(), missing=["train", "val"]))
    assert "  [b]" in lines
    empty = split_scan()
    empty.class_counts = [3, 0]
    assert "ratio of largest to smallest class: train has empty classes (1)" in printed(empty)


class Labelled:
    """Pixels with any labels."""

    split = "train"
    class_names = ("a", "b", "c")

    def __init__(self, labels):
        self.left_out = {}
        self.pixels = None
        self._labels = labels

    def __len__(self):
        return len(self._labels)

    def __getitem__(self, index):
        pixels = np.full((40, 40, 3), index, np.uint8) if self.pixels is None else self.pixels
        return Example(pixels, self._labels[index])

    def describe(self, index):
        return f"example {index}"

    def fingerprint(self):
        return "labelled"


def test_labels_out_of_range_and_empty_classes_must_be_fixed(monkeypatch):
    source = Labelled([0, 1, 3, -1])
    monkeypatch.setattr("gnet_jax.data.check.open_splits", lambda _: ([source], []))
    found = scan("anything", threads=1)
    assert found.splits[0].labels_out_of_range == ["example 2: 3", "example 3: -1"]
    assert found.splits[0].class_counts == [1, 1, 0]
    assert found.must_be_mended == [
        "2 labels out of range (0 to 2) in train",
        "1 class without an image in train: c",
    ]


def test_equal_images_of_a_label_out_of_range_contradict(monkeypatch):
    source = Labelled([0, 2, 3])
    source.pixels = np.arange(4800, dtype=np.uint8).reshape(40, 40, 3)
    monkeypatch.setattr("gnet_jax.data.check.open_splits", lambda _: ([source], []))
    (group,) = scan("anything", threads=1).duplicates
    assert group.labels == ["a", "c", "out of range: 3"]
    assert (group.leak, group.contradict) == (False, True)


def test_five_of_many_empty_or_unknown_classes_are_named():
    train = split_scan(7, images=7)
    train.class_counts = [0] * 6 + [1]
    val = SplitScan("val", 6, tuple("abcdef"), [1] * 6)
    assert Scan("x", [train, val], [], []).must_be_mended == [
        "6 classes without an image in train: c0, c1, c2, c3, c4",
        "6 classes in val that train lacks: a, b, c, d, e",
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
    assert len(scan(f"npz:{tmp_path / 'a.npz'}").duplicates) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mnist"], "'mnist'"),
        (["folder:/nowhere"], "/nowhere/train"),
        (["digits", "--threads", "0"], "--threads is 0"),
    ],
)
def test_a_scan_that_cannot_start_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert main(["check-data", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gnet: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_train_folder_without_images_is_refused(folder):
    (folder / "train" / "owl").mkdir()
    with pytest.raises(DataError, match="owl"):
        scan(str(folder))
    assert check(folder) == 2


def test_a_bar_is_shown_on_a_terminal(folder, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert check(folder, "--json") == 0
    assert "0/10" in capsys.readouterr().err


def test_a_name_that_is_not_text_is_reported(folder, capsys):
    name = os.fsencode(folder / "train" / "cat") + b"/caf\xe9.jpg"
    with open(name, "wb") as file:
        file.write(b"")
    assert check(folder) == 1
    assert check(folder, "--json") == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert os.fsencode(found["splits"][0]["bad"][0]["name"]).endswith(b"caf\xe9.jpg")
    assert open_source(f"folder:{folder}", "train").fingerprint()


def test_a_gif_that_is_cut_in_a_later_picture_is_odd_at_most(folder):
    later = [photo().quantize() for _ in range(3)]
    whole = encoded(photo().quantize(), "GIF", save_all=True, append_images=later)
    for cut in range(len(whole) // 2, len(whole), 101):
        (folder / "val" / "dog" / "moving.gif").write_bytes(whole[:cut])
        facts = inspect(open_source(f"folder:{folder}", "val"), 4)
        assert facts.label == 1
