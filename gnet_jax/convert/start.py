"""A run that a configuration names, with the model that it starts from."""

import dataclasses
from pathlib import Path

from gnet_jax.config import Config, ConfigError, Preprocessing
from gnet_jax.convert.read import read
from gnet_jax.training.finetune import Pretrained
from gnet_jax.training.program import Run, prepare


def prepare_run(config: Config) -> Run:
    """`prepare(config)`, starting from the model `config.init` if it names one.

    Raises:
        WeightsError: as `read`.
        ConfigError, DataError: as `prepare`.
    """
    return prepare(*with_start(config))


def with_start(config: Config) -> tuple[Config, Pretrained | None]:
    """Returns `config` and the model that `config.init` names, None if it names none.

    The preprocessing belongs to the weights: the model's replaces that of the config.

    Raises:
        WeightsError: as `read`.
        ConfigError: as `with_preprocessing`, or if a checkpoint is damaged.
    """
    if config.init is None:
        return config, None
    folder = read(Path(config.init).expanduser())
    config = with_preprocessing(config, folder.preprocessing)
    return config, Pretrained(folder.model, folder.variables, folder.class_names)


def with_preprocessing(config: Config, preprocessing: Preprocessing) -> Config:
    """`config`, its images prepared as `preprocessing` says.

    Raises:
        ConfigError: if `config` asks for another preparation, which the weights do not know.
    """
    usual, asked = Preprocessing(), config.data
    for field in dataclasses.fields(preprocessing):
        name, value = field.name, getattr(asked, field.name)
        if value not in (getattr(usual, name), getattr(preprocessing, name)):
            raise ConfigError(
                f"data.{name} is {value}, but the images are prepared as the weights of --init "
                f"were trained, with {getattr(preprocessing, name)}; leave it out"
            )
    own = {
        field.name: getattr(preprocessing, field.name)
        for field in dataclasses.fields(preprocessing)
    }
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **own))
