"""A run made ready: its config checked, its data opened and its steps built, nothing compiled."""

import dataclasses
import math
from collections.abc import Callable, Generator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gnet_jax.config import Config, ConfigError, ModelConfig, check
from gnet_jax.data.augment import augment, preprocess
from gnet_jax.data.batches import Batch, cropper, order_fingerprint, train_batches
from gnet_jax.data.sources import open_source
from gnet_jax.data.sources.classes import empty_classes, listed, refuse_unknown
from gnet_jax.data.sources.source import DataError, Source
from gnet_jax.model.architecture import VARIANTS, Architecture, smallest_size
from gnet_jax.model.googlenet import GoogLeNet, abstract_variables, init
from gnet_jax.model.layers import roles_by_path
from gnet_jax.model_folder.folder import write_description
from gnet_jax.training.memory import machine_memory
from gnet_jax.training.optimizer import Optimizer, check_freeze, make_optimizer
from gnet_jax.training.sharding import (
    AXIS,
    augment_share,
    check_batches,
    data_mesh,
    put_state,
    replicated,
)
from gnet_jax.training.step import (
    TrainState,
    apply_update,
    compute_gradient,
    create_state,
    eval_step,
    train_step,
)

if TYPE_CHECKING:
    from gnet_jax.training.finetune import Pretrained, Takeover


@dataclasses.dataclass(frozen=True)
class Program:
    """What a config compiles to; of the data it knows only the size and the classes."""

    config: Config
    model: GoogLeNet
    optimizer: Optimizer
    mesh: Mesh
    steps_per_epoch: float
    total_steps: int
    pretrained: "Pretrained | None" = None
    takeover: "Takeover | None" = None  # which variables the pretrained model fills

    @property
    def eval_batch_size(self) -> int:
        """Images in one evaluation step, over all devices and hosts."""
        return self.config.eval_batch_size or self.config.batch_size

    @property
    def canonical(self) -> bool:
        """Whether `train_step` takes one device's share of the batch."""
        return self.config.numerics == "canonical"

    def train_step(self) -> Any:
        """Returns the pure training step `(state, batch) -> (state, metrics)`."""
        return make_train_step(self.config, self.model, self.optimizer)

    def eval_step(self) -> Any:
        """Returns the pure evaluation step `(state, batch) -> sums`."""
        pixels = partial(preprocess, preprocessing=self.config.data.preprocessing)
        return partial(eval_step, model=self.model, preprocess=pixels)

    def diagnose_step(self) -> Any:
        """Returns the pure `(state, batch) -> diagnostics`."""
        from gnet_jax.training.observe.diagnostics import diagnose

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
        """Returns the shapes, dtypes and sharding of the state; computes nothing."""
        whole = replicated(self.mesh)
        create = partial(create_state, optimizer=self.optimizer, seed=0)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
            jax.eval_shape(create, self.shapes),
        )

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of a global training batch."""
        size, images = self.config.data.image_size, self.config.batch_size
        return {
            "image": jax.ShapeDtypeStruct((images, size, size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((images,), jnp.int32),
            "mask": jax.ShapeDtypeStruct((images,), jnp.bool_),
        }

    def initial_state(self) -> TrainState:
        """Returns the state before step 0, on every device of the mesh."""
        config = self.config
        variables = init(self.model, jax.random.PRNGKey(config.seed), config.data.image_size)
        if self.pretrained is not None and self.takeover is not None:
            from gnet_jax.training.finetune import take_over

            variables = take_over(variables, self.pretrained, self.takeover)
        # Without jit, every shape of an array would be compiled as a program of its own.
        create = jax.jit(partial(create_state, optimizer=self.optimizer, seed=config.seed))
        return put_state(create(variables), self.mesh)


@dataclasses.dataclass(frozen=True)
class Run:
    """A program and its data."""

    program: Program
    train: Source
    val: Source

    @property
    def config(self) -> Config:
        """The program's config."""
        return self.program.config

    def fingerprints(self) -> dict[str, Any]:
        """Returns what identifies the data and their order, and the class names."""
        return {
            "train": self.train.fingerprint(),
            "val": self.val.fingerprint(),
            "order": order_fingerprint(len(self.train), self.config.seed),
            "classes": list(self.train.class_names),
        }

    def description(self) -> dict[str, Any]:
        """Returns the description of the model that every checkpoint contains."""
        names = list(self.train.class_names)
        outputs = self.program.model.arch.num_classes
        names += [f"class {i}" for i in range(len(names), outputs)]  # model.num_classes is larger
        source = {"format": "training workdir", "data": self.config.data.source}
        if self.config.init is not None:
            source["started_from"] = self.config.init
        return write_description(self.program.model, self.config.data.preprocessing, names, source)


