"""Sets in parquet files and WebDataset tars, and what is refused or skipped in them."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

import train
from gnet_jax.cli.main import main
from gnet_jax.data.decode import ImageError
from gnet_jax.data.prepare.pack import pack
from gnet_jax.data.prepare.parquet import open_parquet
from gnet_jax.data.prepare.rows import RowOptions, by_split, unique
from gnet_jax.data.prepare.shards import PrepareError
from gnet_jax.data.prepare.webdataset import open_webdataset
from gnet_jax.data.sources import DataError, open_source
from tests.data.ilsvrc_tars import encoded, picture, tar_of

ROOT = Path(__file__).parents[2]
NAMES = ["rose", "tulip", "daisy", "lily", "oak tree"]
GREY = encoded(picture(50).convert("L"))
PNG = encoded(picture(51), "PNG")
NO_IMAGE = b"<html>not found</html>"


def features(names: list[str] | None, **columns: Any) -> dict[bytes, bytes]:
    """The metadata that the Hub's `datasets` writes into a schema."""
    kinds: dict[str, Any] = {"image": {"_type": "Image"}} | columns
    if names is not None:
        kinds["label"] = {"names": names, "_type": "ClassLabel"}
    return {b"huggingface": json.dumps({"info": {"features": kinds}}).encode()}


def write(path, images, labels, names=NAMES, row_group_size=2, **columns):
    """Writes rows as `datasets` does; `columns` are additional columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    structs = [
        None if i is None else {"bytes": i, "path": f"{n}.jpg"} for n, i in enumerate(images)
    ]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(structs, kind), "label": labels, **columns})
    if names is not None:
        table = table.replace_schema_metadata(features(names))
    parquet.write_table(table, path, row_group_size=row_group_size)


def flowers(folder):
    """Two training files of five classes, with one bad row, a grey image and a PNG; one to test.

    The classes of the test file are in another order. Returns the good (image, class) pairs.
    """
    images = [encoded(picture(i)) for i in range(12)]
    first = [*images[:5], NO_IMAGE, GREY]
    second = [*images[5:9], PNG]
    write(folder / "data" / "train-00000-of-00002.parquet", first, [0, 1, 2, 3, 4, 0, 1])
    write(folder / "data" / "train-00001-of-00002.parquet", second, [4, 3, 2, 1, 0])
    write(folder / "data" / "test-00000-of-00001.parquet", images[9:], [0, 1, 4], NAMES[::-1])
    labels = dict(zip(first, [0, 1, 2, 3, 4, 0, 1], strict=True))
    labels |= dict(zip(second, [4, 3, 2, 1, 0], strict=True))
    good = {(image, NAMES[label]) for image, label in labels.items() if image != NO_IMAGE}
    return good, {(image, NAMES[::-1][n]) for image, n in zip(images[9:], [0, 1, 4], strict=True)}


def pairs(name, split):
    """The (image, class) pairs of a prepared set in TFDS_DATA_DIR."""
    source = open_source(f"tfds:{name}", split)
    return {
        (e.image, source.class_names[e.label]) for e in map(source.__getitem__, range(len(source)))
    }


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """The folder that prepared sets are written to, without an option."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))
    return tmp_path / "sets"


def run_prepare(*arguments, code=0):
    assert main(["prepare", *map(str, arguments)]) == code


def test_a_parquet_set_keeps_its_images_and_classes_and_its_bad_row_is_named(
    tmp_path, sets, capsys
):
    good, test = flowers(tmp_path / "My Flowers")
    command = (f"parquet:{tmp_path / 'My Flowers'}", "--bad-limit", 0.1)
    run_prepare(*command)
    printed = capsys.readouterr()
    assert "11 train, 3 test images" in printed.out
    assert "gnet train folder --data.source tfds:my_flowers\n" in printed.out
    assert printed.err.count("skipped") == 1
    assert "skipped row 5 of " in printed.err
    assert "train-00000-of-00002.parquet: not an image" in printed.err
    assert pairs("my_flowers", "train") == good
    assert pairs("my_flowers", "test") == test
    assert open_source("tfds:my_flowers", "val").class_names == tuple(NAMES)
    before = {file: file.stat().st_mtime_ns for file in sets.rglob("*")}
    run_prepare(*command)  # it is there, so nothing is read or written
    assert "skipped" not in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in sets.rglob("*")} == before


