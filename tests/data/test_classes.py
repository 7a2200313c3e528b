"""Classes are matched by name: in a data set's splits, in copies of it, and in training on it."""

import shutil
import types
import unicodedata

import numpy as np
import pytest
from PIL import Image

import train
from gnet_jax.cli.main import main
from gnet_jax.config import DataConfig
from gnet_jax.data.decode import decode
from gnet_jax.data.sources import DataError, open_source
from gnet_jax.data.sources.classes import (
    empty_classes,
    find,
    imagenet_classes,
    in_order,
    listed,
    refuse_unknown,
    same_classes,
)
from gnet_jax.training.program import prepare
from tests.tiny import tiny_config

NFC, NFD = (unicodedata.normalize(form, "löwe") for form in ("NFC", "NFD"))
# The grey level of every image tells its class, whatever its label is.
LEVELS = {"a": 10, "b": 60, "c": 110, "d": 160, NFC: 210, NFD: 210}


def photos(root, **splits):
    """A folder with two images for each class of each split."""
    for split, names in splits.items():
        for name in names:
            folder = root / split / name
            folder.mkdir(parents=True)
            level = LEVELS.get(name) or 7 * int(name) + 7
            for i in range(2):
                Image.new("L", (40, 30), level + i).save(folder / f"{i}.png")
    return f"folder:{root}"


def prepared(workdir, spec):
    data = DataConfig(source=spec, image_size=16, resize_to=16)
    return prepare(tiny_config(workdir, data=data, batch_size=8, epochs=9))


