"""Sets that tensorflow-datasets prepares itself: what it lacks is said in one sentence."""

import importlib.util
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from gnet_jax.cli.main import main
from gnet_jax.data.decode import decode
from gnet_jax.data.prepare.shards import PrepareError
from gnet_jax.data.prepare.tfds import prepare
from gnet_jax.data.sources.tfds import TfdsSource
from tests.data.ilsvrc_tars import encoded, picture


class _Shapes(tfds.core.GeneratorBasedBuilder):
    """Six training images and two to test, in two classes."""

    VERSION = tfds.core.Version("1.0.0")
    image: Callable[[int], Any]  # each kind has its own

    def _info(self):
        features = {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=["round", "square"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "test": self._generate_examples(2)}

    def _generate_examples(self, count=0):
        for i in range(count):
            yield i, {"image": self.image(i), "label": i % 2}


class CodedShapes(_Shapes):
    def image(self, i):
        return io.BytesIO(encoded(picture(i), "PNG"))


class PixelShapes(_Shapes):
    def image(self, i):
        return np.asarray(picture(i))


class ManualShapes(CodedShapes):
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Sign in at example.org and get shapes.zip."

    def _split_generators(self, dl_manager):
        if not (dl_manager.manual_dir / "shapes.zip").exists():
            raise AssertionError("there is no shapes.zip")
        return super()._split_generators(dl_manager)


class RemoteShapes(CodedShapes):
    def _split_generators(self, dl_manager):
        raise ConnectionError("no network")


def test_encoded_images_need_no_tensorflow(tmp_path, capsys):
    assert main(["prepare", "tfds:coded_shapes", "--data-dir", str(tmp_path)]) == 0
    assert "6 train, 2 test images" in capsys.readouterr().out
    source = TfdsSource("coded_shapes", "train", tmp_path)
    pictures = {np.asarray(decode(source[i].image)).tobytes(): source[i].label for i in range(6)}
    assert pictures == {np.asarray(picture(i)).tobytes(): i % 2 for i in range(6)}


def test_pixels_need_tensorflow_and_that_is_said(tmp_path):
    if importlib.util.find_spec("tensorflow") is None:
        with pytest.raises(PrepareError, match=r"\[prepare\]"):
            prepare("pixel_shapes", data_dir=tmp_path)
    else:
        assert prepare("pixel_shapes", data_dir=tmp_path).images == {"train": 6, "test": 2}


def test_what_has_to_be_downloaded_by_hand_is_named(tmp_path):
    with pytest.raises(PrepareError, match=r"cannot prepare manual_shapes: .*get shapes\.zip"):
        prepare("manual_shapes", data_dir=tmp_path)
    (tmp_path / "hand").mkdir()
    (tmp_path / "hand" / "shapes.zip").touch()
    found = prepare("manual_shapes", data_dir=tmp_path, manual_dir=tmp_path / "hand")
    assert found.images == {"train": 6, "test": 2}


def test_a_download_that_fails_is_named(tmp_path):
    with pytest.raises(PrepareError, match="cannot prepare remote_shapes: no network"):
        prepare("remote_shapes", data_dir=tmp_path)
