import dataclasses

import pytest

from gnet_jax.config import Config, ConfigError, DataConfig, Preprocessing
from gnet_jax.convert.start import with_preprocessing

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
