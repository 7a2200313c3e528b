"""Arrays in .npz files: every layout that people have, and one sentence for every other."""

import hashlib
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gnet_jax.data.decode import decode
from gnet_jax.data.sources import DataError, MissingSplitError, open_source

LABELS = np.array([0, 1, 2, 1, 0, 2])
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 7, 3), np.uint8)


def jpegs(count):
    files = []
    for i in range(count):
        file = io.BytesIO()
        Image.new("RGB", (9, 8), (40 * i, 0, 0)).save(file, "JPEG")
        files.append(file.getvalue())
    return files


def encoded(count=6, **changes):
    files = jpegs(count)
    arrays = {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
        "labels": LABELS[:count],
        "class_names": np.array(["ant", "bee", "größer"]),
    }
    return arrays | changes


def save(file, **arrays):
    np.savez_compressed(file, **arrays)
    return f"npz:{file}"


def assert_holds(source, images, labels):
    assert len(source) == len(labels)
    assert [source[i].label for i in range(len(source))] == list(labels)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(source[i].image, image)


@pytest.mark.parametrize(
    "names", ["x_{}:y_{}", "images_{}:labels_{}", "{}_images:{}_labels", "{}_image:{}_label"]
)
def test_one_file_with_several_splits_is_read_by_its_keys(names, tmp_path):
    x, y = names.split(":")
    arrays = {x.format("train"): PIXELS, y.format("train"): LABELS.reshape(6, 1).astype(np.uint8)}
    arrays |= {x.format("test"): PIXELS[:3], y.format("test"): LABELS[:3]}
    spec = save(tmp_path / "set.npz", **arrays)
    assert_holds(open_source(spec, "train"), PIXELS, LABELS)
    assert open_source(spec, "train").class_names == ("0", "1", "2")
    for split in ("val", "test"):  # there is no other validation split
        assert_holds(open_source(spec, split), PIXELS[:3], LABELS[:3])
        assert open_source(spec, split).split == "test"
    arrays |= {x.format("val"): PIXELS[4:], y.format("val"): LABELS[4:]}
    save(tmp_path / "set.npz", **arrays)
    val = open_source(str(tmp_path / "set.npz"), "val")
    assert_holds(val, PIXELS[4:], LABELS[4:])
    assert val.split == "val"
    assert f"image 1 of {x.format('val')} in " in val.describe(1)


@pytest.mark.parametrize("where", ["{split}.npz", ""])
def test_one_file_for_each_split_by_a_pattern_or_in_a_folder(where, tmp_path):
    save(tmp_path / "train.npz", **encoded())
    save(tmp_path / "test.npz", **encoded(2))
    spec = f"npz:{tmp_path / where}"
    train, val = open_source(spec, "train"), open_source(spec, "val")
    assert train.class_names == val.class_names == ("ant", "bee", "größer")
    assert [train[i].image for i in range(6)] == jpegs(6)
    assert decode(train[5].image).size == (9, 8)
    assert (len(val), val.split) == (2, "test")
    assert val.describe(1) == f"image 1 of {tmp_path / 'test.npz'}"
    save(tmp_path / "test.npz", **encoded(1))
    assert len(open_source(spec, "val")) == 1


@pytest.mark.parametrize("shape", [(6, 5, 7), (6, 5, 7, 1)])
def test_grey_pixels(shape, tmp_path):
    grey = PIXELS[..., :1].reshape(shape)
    save(tmp_path / "train.npz", x=grey, y=LABELS)
    source = open_source(f"npz:{tmp_path}", "train")
    assert_holds(source, PIXELS[..., 0], LABELS)
    assert decode(source[0].image).size == (7, 5)


def test_the_classes_are_those_of_the_training_labels(tmp_path):
    spec = save(tmp_path / "a.npz", x_train=PIXELS, y_train=LABELS, x_val=PIXELS[:2], y_val=[0, 1])
    assert open_source(spec, "val").class_names == ("0", "1", "2")


def test_class_names_may_be_bytes_of_another_encoding(tmp_path):
    save(tmp_path / "train.npz", **encoded(class_names=np.array([b"tea", b"caf\xe9", b"cocoa"])))
    assert open_source(f"npz:{tmp_path}", "train").class_names == ("tea", "caf\\xe9", "cocoa")


