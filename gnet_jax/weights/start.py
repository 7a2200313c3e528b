"""A run that a configuration names, with the model that it starts from."""

import dataclasses

from gnet_jax.config import Config
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
    own = {
        field.name: getattr(folder.preprocessing, field.name)
        for field in dataclasses.fields(folder.preprocessing)
    }
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **own))
    return prepare(config, Pretrained(folder.model, folder.variables, folder.class_names))
