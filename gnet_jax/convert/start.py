"""Loads the model that `--init` names; use it as `prepare(*with_start(config))`."""

import dataclasses

from gnet_jax.config import Config, ConfigError, Preprocessing
from gnet_jax.config.paths import typed_path
from gnet_jax.model_folder.folder import TrainedModel


def with_start(config: Config) -> tuple[Config, TrainedModel | None]:
    """Returns `config`, and the model that `config.init` names (None if `init` is None).

    The returned config has the preprocessing of the model. Raises WeightsError or ConfigError if
    the model cannot be read or is corrupt, and ConfigError if `config` sets other preprocessing.
    """
    if config.init is None:
        return config, None
    if config.optim.mirrored_pairs:  # said before a download
        raise ConfigError(
            f"init is {config.init}, but optim.mirrored_pairs is only for training from scratch; "
            "leave out init, or use --optim.mirrored-pairs False"
        )
    from gnet_jax.convert.read import read

    pretrained = read(typed_path(config.init))
    return with_preprocessing(config, pretrained.preprocessing), pretrained


def with_preprocessing(config: Config, preprocessing: Preprocessing) -> Config:
    """Returns `config` with this preprocessing; raises ConfigError if `config` sets another one."""
    default, needed = Preprocessing(), dataclasses.asdict(preprocessing)
    for name, value in needed.items():
        given = getattr(config.data, name)
        if given not in (getattr(default, name), value):
            raise ConfigError(
                f"data.{name} is {given}, but the weights of --init were trained with {value}; "
                f"remove data.{name}"
            )
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **needed))