def make_train_step(config: Config, model: GoogLeNet, optimizer: Optimizer) -> Any:
    """Returns the pure training step of `config`.

    With canonical numerics it takes one device's share of the batch.
    """
    augment_batch = augmentation(config, model.arch.num_classes)
    gradient, update = compute_gradient, apply_update
    if config.optim.accumulate > 1:
        from gnet_jax.training.accumulation import accumulated_gradient

        gradient = accumulated_gradient(config.optim.accumulate)
    if config.numerics == "canonical":
        from gnet_jax.training.canonical import canonical_gradient, isolated_update

        augment_batch = augment_share(augment_batch, AXIS)
        gradient = canonical_gradient(gradient, config.virtual_shards, AXIS)
        update = isolated_update
    return partial(
        train_step,
        model=model,
        optimizer=optimizer,
        augment=augment_batch,
        loss=config.loss,
        gradient=gradient,
        update=update,
    )


def augmentation(config: Config, num_classes: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns `(images, labels, key, offset=0) -> (inputs, targets)`; see `augment`."""
    return partial(
        augment,
        preprocessing=config.data.preprocessing,
        augmentation=config.augment,
        num_classes=num_classes,
    )


def training_batches(
    config: Config, source: Source, **options: Any
) -> Generator[Batch, None, None]:
    """Returns the training batches of `config`; `options` are further ones of `train_batches`."""
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


def prepare(config: Config, pretrained: "Pretrained | None" = None) -> Run:
    """Check `config`, open its data and return the run; compiles and writes nothing.

    A pretrained model brings its network; the config then sets only the number of classes, the
    auxiliary heads, the dropout rates and the dtype.

    Raises:
        ConfigError, DataError: for everything that would fail later.
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
            f"{config.data.source} has no training image of {listed(empty)}; each class needs one"
        )
    program = make_program(config, train.class_names, len(train), mesh, pretrained)
    refuse_unknown(train, val, config.data.source)
    seen = len(train) * config.epochs
    if config.batch_size > seen:
        raise ConfigError(
            f"batch_size is {config.batch_size:,}, more than the {seen:,.0f} images of all epochs; "
            f"use far less than the {len(train):,} images of one epoch"
        )
    return Run(program, train, val)


def make_program(
    config: Config,
    class_names: Sequence[str],
    images: int,
    mesh: Mesh,
    pretrained: "Pretrained | None" = None,
) -> Program:
    """Returns the program of a checked config for `images` training images and devices of `mesh`.

    Raises:
        ConfigError, DataError: for everything that would fail later.
    """
    if len(class_names) < 2:
        raise DataError(f"{config.data.source} has {len(class_names)} class; at least 2 are needed")
    model = model_of(config, len(class_names), pretrained)
    shapes = _shapes(model, config.data.image_size)
    roles_by_path(shapes["params"])  # raises for parameters that the optimiser has no rule for
    check_freeze(config.optim.freeze, shapes["params"])
    takeover = None
    if pretrained is not None:
        from gnet_jax.training.finetune import compare

        takeover = compare(shapes, pretrained, tuple(class_names))
    loaded = frozenset(() if takeover is None else takeover.loaded)
    steps_per_epoch = images / config.batch_size
    total_steps = max(1, round(config.epochs * steps_per_epoch))
    if total_steps >= 2**31:
        raise ConfigError(
            f"epochs is {config.epochs:g}, which is {total_steps:,} steps; the limit is {2**31:,}"
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
            f"the parameters need more than the {machine_memory() / 2**30:.1f} GiB of this machine;"
            " use a smaller model.width_multiplier, reduction_factor or num_classes"
        ) from error
    return shapes


def model_of(config: Config, classes: int, pretrained: "Pretrained | None" = None) -> GoogLeNet:
    """Returns the network of a config for data of `classes` classes, or that of `pretrained`.

    Raises:
        ConfigError: for an impossible network, or images too small for it.
    """
    m = config.model
    wanted = classes if m.num_classes is None else m.num_classes
    if wanted < classes:
        raise ConfigError(
            f"model.num_classes is {wanted}, but the data has {classes} classes; remove it, or "
            f"use at least {classes}"
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
            f"data.image_size {size} is too small for this network; use at least {smallest}"
            + (", or less with model.stem small" if arch.stem == "imagenet" else "")
        )
    return GoogLeNet(arch, dtype=jnp.dtype(m.dtype))


def _change_loaded(loaded: Architecture, m: ModelConfig, wanted: Architecture) -> Architecture:
    """Return the architecture that --init loads, with the heads and dropout of the config."""
    default, dropouts = ModelConfig(), ("dropout", "aux_dropout")
    for field in dataclasses.fields(m):
        name, value = field.name, getattr(m, field.name)
        if name in ("num_classes", "aux_after", "dtype", *dropouts):
            continue
        if value not in (getattr(default, name), getattr(VARIANTS["paper"], name, None)):
            raise ConfigError(
                f"model.{name} is {value}, but --init brings the network; begin with the recipe "
                f"finetune_folder, or add --model.{name.replace('_', '-')} {getattr(default, name)}"
            )
    own = {name: getattr(m, name) for name in dropouts if getattr(m, name) is not None}
    return dataclasses.replace(
        loaded, num_classes=wanted.num_classes, aux_after=wanted.aux_after, **own
    )
