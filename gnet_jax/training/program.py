"""A run made ready: everything checked and opened that can be before anything is compiled."""

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gnet_jax.config import Config, ConfigError, ModelConfig, check, choose
from gnet_jax.data import DataError, Source, cropper, open_source, preprocess
from gnet_jax.data.sources.classes import empty_classes, listed, refuse_unknown
from gnet_jax.model.architecture import VARIANTS, Architecture, smallest_size
from gnet_jax.model.googlenet import GoogLeNet, abstract_variables, init
from gnet_jax.model.roles import roles_by_path
from gnet_jax.model_folder.folder import write_description
from gnet_jax.training.accumulation import accumulated_gradient
from gnet_jax.training.canonical import (
    canonical_gradient,
    check_virtual_shards,
    isolated_update,
)
from gnet_jax.training.feed import augmentation
from gnet_jax.training.finetune import Pretrained, Takeover, check_patterns, compare, take_over
from gnet_jax.training.memory import machine_memory
from gnet_jax.training.observe.diagnostics import diagnose
from gnet_jax.training.optimizer import Optimizer, make_optimizer
from gnet_jax.training.sharding import (
    AXIS,
    augment_share,
    check_batch_size,
    check_pairs,
    data_mesh,
    put_state,
    replicated,
)
from gnet_jax.training.step import TrainState, apply_update, create_state, eval_step, train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """What a config compiles to, for data of which no more than the size is known."""

    config: Config
    model: GoogLeNet
    optimizer: Optimizer
    mesh: Mesh
    steps_per_epoch: float
    total_steps: int
    pretrained: Pretrained | None
    takeover: Takeover | None  # of the pretrained model's variables

    @property
    def eval_batch_size(self) -> int:
        """Images of one evaluation step, over all devices and hosts."""
        return self.config.eval_batch_size or self.config.batch_size

    @property
    def canonical(self) -> bool:
        """Whether `train_step` is that of one device's share of the batch."""
        return is_canonical(self.config)

    def train_step(self) -> Any:
        """The pure training step `(state, batch) -> (state, metrics)`."""
        return pure_train_step(self.config, self.model, self.optimizer)

    def eval_step(self) -> Any:
        """The pure evaluation step `(state, batch) -> sums`."""
        pixels = partial(preprocess, preprocessing=self.config.data.preprocessing)
        return partial(eval_step, model=self.model, preprocess=pixels)

    def diagnose_step(self) -> Any:
        """The pure `(state, batch) -> diagnostics`."""
        return partial(
            diagnose,
            model=self.model,
            optimizer=self.optimizer,
            augment=augmentation(self.config, self.model.arch.num_classes),
            loss=self.config.loss,
        )

    @cached_property
    def shapes(self) -> dict[str, Any]:
        """Shapes and dtypes of the model's variables."""
        return abstract_variables(self.model, self.config.data.image_size)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and sharding of the state; nothing is computed."""
        whole = replicated(self.mesh)
        create = partial(create_state, optimizer=self.optimizer, seed=0)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
            jax.eval_shape(create, self.shapes),
        )

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a global training batch."""
        size, images = self.config.data.image_size, self.config.batch_size
        return {
            "image": jax.ShapeDtypeStruct((images, size, size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((images,), jnp.int32),
            "mask": jax.ShapeDtypeStruct((images,), jnp.bool_),
        }

    def initial_state(self) -> TrainState:
        """The state in front of step 0, on every device of the mesh."""
        config = self.config
        variables = init(self.model, jax.random.PRNGKey(config.seed), config.data.image_size)
        if self.pretrained is not None and self.takeover is not None:
            variables = take_over(variables, self.pretrained, self.takeover)
        # One program, where by itself every shape of an array would be compiled as one of its own.
        create = jax.jit(partial(create_state, optimizer=self.optimizer, seed=config.seed))
        return put_state(create(variables), self.mesh)


@dataclasses.dataclass(frozen=True)
class Run(Program):
    """A program with its data opened."""

    train: Source
    val: Source

    def description(self) -> dict[str, Any]:
        """Returns what every checkpoint says of the model in it, as `write_description`."""
        names = list(self.train.class_names)
        outputs = self.model.arch.num_classes
        names += [f"class {i}" for i in range(len(names), outputs)]  # model.num_classes is larger
        source = {"format": "training workdir", "data": self.config.data.source}
        if self.config.init is not None:
            source["started_from"] = self.config.init
        return write_description(self.model, self.config.data.preprocessing, names, source)


def is_canonical(config: Config) -> bool:
    """Whether the numerics of `config` are canonical."""
    return choose("numerics", config.numerics, {"fast": False, "canonical": True})


def pure_train_step(config: Config, model: GoogLeNet, optimizer: Optimizer) -> Any:
    """Returns the pure training step of `config`.

    With canonical numerics the step takes one device's share of the batch.
    """
    augment = augmentation(config, model.arch.num_classes)
    gradient, update = accumulated_gradient(config.optim.accumulate), apply_update
    if is_canonical(config):
        augment = augment_share(augment, AXIS)
        gradient = canonical_gradient(gradient, config.virtual_shards, AXIS)
        update = isolated_update
    return partial(
        train_step,
        model=model,
        optimizer=optimizer,
        augment=augment,
        loss=config.loss,
        gradient=gradient,
        update=update,
    )


def prepare(config: Config, pretrained: Pretrained | None = None) -> Run:
    """The run that `config` describes, from the weights of `pretrained` where given.

    A pretrained model brings its network: of `config.model` count the classes, the auxiliary heads,
    the dropout rates and the dtype.

    Raises:
        ConfigError, DataError: for anything that would fail later; nothing was compiled or written.
    """
    check(config)
    mesh = data_mesh()
    check_batches(config, mesh)
    cropper(config.data.decoder)
    train, val = (open_source(config.data.source, split) for split in ("train", "val"))
    for what, source in (("train on", train), ("validate on", val)):
        if not len(source):
            raise DataError(f"{config.data.source} has no image to {what}; its split is empty")
    empty = empty_classes(train)
    if empty:  # as in a small subset
        raise DataError(
            f"the {len(train):,} images to train on of {config.data.source} have none of "
            f"{listed(empty)}; each class needs an image"
        )
    program = make_program(config, train.class_names, len(train), mesh, pretrained)
    refuse_unknown(train, val, config.data.source)
    seen = len(train) * config.epochs
    if config.batch_size > seen:
        raise ConfigError(
            f"batch_size is {config.batch_size:,}, more than the {seen:,.0f} images of all epochs; "
            f"it must be at most that, and is best far below the {len(train):,} of one epoch"
        )
    parts = {field.name: getattr(program, field.name) for field in dataclasses.fields(program)}
    return Run(**parts, train=train, val=val)


def make_program(
    config: Config,
    class_names: Sequence[str],
    images: int,
    mesh: Mesh,
    pretrained: Pretrained | None = None,
) -> Program:
    """The program of `prepare`, without its data: for `images` to train on, on devices of `mesh`.

    Raises:
        ConfigError, DataError: for anything that would fail later; nothing was compiled or written.
    """
    check(config)
    check_batches(config, mesh)
    if len(class_names) < 2:
        raise DataError(
            f"{config.data.source} has {len(class_names)} class; there must be two or more to "
            "tell apart"
        )
    model = model_of(config, len(class_names), pretrained)
    shapes = _shapes(model, config.data.image_size)
    roles_by_path(shapes["params"])  # what the optimiser has no rule for is refused here
    check_patterns(config.optim.freeze, shapes["params"])
    takeover = None if pretrained is None else compare(shapes, pretrained, tuple(class_names))
    loaded = frozenset(() if takeover is None else takeover.loaded)
    steps_per_epoch = images / config.batch_size
    total_steps = max(1, round(config.epochs * steps_per_epoch))
    if total_steps >= 2**31:
        raise ConfigError(
            f"epochs is {config.epochs:g}, which are {total_steps:,} steps; they must be fewer "
            f"than {2**31:,}"
        )
    return Program(
        config=config,
        model=model,
        optimizer=make_optimizer(config.optim, steps_per_epoch, total_steps, loaded),
        mesh=mesh,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        pretrained=pretrained,
        takeover=takeover,
    )


def _shapes(model: GoogLeNet, image_size: int) -> dict[str, Any]:
    try:
        shapes = abstract_variables(model, image_size)
        if sum(4 * math.prod(x.shape) for x in jax.tree.leaves(shapes)) > machine_memory():
            raise MemoryError
    except MemoryError as error:
        raise ConfigError(
            f"the network's parameters take more than the {machine_memory() / 2**30:.1f} GiB of "
            "this machine; use a smaller model.width_multiplier, reduction_factor or num_classes"
        ) from error
    return shapes


def check_batches(config: Config, mesh: Mesh) -> None:
    """Refuse batches that do not divide over the mesh.

    Raises:
        ConfigError: naming the batch, the devices and the nearest batches that work.
    """
    if is_canonical(config):
        parts = math.lcm(config.optim.accumulate, 2 if config.augment.mixup else 1)
        check_virtual_shards(config.batch_size, config.virtual_shards, mesh.size, parts)
    check_batch_size("batch_size", config.batch_size, mesh, config.optim.accumulate)
    if config.augment.mixup:
        check_pairs(config.batch_size, mesh, config.optim.accumulate)
    if config.eval_batch_size is not None:
        check_batch_size("eval_batch_size", config.eval_batch_size, mesh)


def model_of(config: Config, classes: int, pretrained: Pretrained | None = None) -> GoogLeNet:
    """The network of a config for data of `classes` classes, or that of `pretrained`.

    Raises:
        ConfigError: for a network that cannot be, or images too small for it.
    """
    m = config.model
    wanted = classes if m.num_classes is None else m.num_classes
    if wanted < classes:
        raise ConfigError(
            f"model.num_classes is {wanted}, but the data has {classes} classes; leave it out, or "
            f"name {classes} or more"
        )
    try:
        arch = m.build(num_classes=wanted)
    except ValueError as error:
        raise ConfigError(f"model.{error}") from error
    if pretrained is not None:
        arch = _change_loaded(pretrained.model.arch, m, arch)
    size, smallest = config.data.image_size, smallest_size(arch)
    if size < smallest:
        raise ConfigError(
            f"data.image_size {size} is too small for this net; the smallest that works is "
            f"{smallest}" + (", or less with model.stem small" if arch.stem == "imagenet" else "")
        )
    return GoogLeNet(arch, dtype=jnp.dtype(m.dtype))


def _change_loaded(loaded: Architecture, m: ModelConfig, wanted: Architecture) -> Architecture:
    """Return the architecture that --init loads, with the heads and dropout of the config."""
    default, dropouts = ModelConfig(), ("dropout", "aux_dropout")
    for field in dataclasses.fields(m):
        name, value = field.name, getattr(m, field.name)
        if name in ("num_classes", "aux_after", "dtype", *dropouts):
            continue
        if value not in (getattr(default, name), getattr(VARIANTS["paper"], name, value)):
            raise ConfigError(
                f"model.{name} is {value}, but --init brings the network; begin with the recipe "
                f"finetune_folder, or add --model.{name.replace('_', '-')} {getattr(default, name)}"
            )
    own = {name: getattr(m, name) for name in dropouts if getattr(m, name) is not None}
    return dataclasses.replace(
        loaded, num_classes=wanted.num_classes, aux_after=wanted.aux_after, **own
    )