def test_two_classes_are_enough(tmp_path):
    source = open_source(save(tmp_path / "a.npz", x_train=PIXELS, y_train=LABELS % 2), "train")
    assert source.class_names == ("0", "1")
    assert source.labels.tolist() == [0, 1, 0, 1, 0, 0]


def test_the_fingerprint_follows_every_byte_and_label(tmp_path):
    def print_of(**arrays):
        return open_source(save(tmp_path / "train.npz", **arrays)[:-10], "train").fingerprint()

    changed = PIXELS.copy()
    changed[3, 2, 1, 0] ^= 1
    sets = [
        {"x": PIXELS, "y": LABELS},
        {"x": changed, "y": LABELS},
        {"x": PIXELS, "y": LABELS[::-1]},
        {"x": PIXELS.reshape(6, 7, 5, 3), "y": LABELS},
        {"x": PIXELS, "y": LABELS, "class_names": ["a", "b", "c"]},
        encoded(),
        encoded(labels=LABELS[::-1]),
        encoded(offsets=encoded()["offsets"] - np.array([0, 1, 0, 0, 0, 0, 0])),
    ]
    assert len({print_of(**arrays) for arrays in sets}) == len(sets)
    head = b"(6, 5, 7, 3) ('0', '1', '2')"
    whole = hashlib.sha256(head + PIXELS.tobytes() + LABELS.astype("<i8").tobytes())
    assert print_of(**sets[0]) == whole.hexdigest()[:16]  # as every checkpoint holds it
    offsets = OFFSETS.astype("<i8").tobytes()
    head = f"({OFFSETS[-1]},) ('ant', 'bee', 'größer')".encode()
    parts = head, encoded()["jpeg"].tobytes(), offsets, LABELS.astype("<i8").tobytes()
    assert print_of(**encoded()) == hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    assert print_of(**encoded()) == print_of(**encoded(labels=LABELS.astype(np.uint8)))


def test_a_copy_in_another_process_is_read_from_the_file(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (6, 200, 200, 3), np.uint8)
    source = open_source(save(tmp_path / "a.npz", x_train=noise, y_train=LABELS), "train")
    pickled = pickle.dumps(source)
    assert len(pickled) < 1000
    assert_holds(pickle.loads(pickled), noise, LABELS)


KERAS = {"x_train": PIXELS, "y_train": LABELS}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x_train": PIXELS}, ["labels", "train", "x_train", "y, labels, label"]),
        (KERAS | {"y_train": LABELS[:5]}, ["y_train", "5", "6 images"]),
        (KERAS | {"y_train": LABELS - 1}, ["image 0 ", "label -1", "0 to 1", "2 labels"]),
        (KERAS | {"y_train": LABELS * 2}, ["5 class", "2 without an image (1, 3)"]),
        (KERAS | {"y_train": LABELS * 10**12}, ["label 1000000000000", "0 to 6"]),
        (KERAS | {"y_train": LABELS * 0}, ["1 class", "at least 2"]),
        (KERAS | {"y_train": LABELS / 2}, ["y_train", "float64", "(6,)", "integers"]),
        (KERAS | {"y_train": LABELS.astype(float)}, ["float64", "y.astype(np.int64)"]),
        (
            KERAS | {"y_train": LABELS.astype(str)},
            ["class_names, y = np.unique(y, return_inverse=True)"],
        ),
        (KERAS | {"y_train": np.eye(3, dtype=int)[LABELS]}, ["(6, 3)", "y.argmax(axis=1)"]),
        (KERAS | {"x_train": PIXELS.swapaxes(1, 3)}, ["(6, 3, 7, 5)", "transpose(0, 2, 3, 1)"]),
        (KERAS | {"x_train": PIXELS[:0]}, ["no pixels", "(0, 5, 7, 3)"]),
        (KERAS | {"x_train": np.array([b"a", None])}, ["x_train", "Python objects"]),
        (
            KERAS | {"class_names": np.array(["a", "b"])},
            ["image 2 ", "label 2", "0 to 1", "2 labels"],
        ),
        (KERAS | {"class_names": np.array(["a", "b", "a"])}, ["class a twice"]),
        (KERAS | {"class_names": np.arange(3)}, ["class_names", "int64", "text"]),
        ({"a": LABELS}, ["train", "keys are a"]),
        (encoded(), ["keys are jpeg, offsets", "/{split}.npz"]),
    ],
)
def test_invalid_arrays_in_one_file_are_one_sentence(arrays, words, tmp_path):
    spec = save(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError) as caught:
        open_source(spec, "train")
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