def test_a_model_trains_on_a_parquet_set_and_is_evaluated_by_name(tmp_path, sets, capsys):
    flowers(tmp_path / "flowers")
    run_prepare(f"parquet:{tmp_path / 'flowers'}", "--bad-limit", 0.1)
    options = "--epochs 1 --batch-size 8 --eval-batch-size 8 --data.image-size 16 "
    options += "--data.resize-to 16 --model.width-multiplier 0.0625 --model.stem small "
    options += "--model.blocks 3a 4a 5b --model.aux-after 4a"
    run = str(tmp_path / "run")
    arguments = ["--data.source", "tfds:flowers", "--workdir", run, *options.split()]
    assert train.main(arguments) == 0
    assert "11 training and 3 validation images" in capsys.readouterr().out
    assert main(["evaluate", run, "--data", "tfds:flowers", "--split", "test", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 3


def test_too_many_bad_rows_are_refused_and_nothing_looks_whole(tmp_path, sets, capsys):
    flowers(tmp_path / "flowers")
    run_prepare(f"parquet:{tmp_path / 'flowers'}", code=2)
    error = capsys.readouterr().err
    assert "1 of 12 images are corrupt" in error
    assert "--bad-limit of gnet evaluate and gnet prepare" in error
    assert not sets.exists()


def test_every_kind_of_bad_row_is_named_with_the_reason(tmp_path, capsys):
    images = [encoded(picture(i)) for i in range(8)]
    images[1], images[2], images[3] = None, b"", NO_IMAGE
    labels = [0, 1, 2, 3, 5, -1, None, 4]
    write(tmp_path / "set" / "train.parquet", images, labels)
    options = RowOptions(bad_limit=0.8)
    assert pack(f"parquet:{tmp_path / 'set'}", tmp_path / "out", options=options).images == {
        "train": 2
    }
    told = capsys.readouterr().err.splitlines()
    reasons = dict(line.split(f" of {tmp_path / 'set' / 'train.parquet'}: ") for line in told)
    assert [*reasons] == [f"skipped row {i}" for i in range(1, 7)]
    for row, reason in ((1, "no image"), (2, "no image"), (3, "not an image"), (4, "is 5")):
        assert reason in reasons[f"skipped row {row}"]
    assert all("label" in reasons[f"skipped row {row}"] for row in (4, 5, 6))


def test_a_truncated_image_is_a_bad_row_if_images_are_scaled(tmp_path, capsys):
    images = [encoded(picture(i, (90, 60))) for i in range(4)]
    write(tmp_path / "set" / "train.parquet", [images[0][:-200], *images[1:]], [0, 1, 2, 3])
    options = RowOptions(bad_limit=0.3)
    pack(f"parquet:{tmp_path / 'set'}", tmp_path / "out", 30, options=options)
    assert "skipped row 0" in capsys.readouterr().err


def test_images_are_read_from_the_right_row_whatever_the_row_groups_are(tmp_path, sets):
    images = [encoded(picture(i)) for i in range(9)]
    labels = [i % 5 for i in range(9)]
    for size in (1, 4, 100):
        write(tmp_path / f"set{size}" / "train.parquet", images, labels, row_group_size=size)
        pack(f"parquet:{tmp_path / f'set{size}'}", sets / f"set{size}", threads=3)
        source = open_source(f"tfds:set{size}", "train")
        assert [source[i] for i in range(9)] == [*zip(images, labels, strict=True)]


def test_a_thread_reads_each_row_group_once_in_each_pass(tmp_path, monkeypatch):
    images = [encoded(picture(i)) for i in range(9)]
    write(tmp_path / "set" / "train.parquet", images, [0, 1, 2] * 3, row_group_size=4)
    read, groups = parquet.ParquetFile.read_row_group, []

    def counting(self, group, columns):
        groups.append(group)
        return read(self, group, columns)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counting)
    pack(f"parquet:{tmp_path / 'set'}", tmp_path / "out", threads=1)
    assert groups == [0, 1, 2, 0, 1, 2]


def test_an_interrupted_set_is_completed_and_equals_one_that_was_not(tmp_path, sets, monkeypatch):
    images = [encoded(picture(i)) for i in range(9)]
    write(tmp_path / "set" / "train.parquet", images, [i % 5 for i in range(9)])
    monkeypatch.setattr("gnet_jax.data.prepare.pack.FILE_RECORDS", 2)
    from gnet_jax.data.prepare import pack as module

    def fail(image, shorter):
        if image == images[5]:
            raise KeyboardInterrupt
        return image

    spec = f"parquet:{tmp_path / 'set'}"
    with monkeypatch.context() as patched:
        patched.setattr(module, "scaled_down", fail)
        with pytest.raises(KeyboardInterrupt):
            pack(spec, sets / "cut", threads=1)
    assert not (sets / "cut" / "1.0.0").exists()
    kept = {f.name: f.stat().st_mtime_ns for f in (sets / "cut").rglob("*-of-00005")}
    assert kept
    folder = pack(spec, sets / "cut", threads=1).folder
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    pack(spec, sets / "whole")
    assert pairs("cut", "train") == pairs("whole", "train")
    assert len(open_source("tfds:cut", "train")) == 9


@pytest.mark.parametrize(
    ("labels", "classes"), [(["cat", "dog", " cat"], ("cat", "dog")), ([10, 9, 10], ("9", "10"))]
)
def test_classes_without_declared_names_are_the_labels(tmp_path, sets, capsys, labels, classes):
    images = [encoded(picture(i)) for i in range(3)]
    write(tmp_path / "set" / "train.parquet", images, labels, names=None)
    pack(f"parquet:{tmp_path / 'set'}", sets / "animals")
    assert open_source("tfds:animals", "train").class_names == classes
    expected = {(image, str(label).strip()) for image, label in zip(images, labels, strict=True)}
    assert pairs("animals", "train") == expected
    assert "no class names in train" in capsys.readouterr().err


def test_class_names_can_be_in_the_card_or_in_a_file(tmp_path, sets):
    images = [encoded(picture(i)) for i in range(3)]
    write(tmp_path / "set" / "data" / "train.parquet", images, [0, 1, 2], names=None)
    names = (
        "class_label:\n          names:\n            '0': a\n            '1': b\n            '2': c"
    )
    card = "---\nlicense: mit\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n"
    card += f"  - name: label\n    dtype:\n        {names}\n---\n# Letters\n"
    (tmp_path / "set" / "README.md").write_text(card)
    pack(f"parquet:{tmp_path / 'set'}", sets / "by_card")
    assert pairs("by_card", "train") == {*zip(images, "abc", strict=True)}
    lists = {"by_file": "x\ny\nz\n", "by_json": '\ufeff{"2": "z", "0": "x", "1": "y"}'}
    for out, text in lists.items():
        (tmp_path / "names.txt").write_text(text, "utf-8")
        options = ("--class-names", tmp_path / "names.txt", "--out", sets / out)
        run_prepare(f"parquet:{tmp_path / 'set'}", *options)
        assert pairs(out, "train") == {*zip(images, "xyz", strict=True)}


def card(names):
    """A card of the Hub that gives the column "label" the class names in `names`, a YAML text."""
    return (
        "---\ndataset_info:\n  features:\n  - name: label\n    dtype:\n      class_label:\n"
        f"        names: {names}\n---\n"
    )


@pytest.mark.parametrize("names", ["{'1': b, '2': c, '0': a}", "{2: c, 0: a, 1: b}", "[a, b, c]"])
def test_class_names_in_a_card_are_matched_by_their_keys_and_not_by_their_order(tmp_path, names):
    write(tmp_path / "train.parquet", [PNG, GREY, PNG], [0, 1, 2], names=None)
    (tmp_path / "README.md").write_text(card(names))
    (source,) = open_parquet(tmp_path, RowOptions())
    assert source.class_names == ("a", "b", "c")
    assert source.labels.tolist() == [0, 1, 2]


def test_class_names_are_those_of_the_subset_in_the_folder(tmp_path):
    for subset in ("data", "one", "new"):
        write(tmp_path / subset / "train.parquet", [PNG, GREY], [0, 1], names=None)
    text = "---\ndataset_info:\n"
    for subset, names in (("one", "[a, b]"), ("default", "[c, d]")):
        features = card(names).removeprefix("---\ndataset_info:\n").removesuffix("---\n")
        text += f"- config_name: {subset}\n{features}"
    (tmp_path / "README.md").write_text(f"{text}---\n")
    for subset, names in (("one", ("a", "b")), ("data", ("c", "d"))):  # as on the Hub
        (source,) = open_parquet(tmp_path / subset, RowOptions())
        assert source.class_names == names
    with pytest.raises(PrepareError, match=r"README\.md .*differently.*use --class-names"):
        open_parquet(tmp_path / "new", RowOptions())


NO_NAME = "---\ndataset_info:\n  features:\n  - dtype: image\n---\n"


@pytest.mark.parametrize(
    "text",
    [
        "---\n- a\n---\n",
        "---\nhello\n---\n",
        "---\n\n---\n",
        "---\na: [\n---\n",
        "---\ndataset_info: null\n---\n",
        "---\ndataset_info:\n  features: null\n---\n",
        NO_NAME,
        "---\ndataset_info:\n  features:\n  - name: label\n    dtype: null\n---\n",
        card("null"),
        card("{'0': no, '1': yes}"),
        card("{'0': a, '2': b}"),
        card("{zero: a, one: b}"),
        "---\na: \xff\n---\n",
    ],
)
def test_a_malformed_card_is_named_and_class_names_replace_it(tmp_path, text):
    write(tmp_path / "set" / "train.parquet", [PNG, GREY], [0, 1], names=None)
    (tmp_path / "set" / "README.md").write_text(text, "latin-1")
    (tmp_path / "names.txt").write_text("x\ny\n")
    with pytest.raises(PrepareError, match=r"set/README\.md .*use --class-names"):
        open_parquet(tmp_path / "set", RowOptions())
    (source,) = open_parquet(tmp_path / "set", RowOptions(class_names=tmp_path / "names.txt"))
    assert source.class_names == ("x", "y")


@pytest.mark.parametrize(
    "metadata",
    [
        b"{",
        b"[]",
        b"\xff",
        pytest.param(b"[" * 100_000, id="nested"),
        b'{"info": null}',
        b'{"info": {"features": null}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": "ab"}}}}',
    ],
)
def test_malformed_metadata_are_named_and_class_names_replace_them(tmp_path, metadata):
    table = pa.table({"image": [PNG, GREY], "label": [0, 1]})
    (tmp_path / "set").mkdir()
    table = table.replace_schema_metadata({b"huggingface": metadata})
    parquet.write_table(table, tmp_path / "set" / "train.parquet")
    (tmp_path / "names.txt").write_text("x\ny\n")
    with pytest.raises(PrepareError, match=r"train\.parquet .*use --class-names"):
        open_parquet(tmp_path / "set", RowOptions())
    (source,) = open_parquet(tmp_path / "set", RowOptions(class_names=tmp_path / "names.txt"))
    assert source.class_names == ("x", "y")


def test_a_name_that_imagenet_gives_to_two_classes_becomes_two_names():
    assert unique(["crane", " tench", "crane"], "set") == ["crane", "tench", "crane (2)"]


def test_no_label_moves_to_another_class_if_a_repeated_name_gets_a_name_that_exists():
    names = unique(["a", "a (2)", "a", "b"], "set")
    assert names == ["a", "a (2)", "a (2) (2)", "b"]


def test_two_unicode_forms_of_a_class_are_refused(tmp_path):
    write(tmp_path / "train.parquet", [PNG, GREY], [0, 1], ["e\u0301", "\u00e9"])
    with pytest.raises(DataError, match=r"train\.parquet has the class é twice") as error:
        open_parquet(tmp_path, RowOptions())
    assert r"'e\u0301' and '\xe9'" in str(error.value)
    names = tmp_path / "names.txt"
    names.write_text("e\u0301\n\u00e9\n", "utf-8")
    with pytest.raises(DataError, match=r"names\.txt has the class é twice"):
        open_parquet(tmp_path, RowOptions(class_names=names))


def test_a_label_outside_the_names_is_a_bad_row_even_if_a_class_has_this_name(tmp_path):
    names = ["1", "2", "3", "-1"]
    write(tmp_path / "train.parquet", [PNG] * 4, [1, 3, 4, -1], names)
    (source,) = open_parquet(tmp_path, RowOptions())
    assert [source[i].label for i in range(2)] == [1, 3]
    for index, label in ((2, "4"), (3, "-1")):
        with pytest.raises(ImageError, match=f"the label is {label}, which is not a class"):
            source[index]
    write(tmp_path / "train.parquet", [PNG] * 4, [1, 2, 3, 0], names[:3])
    (source,) = open_parquet(tmp_path, RowOptions())
    assert source.labels.tolist() == [1, 2, -1, 0]


def test_a_split_without_labels_is_skipped_and_a_class_of_one_split_only_is_refused(
    tmp_path, sets, capsys
):
    images = [encoded(picture(i)) for i in range(3)]
    write(tmp_path / "set" / "train.parquet", images, [0, 1, 4])
    write(tmp_path / "set" / "test.parquet", images, [-1, -1, -1])
    assert pack(f"parquet:{tmp_path / 'set'}", sets / "a").images == {"train": 3}
    assert "skipped the test split" in capsys.readouterr().err
    write(tmp_path / "set" / "test.parquet", images, [0, 0, 1], ["rose", "thistle"])
    with pytest.raises(DataError, match="'thistle'"):
        pack(f"parquet:{tmp_path / 'set'}", sets / "b")


def test_columns_that_are_not_clear_are_asked_for(tmp_path, sets, capsys):
    images = [encoded(picture(i)) for i in range(3)]
    kinds = {name: {"names": ["a", "b", "c"], "_type": "ClassLabel"} for name in ("fine", "coarse")}
    columns = {
        "img": images,
        "mask": images,
        "fine": [0, 1, 2],
        "coarse": [0, 0, 1],
        "id": [7, 8, 9],
    }
    table = pa.table(columns).replace_schema_metadata(features(None, **kinds))
    (tmp_path / "set").mkdir()
    parquet.write_table(table, tmp_path / "set" / "train.parquet")
    spec = f"parquet:{tmp_path / 'set'}"
    run_prepare(spec, "--image-column", "img", code=2)
    assert "--label-column: fine, coarse" in capsys.readouterr().err
    run_prepare(spec, "--label-column", "fine", code=2)
    assert "--image-column: img, mask" in capsys.readouterr().err
    run_prepare(spec, "--label-column", "colour", "--image-column", "img", code=2)
    assert "named colour" in capsys.readouterr().err
    run_prepare(spec, "--label-column", "fine", "--image-column", "img")
    assert pairs("set", "train") == {*zip(images, "abc", strict=True)}
    run_prepare(spec, "--label-column", "fine", "--image-column", "mask", code=2)


@pytest.mark.parametrize(
    "path", ["{split}-0.tar", "data/{split}-0.tar", "{split}/a.tar", "a-{split}_1.tar"]
)
def test_the_split_of_a_file_is_the_last_such_word_in_its_path(path):
    words = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}
    names = [path.format(split=word) for word in ("train", "validation", "test")]
    assert [*by_split(reversed(names), "set")] == ["train", "val", "test"]
    for word, split in words.items():
        names = [path.format(split=word), "train-x.tar"]
        if len({Path(name).parent for name in names}) == 1:
            assert path.format(split=word) in by_split(names, "set")[split]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/train.tar", "b/train.tar"], "several sets: a, b"),
        (["test.tar"], "train split"),
        ([], "train split"),
        (["train-00001-of-00002.tar"], "1 files, but must have 2"),
        (
            ["train-00000-of-00002.tar", "train-00000-of-00002 (1).tar"],
            r"number 00000: train-00000-of-00002 \(1\).tar and train-00000-of-00002.tar; keep",
        ),
    ],
)
def test_files_that_are_not_one_whole_set_are_refused(names, message):
    with pytest.raises(PrepareError, match=message):
        by_split(names, "set")


