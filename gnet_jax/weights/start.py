"""A run that a configuration names, with the model that it starts from."""

import dataclasses

from gnet_jax.config import Config, Preprocessing
from gnet_jax.training.finetune import Pretrained
from gnet_jax.training.run import Run, prepare
from gnet_jax.weights.folder import read_folder


def prepare_run(config: Config) -> Run:
    """`prepare(config)`, from the model folder `config.init` where there is one.

    The preprocessing belongs to the weights: that of the folder takes the place of the config's.

    Raises:
        WeightsError: as `read_folder`.
        ConfigError, DataError: as `prepare`.
    """
    if config.init is None:
        return prepare(config)
    folder = read_folder(config.init)
    config = with_preprocessing(config, folder.preprocessing)
    return prepare(config, Pretrained(folder.model, folder.variables, folder.class_names))


def with_preprocessing(config: Config, preprocessing: Preprocessing) -> Config:
    """`config`, its images prepared as `preprocessing` says."""
    own = {
        field.name: getattr(preprocessing, field.name)
        for field in dataclasses.fields(preprocessing)
    }
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **own))
