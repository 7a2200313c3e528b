"""TFDS sets in both formats: what is read, what is refused, and what damage is noticed."""

import hashlib
import pickle
import re
import resource

import numpy as np
import pytest

from gnet_jax.config import AugmentConfig, Config, Preprocessing, UserError
from gnet_jax.data.batches import BadRecords, batch_indices, eval_batches, train_batches
from gnet_jax.data.check import scan
from gnet_jax.data.decode import ImageError, decode
from gnet_jax.data.prepare.shards import SplitPlan, write_set
from gnet_jax.data.sources import DataError, open_source, tfds
from gnet_jax.data.sources.tfds import TfdsSource, open_builder
from tests.data.ilsvrc_tars import encoded, picture

FORMATS = ("array_record", "tfrecord")
COUNTS = (3, 3, 4)
PLAN = (0, 3, 6, 10)


def write(folder, file_format="array_record", name="shapes", image=None, label=None, stored=None):
    """A set of ten and four examples, label i % 2, whose images come of `stored(i)`."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": image or tfds.features.Image(),
            "label": label or tfds.features.ClassLabel(names=["round", "square"]),
        }
    )
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name,
        version=tfds.core.Version("1.0.0"),
        data_dir=str(folder / name / "1.0.0"),
        module_name="",
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    info.set_file_format(file_format)

    def record(i):
        image = encoded(picture(i), "PNG") if stored is None else stored(i)
        return features.serialize_example({"image": image, "label": i % 2})

    plans = [SplitPlan("train", PLAN, record), SplitPlan("test", (0, 4), record)]
    write_set(info, plans, origin="test", size=0, threads=2)
    return folder / name / "1.0.0"


@pytest.fixture(params=FORMATS)
def shapes(request, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return write(tmp_path, request.param)


def test_a_record_that_cannot_be_read_is_named_in_the_fingerprint(shapes, monkeypatch):
    source = open_source("tfds:shapes", "train")

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(type(source._records), "__getitem__", fail)
    with pytest.raises(DataError, match=r"cannot read example 0 of .*Input/output error"):
        source.fingerprint()


def shard(folder, number=1):
    return next(folder.glob(f"shapes-train.*-{number:05d}-of-00003"))


def test_examples_are_read_at_random_still_encoded(shapes):
    source = open_source("tfds:shapes", "train")
    for i in (9, 0, 5, 9):
        assert source[i] == (encoded(picture(i), "PNG"), i % 2)
    assert source.class_names == ("round", "square")
    assert len(open_source("tfds:shapes", "val")) == 4
    assert re.fullmatch(
        r"example 5 of shapes/1.0.0 train \(number 2 in shapes-train.*-00001-of-00003\)",
        source.describe(5),
    )
    with pytest.raises(IndexError):
        source[10]
    assert pickle.loads(pickle.dumps(source))[7] == source[7]  # worker processes get it so


def test_the_fingerprint_is_of_the_data_and_not_of_their_format(tmp_path):
    prints = set()
    for file_format in FORMATS:
        write(tmp_path / file_format, file_format)
        prints.add(TfdsSource("shapes", "train", tmp_path / file_format).fingerprint())
    assert len(prints) == 1
    write(tmp_path / "other", stored=lambda i: encoded(picture(i + 1), "PNG"))
    assert TfdsSource("shapes", "train", tmp_path / "other").fingerprint() not in prints


def test_the_fingerprint_covers_the_first_hundred_examples(tmp_path):
    from tensorflow_datasets.proto import tf_example_pb2

    def record(image):
        example = tf_example_pb2.Example()
        example.features.feature["image"].bytes_list.value.append(image)
        example.features.feature["label"].int64_list.value.append(1)
        return example.SerializeToString()

    write(tmp_path)
    source = TfdsSource("shapes", "train", tmp_path)
    records = source._records = [record(b"%d" % i) for i in range(101)]
    known = source.fingerprint()
    parts = [b"shapes/1.0.0 train [3, 3, 4]", *(b"%d\x01" % i for i in range(100))]
    assert known == hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    records[100] = record(b"other")
    assert source.fingerprint() == known
    records[99] = record(b"other")
    assert source.fingerprint() != known


@pytest.mark.parametrize("file_format", FORMATS)
def test_grey_images_of_one_channel_are_read(tmp_path, file_format):
    """As MNIST has them."""
    import tensorflow_datasets as tfds

    image = tfds.features.Image(shape=(32, 40, 1))
    write(
        tmp_path, file_format, image=image, stored=lambda i: encoded(picture(i).convert("L"), "PNG")
    )
    source = TfdsSource("shapes", "train", tmp_path)
    grey = picture(3).convert("L").convert("RGB")
    np.testing.assert_array_equal(decode(source[3].image), grey)


def test_sets_other_than_image_classification_are_refused(tmp_path):
    import tensorflow_datasets

    kinds = tensorflow_datasets.features
    write(tmp_path, name="texts", image=kinds.Text(), stored=lambda i: "an image")
    write(tmp_path, name="numbers", label=kinds.Scalar(np.int64))
    for name in ("texts", "numbers"):
        with pytest.raises(DataError, match=f"{name} is not an image classification set"):
            TfdsSource(name, "train", tmp_path)
    label = kinds.ClassLabel(names=["a", "b"])
    deep = {"image": kinds.Image(shape=(32, 40, 1), dtype=np.uint16), "label": label}
    assert tfds.class_names("deep", deep) == ("a", "b")
    depth = kinds.Image(shape=(32, 40, 1), dtype=np.float32)
    for features in ({"image": depth, "label": kinds.ClassLabel(num_classes=2)}, None):
        with pytest.raises(DataError, match="depths"):
            tfds.class_names("depths", features)


@pytest.mark.parametrize("file_format", ["riegeli", "parquet"])
def test_other_formats_are_named(tmp_path, file_format):
    info = write(tmp_path) / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', f'"{file_format}"'))
    with pytest.raises(DataError, match=f"{file_format}.*array_record or tfrecord"):
        TfdsSource("shapes", "train", tmp_path)


def test_a_bucket_of_data_is_refused_with_a_way_out(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket/sets")
    with pytest.raises(UserError, match=r"TFDS_DATA_DIR is gs://bucket/sets.*gcsfuse"):
        TfdsSource("shapes", "train")


def test_a_flipped_bit_is_noticed_in_either_format(shapes):
    """Decoders notice few of them."""
    file = shard(shapes)
    source = TfdsSource("shapes", "train", shapes.parents[1])
    sound = source.fingerprint()
    content = bytearray(file.read_bytes())
    at = content.index(encoded(picture(4), "PNG")[60:80])
    content[at] ^= 1
    file.write_bytes(content)
    with pytest.raises(ImageError, match="a corrupt record: "):
        source[4]
    assert source[3] == (encoded(picture(3), "PNG"), 1)
    assert source.fingerprint() != sound
    found = scan("tfds:shapes")  # of TFDS_DATA_DIR
    assert [record.index for record in found.splits[0].bad] == [4]
    assert "a corrupt record: " in found.splits[0].bad[0].reason
    assert [split.split for split in found.splits] == ["train", "test"]


def test_a_damaged_record_is_replaced_in_training_and_left_out_in_evaluation(shapes):
    file = shard(shapes)
    content = bytearray(file.read_bytes())
    content[content.index(encoded(picture(4), "PNG")[60:80])] ^= 1
    file.write_bytes(content)
    source = TfdsSource("shapes", "train", shapes.parents[1])
    options = {"batch_size": 10, "preprocessing": Preprocessing(image_size=24, resize_to=24)}
    whole = AugmentConfig(crop_area=(1.0, 1.0), crop_aspect=(0.1, 10.0))
    bad = BadRecords(source, limit=0.1)
    batch = next(train_batches(source, augmentation=whole, seed=0, bad=bad, **options))
    (place,) = (batch_indices(10, Config(batch_size=10, seed=0), 1) == 4).nonzero()[0]
    assert batch["label"][place] == 1  # of example 5
    assert batch["mask"].all()
    assert [record.index for record in bad] == [4]
    bad = BadRecords(source, limit=0.1)
    (batch,) = eval_batches(source, bad=bad, **options)
    assert batch["mask"].tolist() == [i != 4 for i in range(10)]
    assert [record.index for record in bad] == [4]
    with pytest.raises(DataError, match=r"number 1 in shapes-train.*: a corrupt record: "):
        next(eval_batches(source, **options))


@pytest.mark.parametrize("harm", ["missing", "cut short", "empty"])
def test_missing_and_cut_files_are_named_at_the_start(shapes, harm):
    file = shard(shapes)
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:500] if harm == "cut short" else b"")
    with pytest.raises(DataError, match=re.escape(file.name)):
        open_source("tfds:shapes", "train")
    assert len(open_source("tfds:shapes", "val")) == 4


def test_every_file_is_counted_not_only_their_sum(shapes):
    """Two files that are mistaken for each other have the right sum."""
    first, last = shard(shapes, 0), shard(shapes, 2)
    content = first.read_bytes()
    first.write_bytes(last.read_bytes())
    last.write_bytes(content)
    with pytest.raises(DataError, match="00000-of-00003 has 4 records instead of 3"):
        open_source("tfds:shapes", "train")


def test_a_record_without_an_image_is_damaged(tmp_path):
    write(tmp_path)
    source = TfdsSource("shapes", "train", tmp_path)
    for record in (b"", b"\xff\xff no message"):
        source._records = [record]
        with pytest.raises(ImageError, match="has no image with a label"):
            source[0]


def test_a_set_of_a_thousand_files_may_keep_them_open(tmp_path, monkeypatch):
    limits = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda what: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda what, new: limits.append(new))
    tfds._allow_open_files(100)
    assert limits == [(1024, 4096)]
    tfds._allow_open_files(1024)
    assert limits == [(1024, 4096), (4096, 4096)]
    limits.append((1024, resource.RLIM_INFINITY))
    tfds._allow_open_files(1024)
    assert limits[-1] == (4 * 1280, resource.RLIM_INFINITY)
    for unlimited in ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), (1280, 4096)):
        limits.append(unlimited)
        tfds._allow_open_files(1024)
        assert limits[-1] == unlimited
    limits.append((1280, 4096))
    tfds._allow_open_files(1024)
    assert limits[-1] == (1280, 4096)


@pytest.mark.parametrize("name", ["mnist:9.9.9", "mnist:latest", "a b"])
def test_an_invalid_version_or_name_is_one_sentence(name, tmp_path):
    with pytest.raises(DataError, match=re.escape(name)):
        open_builder(name, tmp_path)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("name", ["x[1]", "a*?\\#% '\"\n", "\udcff"])
def test_a_set_below_any_name_is_read(tmp_path, monkeypatch, name, file_format):
    folder = tmp_path / name / name
    written = write(folder, file_format)
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    for source in (open_source("tfds:shapes", "train"), TfdsSource("shapes", "train", folder)):
        assert source[7] == (encoded(picture(7), "PNG"), 1)
        assert pickle.loads(pickle.dumps(source))[7] == source[7]
    shard(written).unlink()
    with pytest.raises(DataError) as error:
        open_source("tfds:shapes", "train")
    assert str(written) in str(error.value)
    with pytest.raises(DataError) as error:
        TfdsSource("mnist", "train", tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