def test_files_without_a_split_are_for_training_or_of_another_split(capsys):
    assert by_split(["b.tar", "a.tar"], "set") == {"train": ["a.tar", "b.tar"]}
    assert by_split(["extra.tar", "train.tar"], "set") == {"train": ["train.tar"]}
    assert "extra.tar" in capsys.readouterr().err


def test_a_corrupt_parquet_file_is_named(tmp_path):
    write(tmp_path / "set" / "train.parquet", [PNG] * 3, [0, 1, 2])
    file = tmp_path / "set" / "train.parquet"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(PrepareError, match=r"cannot read .*train\.parquet"):
        pack(f"parquet:{tmp_path / 'set'}", tmp_path / "out")


def shards(folder, labels):
    """Tars for training and validation, with a label of each kind in `labels`."""
    train = {}
    for i, (suffix, label) in enumerate(labels):
        train[f"flowers/{i:03d}.{('jpg', 'PNG')[i % 2]}"] = encoded(
            picture(i), ("JPEG", "PNG")[i % 2]
        )
        train[f"flowers/{i:03d}.{suffix}"] = label
        train[f"flowers/{i:03d}.txt"] = b"a caption"
    val = {"0.json": b'{"label": 1}', "0.jpeg": GREY}
    folder.mkdir()
    (folder / "train-0000.tar").write_bytes(tar_of(train))
    (folder / "val-0000.tar").write_bytes(tar_of(val))
    return [data for name, data in train.items() if name.lower().endswith(("jpg", "png"))]


