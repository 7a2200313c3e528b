import io

import numpy as np
import pytest
from PIL import Image

from gnet_jax.data.decode import decode
from gnet_jax.data.sources import DataError, open_source


def png(value, size=(7, 9)):
    file = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(file, "PNG")
    return file.getvalue()


def test_the_split_of_the_digits_never_changes():
    train, val = open_source("digits", "train"), open_source("digits", "val")
    assert (len(train), len(val)) == (1437, 360)
    assert train.class_names == val.class_names == tuple("0123456789")
    assert train.fingerprint() == "3b5d4b834352dc23"
    assert val.fingerprint() == "69e957c18a47c243"
    images = {train[i].image.tobytes() for i in range(len(train))}
    shared = sum(val[i].image.tobytes() in images for i in range(len(val)))
    assert shared == 0
    assert {val[i].label for i in range(len(val))} == set(range(10))
    assert max(val[i].image.max() for i in range(len(val))) == 255


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for value, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                (tmp_path / split / name / f"{i}.JPG").write_bytes(png(10 * value + i))
            (tmp_path / split / name / "notes.txt").write_text("not an image")
    return tmp_path


def test_a_folder_gives_its_files_by_class(folder):
    source = open_source(f"folder:{folder}", "train")
    assert source.class_names == ("cat", "dog")
    assert [source[i].label for i in range(len(source))] == [0, 0, 0, 1, 1, 1]
    values = [np.asarray(decode(source[i].image))[0, 0, 0] for i in range(len(source))]
    assert values == [0, 1, 2, 10, 11, 12]


def test_the_fingerprint_of_a_folder_follows_its_files(folder):
    before = open_source(f"folder:{folder}", "train").fingerprint()
    assert open_source(f"folder:{folder}", "train").fingerprint() == before
    (folder / "train" / "dog" / "3.jpg").write_bytes(png(5))
    assert open_source(f"folder:{folder}", "train").fingerprint() != before


def test_missing_parts_of_a_folder_are_named(folder, tmp_path):
    with pytest.raises(DataError, match="nowhere/train not found"):
        open_source(f"folder:{tmp_path / 'nowhere'}", "train")
    (folder / "train" / "owl").mkdir()
    with pytest.raises(DataError, match="owl has no image files"):
        open_source(f"folder:{folder}", "train")
    lone = tmp_path / "lone" / "train" / "cat"
    lone.mkdir(parents=True)
    (lone / "0.jpg").write_bytes(png(5))
    with pytest.raises(DataError, match=r"1 image files in 1 class.*requires 2"):
        open_source(f"folder:{tmp_path / 'lone'}", "train")


@pytest.mark.parametrize("spec", ["mnist", "folder:", "digits:x", ""])
def test_an_unknown_source_is_named(spec):
    with pytest.raises(
        DataError, match=f"{spec!r} is none of digits, folder:PATH, npz:PATH, tfds:NAME"
    ):
        open_source(spec, "train")


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """A TFDS image set of ten and five examples, prepared here as array_record."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyShapes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["round", "square"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(10), "test": self._generate_examples(5)}

        def _generate_examples(self, count=0):
            for i in range(count):
                yield i, {"image": io.BytesIO(png(20 * i)), "label": i % 2}

    folder = tmp_path_factory.mktemp("tfds")
    builder = TinyShapes(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return folder


def test_a_tfds_set_is_read_at_random_still_encoded(tfds_folder, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
    train, val = (open_source("tfds:tiny_shapes", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (10, 5)
    assert train.class_names == ("round", "square")
    examples = [train[i] for i in (3, 0, 9, 3)]
    assert all(e.image.startswith(b"\x89PNG") for e in examples)
    assert examples[0] == examples[3]
    for example in (train[i] for i in range(10)):
        assert decode(example.image).getpixel((0, 0))[0] // 20 % 2 == example.label
    assert train.fingerprint() != val.fingerprint()


def test_a_tfds_set_that_is_unknown_or_not_prepared_is_named(tfds_folder, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
    with pytest.raises(DataError, match="no data set named 'no_such_set'"):
        open_source("tfds:no_such_set", "train")
    with pytest.raises(DataError, match="cifar10 is not prepared in"):
        open_source("tfds:cifar10", "train")