OFFSETS = encoded()["offsets"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"offsets": OFFSETS[1:]}, [f"0 to {OFFSETS[-1]}"]),
        ({"offsets": OFFSETS[:-1]}, [f"0 to {OFFSETS[-1]}"]),
        ({"offsets": OFFSETS[[0, 2, 1, 3, 4, 5, 6]]}, ["offsets", "increasing"]),
        ({"offsets": OFFSETS / 1}, ["offsets", "float64", "(7,)", "N + 1"]),
        ({"offsets": OFFSETS[:1]}, ["offsets", "(1,)", "N + 1"]),
        ({"offsets": OFFSETS[:1], "jpeg": np.zeros(0, np.uint8)}, ["offsets", "(1,)", "N + 1"]),
        ({"jpeg": encoded()["jpeg"].astype(np.int8)}, ["jpeg", "int8"]),
        ({"jpeg": encoded()["jpeg"][None]}, ["jpeg", "(1, "]),
        ({"labels": LABELS[:4]}, ["4 labels", "6 images"]),
    ],
)
def test_invalid_encoded_images_are_refused(changes, words, tmp_path):
    save(tmp_path / "train.npz", **encoded(**changes))
    with pytest.raises(DataError) as caught:
        open_source(f"npz:{tmp_path}", "train")
    assert all(word in str(caught.value) for word in words), caught.value


def test_offsets_of_empty_files_are_allowed(tmp_path):
    """An empty file is a damaged image, and no reason to refuse the set."""
    offsets = OFFSETS.copy()
    offsets[1] = 0
    save(tmp_path / "train.npz", **encoded(offsets=offsets))
    source = open_source(f"npz:{tmp_path}", "train")
    assert [len(source[i].image) for i in range(2)] == [0, OFFSETS[2]]


def test_a_missing_split_file_or_folder_is_named(tmp_path):
    spec = save(tmp_path / "only_train.npz", **encoded())
    with pytest.raises(MissingSplitError, match="val or valid or validation or test"):
        open_source(f"npz:{tmp_path}", "val")
    with pytest.raises(MissingSplitError, match=r"only_\{split\}.npz not found; tried test"):
        open_source(f"npz:{tmp_path}/only_{{split}}.npz", "test")
    with pytest.raises(DataError, match=r"nowhere.npz not found"):
        open_source(f"npz:{tmp_path / 'nowhere.npz'}", "train")
    spec = save(tmp_path / "keras.npz", **KERAS)
    with pytest.raises(MissingSplitError, match="test; its keys are x_train, y_train"):
        open_source(spec, "test")


def test_damaged_files_are_named(tmp_path):
    file = tmp_path / "train.npz"

    def refused(words):
        with pytest.raises(DataError, match=words):
            open_source(f"npz:{tmp_path}", "train")

    for content in (b"<html>", b""):
        file.write_bytes(content)
        refused(r"train\.npz is not an \.npz file")
    np.save(tmp_path / "one.npy", LABELS)
    os.replace(tmp_path / "one.npy", file)
    refused(r"train\.npz is not an \.npz file")
    np.savez(file, x=PIXELS, y=LABELS)
    whole = bytearray(file.read_bytes())
    whole[300] ^= 1  # a pixel: the file's own crc32 shows it
    file.write_bytes(whole)
    refused(r"x in .*train\.npz is corrupt: Bad CRC-32")
    file.write_bytes(whole[: len(whole) // 2])
    refused(r"train\.npz is not an \.npz file or is truncated")


def test_cifar10_as_jpeg_is_read_as_its_readme_says():
    beside = Path(__file__).parents[2] / "../shared/data"
    folder = Path(os.environ.get("GNET_SHARED_DATA", beside))
    if not (folder / "cifar10_jpeg_train.npz").is_file():
        pytest.skip(f"there is no cifar10_jpeg_train.npz in {folder} (GNET_SHARED_DATA)")
    spec = f"npz:{folder}/cifar10_jpeg_{{split}}.npz"
    train, val = open_source(spec, "train"), open_source(spec, "val")
    assert (len(train), len(val), val.split) == (50_000, 10_000, "test")
    assert train.class_names[:3] == val.class_names[:3] == ("airplane", "automobile", "bird")
    assert {decode(train[i].image).size for i in (0, 1, 49_999)} == {(32, 32)}