def levels(source):
    """The grey level, to the nearest ten, of the images by the name that their label gives them."""
    found = {}
    for image, label in (source[i] for i in range(len(source))):
        level = np.asarray(decode(image)).mean()
        found.setdefault(source.class_names[label], set()).add(int(level) // 10 * 10)
    return found


def test_numbers_are_sorted_as_numbers_and_all_else_as_text():
    assert in_order(["10", "9", "-1", "007"]) == ("-1", "007", "9", "10")
    assert in_order(["10", "9", "a"]) == ("10", "9", "a")
    assert in_order(map(str, range(1000))) == tuple(map(str, range(1000)))


def test_class_folders_named_by_numbers_are_in_the_order_of_numbers(tmp_path):
    names = [str(number) for number in range(12)]
    spec = photos(tmp_path, train=names, val=names[9:])
    source = open_source(spec, "train")
    assert source.class_names == tuple(names)
    for index in range(len(source)):
        image, label = source[index]
        assert np.asarray(decode(image)).min() // 7 - 1 == label
    val = open_source(spec, "val")
    assert {val[i].label for i in range(len(val))} == {9, 10, 11}


def test_a_split_of_a_folder_that_lacks_a_class_takes_the_labels_of_train(tmp_path):
    spec = photos(tmp_path, train="abc", val="ac", test="b")
    (tmp_path / "test" / "c").mkdir()  # empty, as if it were not there
    for split, present in (("val", "ac"), ("test", "b"), ("val#2", "ac")):
        split, _, part = split.partition("#")
        source = open_source(f"{spec}#{part}" if part else spec, split)
        assert source.class_names == ("a", "b", "c")
        assert set(empty_classes(source)) == set("abc") - set(present)
        assert {source[i].label for i in range(len(source))} == {"abc".index(n) for n in present}
    run = prepared(tmp_path, spec)
    assert run.val.class_names == run.train.class_names


def test_labels_that_another_train_split_changes_change_the_fingerprint(tmp_path):
    alone = open_source(photos(tmp_path / "1", val="ac"), "val").fingerprint()
    same = open_source(photos(tmp_path / "2", train="ac", val="ac"), "val").fingerprint()
    other = open_source(photos(tmp_path / "3", train="abc", val="ac"), "val").fingerprint()
    assert alone == same != other


def test_an_empty_class_folder_does_not_change_the_fingerprint_of_a_split(tmp_path):
    spec = photos(tmp_path, train="abc", val="ac")
    before = open_source(spec, "val").fingerprint()
    (tmp_path / "val" / "b").mkdir()
    assert open_source(spec, "val").fingerprint() == before


@pytest.mark.parametrize("count", [2, 7])
def test_a_subset_without_an_image_of_a_class_is_not_trained_on(tmp_path, count):
    spec = photos(tmp_path, train="abc", val="abc")
    for number in range(40):  # many of one class: an even spacing misses the smallest
        shutil.copy(tmp_path / "train/b/0.png", tmp_path / f"train/b/more{number}.png")
    with pytest.raises(DataError, match="the class 'c'"):
        prepared(tmp_path, f"{spec}#{count}")


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_a_class_that_train_lacks_is_refused_by_name_before_any_work(command, tmp_path, capsys):
    spec = photos(tmp_path / "p", train="ab", val="abd")
    if command == "train":
        assert train.main(["--data.source", spec, "--workdir", str(tmp_path / "out")]) == 2
    else:
        assert main(["prepare", spec, "--resize", "20", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "the class 'd'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_smaller_copy_keeps_the_labels_of_splits_that_lack_a_class(tmp_path, monkeypatch):
    spec = photos(tmp_path / "p", train="abc", val="ac")
    assert main(["prepare", spec, "--resize", "20", "--out", str(tmp_path / "copy")]) == 0
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for split, names in (("train", "abc"), ("val", "ac")):
        copy = open_source("tfds:copy", split)
        assert copy.class_names == ("a", "b", "c")
        assert levels(copy) == {name: {LEVELS[name]} for name in names}


def arrays(root, **splits):
    """One .npz file for each split, its classes numbered as they are given."""
    for split, names in splits.items():
        levels = np.array([LEVELS[name] for name in names], np.uint8)
        x = np.broadcast_to(levels[:, None, None], (len(names), 30, 40))
        np.savez(root / f"{split}.npz", x=x, y=range(len(names)), class_names=[*names])
    return f"npz:{root}"


def test_splits_of_arrays_that_order_their_classes_differently_are_matched(tmp_path, monkeypatch):
    spec = arrays(tmp_path, train="abc", test="cb")
    test = open_source(spec, "test")
    assert test.class_names == ("a", "b", "c")
    assert empty_classes(test) == ["a"]
    assert [test[i].label for i in range(2)] == [2, 1]
    out = tmp_path / "copy"
    assert main(["prepare", spec, "--resize", "20", "--out", str(out)]) == 0
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert levels(open_source("tfds:copy", "test")) == {"b": {60}, "c": {110}}
    arrays(tmp_path, test="db")
    with pytest.raises(DataError, match=r"test split of npz:.* has the class 'd'"):
        prepared(tmp_path, spec)


def test_a_test_file_of_one_class_can_be_evaluated(tmp_path):
    source = open_source(arrays(tmp_path, train="abc", test="b"), "test")
    assert [source[i].label for i in range(len(source))] == [1]
    (tmp_path / "train.npz").unlink()
    assert open_source(f"npz:{tmp_path}", "test").class_names == ("b",)


def test_unicode_forms_of_a_name_are_one_class_across_splits_and_an_error_within_one(tmp_path):
    spec = photos(tmp_path / "good", train=["a", NFC], val=[NFD])
    val = open_source(spec, "val")
    assert val.class_names == ("a", NFC)
    assert levels(val) == {NFC: {210}}
    assert open_source(arrays(tmp_path, train=["a", NFD], test=[NFC]), "test")[0].label == 1
    spec = photos(tmp_path / "bad", train=[NFC, NFD])
    with pytest.raises(DataError) as caught:
        open_source(spec, "train")
    assert ascii(NFC) in str(caught.value)
    assert ascii(NFD) in str(caught.value)


def test_imagenets_classes_are_known_by_label_and_wordnet_id():
    ids, labels = [*imagenet_classes()], [*imagenet_classes().values()]
    assert len(ids) == 1000
    assert ids == sorted(ids)
    assert labels[0] == "tench, Tinca tinca"
    assert labels[999] == "toilet tissue, toilet paper, bathroom tissue"
    assert [i for i, label in enumerate(labels) if label == "crane"] == [134, 517]
    assert find([ids[517], ids[134], "zebra"], labels) == [517, 134, None]
    assert find(labels, ids) == [*range(1000)]
    assert find(["b", "a", "c"], ["a", "b"]) == [1, 0, None]
    assert find(["a", "a", "b"], ["b", "a"]) == [None, None, 0]


def test_lists_of_other_lengths_have_other_classes():
    assert same_classes(["a", "b"], ["a", "b"])
    assert not same_classes(["a"], ["a", "b"])
    assert not same_classes(["b", "a"], ["a", "b"])


def test_five_classes_are_named_and_the_others_counted():
    assert listed(["a"]) == "the class 'a'"
    assert listed([*"abcde"]) == "the classes 'a', 'b', 'c', 'd', 'e'"
    assert listed([*"abcdef"]) == "the classes 'a', 'b', 'c', 'd', 'e' and 1 more"


def test_a_class_that_train_lacks_is_allowed_while_it_has_no_image():
    train = types.SimpleNamespace(class_names=("a", "b"), split="train")
    other = types.SimpleNamespace(class_names=("a", "b", "c"), split="val", labels=np.array([0, 1]))
    refuse_unknown(train, other, "folder:x")
    other.labels = np.array([0, 2])
    with pytest.raises(DataError, match=r"val split .* the class 'c'"):
        refuse_unknown(train, other, "folder:x")
