import dataclasses
import types
from pathlib import Path

import pytest

from gnet_jax.config import Config, ConfigError, DataConfig, OptimConfig, Preprocessing
from gnet_jax.convert import read as read_module
from gnet_jax.convert.start import with_preprocessing, with_start

CAFFE = Preprocessing(image_size=96, channels="BGR", mean=(104.0, 117.0, 123.0))


def test_the_preprocessing_of_the_weights_takes_the_place_of_the_usual_one():
    config = with_preprocessing(Config(data=DataConfig(source="folder:photos", threads=2)), CAFFE)
    assert config.data.preprocessing == CAFFE
    assert (config.data.source, config.data.threads) == ("folder:photos", 2)
    assert with_preprocessing(config, CAFFE) == config


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"image_size": 128}, "data.image_size is 128, .* 96; "),
        ({"std": (2.0, 2.0, 2.0)}, r"data.std is \(2.0, 2.0, 2.0\), .* \(1.0, 1"),
    ],
)
def test_another_preprocessing_than_that_of_the_weights_is_refused(asked, message):
    config = Config(data=dataclasses.replace(DataConfig(), **asked))
    with pytest.raises(ConfigError, match=message):
        with_preprocessing(config, CAFFE)


def test_without_init_nothing_is_read_and_with_it_the_named_model(monkeypatch):
    asked, model = [], types.SimpleNamespace(preprocessing=CAFFE)
    monkeypatch.setattr(read_module, "read", lambda file: asked.append(file) or model)
    assert with_start(Config()) == (Config(), None)
    assert not asked
    config, found = with_start(Config(init="~/weights"))
    assert found is model
    assert config.data.preprocessing == CAFFE
    with_start(Config(init="~nobody-here/weights"))
    assert asked == [Path.home() / "weights", Path("~nobody-here/weights")]
    with pytest.raises(ConfigError, match=r"^init is caffe, .*--optim\.mirrored-pairs False"):
        with_start(Config(init="caffe", optim=OptimConfig(mirrored_pairs=True)))
    assert len(asked) == 2
