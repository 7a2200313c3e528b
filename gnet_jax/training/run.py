"""A run made ready: everything checked and opened that can be before anything is compiled."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gnet_jax.config import Config, ConfigError, check
from gnet_jax.data import Source, open_source, preprocess
from gnet_jax.model import GoogLeNet, architecture, init_variables, smallest_size
from gnet_jax.training.optimizer import Optimizer, make_optimizer
from gnet_jax.training.sharding import check_batch_size, data_mesh, put_state, replicated
from gnet_jax.training.step import TrainState, create_state, eval_step, train_step


@dataclasses.dataclass(frozen=True)
class Run:
    """What a config names, opened: data, network, optimiser, mesh, and the number of steps."""

    config: Config
    train: Source
    val: Source
    model: GoogLeNet
    optimizer: Optimizer
    mesh: Mesh
    steps_per_epoch: float
    total_steps: int

    @property
    def eval_batch_size(self) -> int:
        """Images of one evaluation step, over all devices and hosts."""
        return self.config.eval_batch_size or self.config.batch_size

    def train_step(self) -> Any:
        """The pure training step `(state, batch) -> (state, metrics)`."""
        d = self.config.data
        return partial(
            train_step,
            model=self.model,
            optimizer=self.optimizer,
            preprocess=partial(preprocess, preprocessing=d.preprocessing, flip=d.flip),
            loss=self.config.loss,
            accumulate=self.config.optim.accumulate,
        )

    def eval_step(self) -> Any:
        """The pure evaluation step `(state, batch) -> sums`."""
        pixels = partial(preprocess, preprocessing=self.config.data.preprocessing)
        return partial(eval_step, model=self.model, preprocess=pixels)

    def initial_state(self) -> TrainState:
        """The state in front of step 0, on every device of the mesh."""
        config = self.config
        variables = init_variables(
            self.model, jax.random.PRNGKey(config.seed), config.data.image_size
        )
        return put_state(create_state(variables, self.optimizer, config.seed), self.mesh)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and sharding of the state; nothing is computed."""

        def fresh() -> TrainState:
            size = self.config.data.image_size
            images = jnp.zeros((1, size, size, 3))
            variables = self.model.init(jax.random.PRNGKey(0), images)
            return create_state({"batch_stats": {}} | dict(variables), self.optimizer, 0)

        whole = replicated(self.mesh)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), jax.eval_shape(fresh)
        )

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a global training batch."""
        size, images = self.config.data.image_size, self.config.batch_size
        return {
            "image": jax.ShapeDtypeStruct((images, size, size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((images,), jnp.int32),
            "mask": jax.ShapeDtypeStruct((images,), jnp.bool_),
        }


def prepare(config: Config) -> Run:
    """The run that `config` describes.

    Raises:
        ConfigError, DataError: for anything that would fail later; nothing was compiled or written.
    """
    check(config)
    mesh = data_mesh()
    check_batch_size("batch_size", config.batch_size, mesh, config.optim.accumulate)
    if config.eval_batch_size is not None:
        check_batch_size("eval_batch_size", config.eval_batch_size, mesh)
    train, val = (open_source(config.data.source, split) for split in ("train", "val"))
    if train.class_names != val.class_names:
        odd = sorted(set(train.class_names) ^ set(val.class_names))
        raise ConfigError(
            f"the splits of {config.data.source} name different classes: {', '.join(odd[:5])}"
        )
    steps_per_epoch = len(train) / config.batch_size
    total_steps = max(1, round(config.epochs * steps_per_epoch))
    return Run(
        config=config,
        train=train,
        val=val,
        model=_model(config, len(train.class_names)),
        optimizer=make_optimizer(config.optim, steps_per_epoch, total_steps),
        mesh=mesh,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )


def _model(config: Config, classes: int) -> GoogLeNet:
    m = config.model
    wanted = classes if m.num_classes is None else m.num_classes
    if wanted < classes:
        raise ConfigError(f"model.num_classes is {wanted}, but the data has {classes} classes")
    try:
        arch = architecture(
            m.variant,
            wanted,
            reduction_factor=m.reduction_factor,
            width_multiplier=m.width_multiplier,
            aux_after=m.aux_after,
            head=m.head,
            dropout=m.dropout,
            aux_dropout=m.aux_dropout,
            stem=m.stem,
        )
    except ValueError as error:
        raise ConfigError(f"model.{error}") from error
    size, smallest = config.data.image_size, smallest_size(arch)
    if size < smallest:
        raise ConfigError(
            f"data.image_size {size} is too small for this net; the smallest that works is "
            f"{smallest}" + (", or less with model.stem small" if arch.stem == "imagenet" else "")
        )
    return GoogLeNet(arch, dtype=jnp.dtype(m.dtype))
