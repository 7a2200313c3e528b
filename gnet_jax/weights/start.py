"""A run that a configuration names, with the model that it starts from."""

import dataclasses

from gnet_jax.config import Config, Preprocessing
from gnet_jax.training.finetune import Pretrained
from gnet_jax.training.run import Run, prepare
from gnet_jax.weights.folder import read_folder


def prepare_run(config: Config) -> Run:
    """`prepare(config)`, from the model folder `config.init` where there is one.

    Raises:
        WeightsError: as `read_folder`.
        ConfigError, DataError: as `prepare`.
    """
    return prepare(*with_start(config))


def with_start(config: Config) -> tuple[Config, Pretrained | None]:
    """`config` with the model of the folder `config.init`, None where it names none.

    The preprocessing belongs to the weights: that of the folder takes the place of the config's.

    Raises:
        WeightsError: as `read_folder`.
    """
    if config.init is None:
        return config, None
    folder = read_folder(config.init)
    config = with_preprocessing(config, folder.preprocessing)
    return config, Pretrained(folder.model, folder.variables, folder.class_names)


def with_preprocessing(config: Config, preprocessing: Preprocessing) -> Config:
    """`config`, its images prepared as `preprocessing` says."""
    own = {
        field.name: getattr(preprocessing, field.name)
        for field in dataclasses.fields(preprocessing)
    }
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **own))
