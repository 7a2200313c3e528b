"""The model that `--init` names, to pass to `prepare`: `prepare(*with_start(config))`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from gnet_jax.config import Config, ConfigError, Preprocessing

if TYPE_CHECKING:
    from gnet_jax.training.finetune import Pretrained


def with_start(config: Config) -> tuple[Config, "Pretrained | None"]:
    """Returns `config` and the model that `config.init` names; None if it names none.

    The returned config has the model's preprocessing, because it belongs to the weights.

    Raises:
        WeightsError: if the model cannot be read.
        ConfigError: as `with_preprocessing`, or if a checkpoint is corrupt.
    """
    if config.init is None:
        return config, None
    from gnet_jax.convert.read import read
    from gnet_jax.training.finetune import Pretrained

    found = read(Path(config.init).expanduser())
    pretrained = Pretrained(found.model, found.variables, found.class_names)
    return with_preprocessing(config, found.preprocessing), pretrained


def with_preprocessing(config: Config, preprocessing: Preprocessing) -> Config:
    """Returns `config` with the preprocessing that the pretrained weights need.

    Raises:
        ConfigError: if `config` sets another one.
    """
    default, needed = Preprocessing(), dataclasses.asdict(preprocessing)
    for name, value in needed.items():
        given = getattr(config.data, name)
        if given not in (getattr(default, name), value):
            raise ConfigError(
                f"data.{name} is {given}, but the weights of --init were trained with {value}; "
                f"remove data.{name}"
            )
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **needed))
