"""What a config feeds its training steps with: the batches, and what is done to their pixels."""

from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import jax

from gnet_jax.config import Config
from gnet_jax.data import Batch, Source, train_batches
from gnet_jax.data.augment import augment


def training_batches(
    config: Config, source: Source, **options: Any
) -> Generator[Batch, None, None]:
    """The training batches of `config`; `options` are those of `train_batches` that are no field of
    it, such as `start_step`, `host` and `hosts`.
    """
    return train_batches(
        source,
        batch_size=config.batch_size,
        preprocessing=config.data.preprocessing,
        augmentation=config.augment,
        decoder=config.data.decoder,
        seed=config.seed,
        threads=config.data.threads,
        workers=config.data.workers,
        **options,
    )


def augmentation(config: Config, num_classes: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns `(images, labels, key, offset=0) -> (inputs, targets)`; see `augment`."""
    return partial(
        augment,
        preprocessing=config.data.preprocessing,
        augmentation=config.augment,
        num_classes=num_classes,
    )
