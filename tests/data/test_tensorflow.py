"""ImageNet as TensorFlow and tensorflow-datasets themselves prepare and read it."""

import numpy as np
import pytest

from gnet_jax.data.decode import decode
from gnet_jax.data.prepare.tfds import prepare
from gnet_jax.data.sources.tfds import TfdsSource
from tests.data.ilsvrc_tars import CMYK, LABELS, PNG, train_images, write_tars


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    write_tars(folder)
    return folder


@pytest.fixture(scope="module", params=["array_record", "tfrecord"])
def prepared(request, tars, tmp_path_factory):
    """The set as tensorflow-datasets prepares it, as this project does, and the format."""
    pytest.importorskip("tensorflow", reason="TensorFlow, the oracle, is not installed")
    import tensorflow_datasets as tfds

    theirs, ours = (tmp_path_factory.mktemp(name) for name in ("theirs", "ours"))
    builder = tfds.builder("imagenet2012", data_dir=str(theirs), file_format=request.param)
    config = tfds.download.DownloadConfig(manual_dir=str(tars))
    builder.download_and_prepare(download_config=config)
    prepare("imagenet2012", data_dir=ours, manual_dir=tars, file_format=request.param, subset=True)
    return theirs, ours, request.param


@pytest.mark.parametrize("split", ["train", "val"])
def test_both_prepare_the_same_set(prepared, split):
    theirs, ours = (TfdsSource("imagenet2012", split, folder) for folder in prepared[:2])
    assert theirs.class_names == ours.class_names
    assert len(theirs) == len(ours)
    odd = 0
    for i in range(len(ours)):
        assert ours.describe(i) == theirs.describe(i)
        assert ours[i].label == theirs[i].label
        if ours[i].image != theirs[i].image:  # two encoders, one picture
            odd += 1
            difference = np.subtract(decode(ours[i].image), decode(theirs[i].image), dtype=int)
            assert np.abs(difference).mean() < 4
    assert odd == (2 if split == "train" else 0)


def test_tensorflow_reads_what_was_prepared_here(prepared):
    _, ours, file_format = prepared
    if file_format != "tfrecord":
        pytest.skip("TensorFlow reads TFRecord files only")
    import tensorflow_datasets as tfds

    originals, found = train_images(), {}
    encoded = {"image": tfds.decode.SkipDecoding()}
    data = tfds.load("imagenet2012", split="train", data_dir=str(ours), decoders=encoded)
    for example in tfds.as_numpy(data):
        name = example["file_name"].decode()
        found[name] = example["image"]
        assert example["label"] == LABELS[name.split("_")[0]]
    assert set(found) == set(originals)
    plain = set(originals) - {PNG, CMYK}
    assert all(found[name] == originals[name] for name in plain)
    for example in tfds.as_numpy(tfds.load("imagenet2012", split="validation", data_dir=str(ours))):
        assert example["image"].shape == (32, 40, 3)