LABELS = [("cls", b"0"), ("cls", b"1\n"), ("json", b'{"label": 2}'), ("cls", b"0")]
LABELS += [("json", b'{"label": "daisy"}'), ("cls", b"tulip"), ("cls", b"2"), ("cls", b" 2")]


def test_a_webdataset_keeps_its_images_and_classes(tmp_path, sets, capsys):
    images = shards(tmp_path / "wds", LABELS)
    (tmp_path / "wds" / "classes.txt").write_text("rose\ntulip\ndaisy\n")
    run_prepare(f"wds:{tmp_path / 'wds'}")
    assert "8 train, 1 validation images" in capsys.readouterr().out
    names = ["rose", "tulip", "daisy", "rose", "daisy", "tulip", "daisy", "daisy"]
    assert pairs("wds", "train") == {*zip(images, names, strict=True)}
    assert pairs("wds", "val") == {(GREY, "tulip")}


@pytest.mark.slow
def test_a_model_trains_on_a_webdataset_and_is_evaluated(tmp_path, sets, capsys):
    shards(tmp_path / "wds", LABELS)
    run_prepare(f"wds:{tmp_path / 'wds'}", "--bad-limit", 0.3)
    options = "--epochs 1 --batch-size 8 --eval-batch-size 8 --data.image-size 16 "
    options += "--data.resize-to 16 --model.width-multiplier 0.0625 --model.stem small "
    options += "--model.blocks 3a 4a 5b --model.aux-after 4a"
    run = str(tmp_path / "run")
    assert train.main(["--data.source", "tfds:wds", "--workdir", run, *options.split()]) == 0
    capsys.readouterr()
    assert main(["evaluate", run, "--data", "tfds:wds", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 1


def test_bad_samples_of_a_webdataset_are_named_by_their_key(tmp_path, sets, capsys):
    labels = [("cls", b"1"), ("cls", b"\xff"), ("json", b"[]"), ("json", b"{}"), ("cls", b"0")]
    labels += [("cls", b"9" * 5000), ("json", b'{"label":' + b"[" * 100_000)]
    labels += [("json", b'{"label": true}')]  # not the class 1
    shards(tmp_path / "wds", labels)
    run_prepare(f"wds:{tmp_path / 'wds'}", "--bad-limit", 0.8)
    told = capsys.readouterr().err
    assert "using the labels: the classes '0', '1'" in told
    tar = tmp_path / "wds" / "train-0000.tar"
    for key in ("001", "002", "003", "005", "006", "007"):
        assert f"skipped flowers/{key} of {tar}: the label is None" in told
    assert len(open_source("tfds:wds", "train")) == 2


@pytest.mark.parametrize("order", [("cls", "json"), ("json", "cls")])
def test_the_label_in_a_cls_file_is_used_whatever_the_json_file_of_the_sample_has(tmp_path, order):
    samples = [
        {"cls": b"1", "json": b'{"width": 8}'},
        {"cls": b"1", "json": b'{"label": null}'},
        {"cls": b"1", "json": b'{"label": 0}'},
        {"cls": b"\xff", "json": b'{"label": 1}'},
    ]
    files = {}
    for key, sample in enumerate(samples):
        files |= {f"{key}.jpg": GREY} | {f"{key}.{suffix}": sample[suffix] for suffix in order}
    (tmp_path / "train-0.tar").write_bytes(tar_of(files))
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (source,) = open_webdataset(tmp_path, RowOptions())
    assert source.labels.tolist() == [1, 1, 1, 1]


def test_a_sample_with_two_images_is_a_bad_row_that_names_both(tmp_path, sets, capsys):
    shards(tmp_path / "wds", LABELS[:2])
    samples = {"0.cls": b"0", "0.jpg": GREY, "0.png": PNG, "1.cls": b"1", "1.png": PNG}
    (tmp_path / "wds" / "train-0000.tar").write_bytes(tar_of(samples))
    run_prepare(f"wds:{tmp_path / 'wds'}", "--bad-limit", 0.5)
    assert "there are several images: 0.jpg, 0.png" in capsys.readouterr().err
    assert pairs("wds", "train") == {(PNG, "1")}


@pytest.mark.parametrize("kind", ["parquet", "wds"])
def test_a_train_split_without_rows_is_refused_in_one_sentence(tmp_path, sets, capsys, kind):
    write(tmp_path / "set" / "train.parquet", [], pa.array([], pa.int64()))
    (tmp_path / "set" / "train.tar").write_bytes(tar_of({}))
    run_prepare(f"{kind}:{tmp_path / 'set'}", code=2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path / 'set'} has no rows in its train split" in error
    assert not sets.exists()


def test_a_truncated_tar_is_refused(tmp_path, capsys):
    shards(tmp_path / "wds", [("cls", b"0"), ("cls", b"1")])
    tar = tmp_path / "wds" / "train-0000.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    run_prepare(f"wds:{tmp_path / 'wds'}", code=2)
    assert f"{tar} is corrupt or truncated" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["parquet:missing"], "folder missing is not found"),
        (["hf:flowers"], "hf:OWNER/NAME"),
        (["cifar10", "--out", "x"], "--out"),
        (["cifar10", "--class-names", "x"], "--class-names"),
        (["wds:x", "--label-column", "x"], "--label-column"),
        (["wds:x", "--manual-dir", "x"], "--manual-dir"),
        (["wds:x", "--bad-limit", "1"], "--bad-limit is 1"),
        (["wds:2x"], "'2x'"),
        (["wds:花"], "'wds:花' gives the prepared set no name; use --out"),
        (["parquet:Фото"], "'parquet:Фото' gives the prepared set no name; use --out"),
        (["wds:mnist"], "mnist"),
        (["wds:"], "'wds:'"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, message, capsys, sets):
    run_prepare(*arguments, code=2)
    error = capsys.readouterr().err
    assert error.startswith("gnet: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not sets.exists()


def test_the_hub_without_its_package_says_what_to_install(sets, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    run_prepare("hf:owner/flowers", code=2)
    assert "[hub]" in capsys.readouterr().err


class Hub(http.server.BaseHTTPRequestHandler):
    """The parts of the Hub's protocol that a download uses, for the files in `folder`."""

    folder: Path
    commit = "0123456789abcdef0123456789abcdef01234567"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        names = [
            p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file()
        ]
        start = "/api/datasets/owner/flowers/"
        if path.startswith(start + "tree/"):
            files = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in names]
            self.answer(json.dumps(files).encode())
        elif path.startswith(start + "revision/"):
            about = {"id": "owner/flowers", "sha": self.commit, "private": False}
            self.answer(
                json.dumps(about | {"siblings": [{"rfilename": n} for n in names]}).encode()
            )
        elif path.startswith("/datasets/owner/flowers/resolve/"):
            self.answer((self.folder / path.split("/", 6)[6]).read_bytes())
        else:
            self.answer(b"{}", 404)

    def answer(self, data, code=200):
        self.send_response(code)
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


def test_a_set_of_the_hub_is_downloaded_and_prepared(tmp_path, sets):
    pytest.importorskip("huggingface_hub")
    Hub.folder = tmp_path / "hub"
    good, test = flowers(Hub.folder)
    (Hub.folder / "weights.bin").write_bytes(b"not wanted")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # Another process, because huggingface_hub reads the variables when it is imported.
        environment = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "home"),
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "gnet_jax", "prepare", "--bad-limit", "0.1"]
        done, part, unknown = (
            subprocess.run(
                [*command, f"hf:owner/{name}"], env=environment, capture_output=True, text=True
            )
            for name in ("flowers", "flowers/data@v1", "trees")
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert "--data.source tfds:owner_flowers" in done.stdout
    assert pairs("owner_flowers", "train") == good
    assert pairs("owner_flowers", "test") == test
    assert part.returncode == 0, part.stderr
    assert pairs("owner_flowers_data_v1", "train") == good
    assert not [*(tmp_path / "home").rglob("weights.bin")]
    assert unknown.returncode == 2
    assert "cannot download hf:owner/trees" in unknown.stderr
    assert "Traceback" not in unknown.stderr


@pytest.mark.parametrize("kind", ["parquet", "wds"])
def test_a_missing_folder_is_named_as_missing(kind, tmp_path, capsys):
    assert main(["prepare", f"{kind}:{tmp_path}/absent"]) == 2
    assert f"{tmp_path}/absent is not found" in capsys.readouterr().err
