"""Build the model, the optimiser, the steps and the data from a config, without compiling."""

import dataclasses
import math
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh

from gnet_jax.config import Config, ConfigError, ModelConfig, check, profile_windows
from gnet_jax.data.augment import augment, preprocess
from gnet_jax.data.batches import Batch, cropper, order_fingerprint, train_batches
from gnet_jax.data.sources import DataError, Source, open_source
from gnet_jax.data.sources.classes import empty_classes, listed, nfc, refuse_unknown, same_classes
from gnet_jax.model.architecture import VARIANTS, Architecture, smallest_size
from gnet_jax.model.googlenet import GoogLeNet, abstract_variables, check_statistics, init
from gnet_jax.model.layers import roles_by_path
from gnet_jax.model_folder.folder import TrainedModel, config_of
from gnet_jax.training import gradients, sharding
from gnet_jax.training.mirror import check_pairs, in_pairs
from gnet_jax.training.optimizer import Optimizer, check_freeze, make_optimizer, scaled
from gnet_jax.training.sharding import machine_memory, put_state, replicated
from gnet_jax.training.step import TrainState, compute_gradient, create_state, eval_step, train_step

# The variables of the main and the auxiliary classifiers, whose outputs are the classes.
CLASSIFIERS = re.compile("params/(aux_[^/]+/)?classifier/")


class Takeover(NamedTuple):
    """The variables (paths) that a new network takes from a trained one, and why not the others."""

    loaded: tuple[str, ...]
    fresh: Mapping[str, str]  # path -> why it is not loaded


@dataclasses.dataclass(frozen=True)
class Program:
    """The model, optimiser and steps of a config, for data of a known size and known classes."""

    config: Config
    model: GoogLeNet
    optimizer: Optimizer
    mesh: Mesh
    steps_per_epoch: float
    total_steps: int
    pretrained: TrainedModel | None = None
    takeover: Takeover | None = None  # which variables the pretrained model fills

    @property
    def eval_batch_size(self) -> int:
        """The global batch size of evaluations."""
        return self.config.eval_batch_size or self.config.batch_size

    @property
    def early_steps(self) -> int:
        """The number of steps at the start that use images of `early_size`."""
        return round(self.config.augment.early_share * self.total_steps)

    @property
    def early_time(self) -> float:
        """Time of a step on smaller images, as a fraction of a full one: the ratio of pixels."""
        size = self.config.data.image_size
        return ((self.config.augment.early_size or size) / size) ** 2

    def steps_left(self, step: int) -> float:
        """Returns the time left after `step`, as a number of steps on images of full size."""
        early = max(0, self.early_steps - step)
        return self.total_steps - step - early * (1 - self.early_time)

    @property
    def canonical(self) -> bool:
        """Whether numerics are canonical."""
        return self.config.numerics == "canonical"

    def train_step(self, size: int | None = None) -> Any:
        """Returns the pure training step `(state, batch) -> (state, metrics)`; see `augmentation`
        for `size`. With canonical numerics, it takes a device's share of a batch.
        """
        config = self.config
        augment_batch = augmentation(config, self.model.arch.num_classes, size)
        options: dict[str, Any] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "loss": config.loss,
        }
        gradient = compute_gradient
        if config.optim.accumulate > 1:
            gradient = gradients.accumulated_gradient(config.optim.accumulate)
        if self.canonical:
            augment_batch = gradients.augment_share(augment_batch)
            gradient = gradients.canonical_gradient(gradient, config.virtual_shards)
            options["update"] = gradients.isolated_update
        return partial(train_step, augment=augment_batch, gradient=gradient, **options)

    def eval_step(self) -> Any:
        """Returns the pure evaluation step `(state, batch) -> sums`."""
        pixels = partial(preprocess, preprocessing=self.config.data.preprocessing)
        return partial(eval_step, model=self.model, preprocess=pixels)

    def abstract_state(self) -> TrainState:
        """Returns the shapes, dtypes and sharding of the state, without computing it."""
        whole = replicated(self.mesh)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), self._state_shapes
        )

    @cached_property
    def _state_shapes(self) -> TrainState:
        create = partial(create_state, optimizer=self.optimizer, seed=0)
        return jax.eval_shape(create, abstract_variables(self.model, self.config.data.image_size))

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of a global training batch."""
        size, shape = self.config.data.image_size, (self.config.batch_size,)
        return {
            "image": jax.ShapeDtypeStruct((*shape, size, size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct(shape, jnp.int32),
            "mask": jax.ShapeDtypeStruct(shape, jnp.bool_),
        }

    def initial_state(self) -> TrainState:
        """Returns the state of a run before its first step, on every device of the mesh."""
        config = self.config
        variables = init(self.model, jax.random.PRNGKey(config.seed), config.data.image_size)
        if config.optim.mirrored_pairs:
            variables["params"] = in_pairs(variables["params"])
        if self.pretrained and self.takeover:
            trained, own = flat(self.pretrained.variables), flat(variables)
            own |= {name: jnp.asarray(trained[name]) for name in self.takeover.loaded}
            variables = {"batch_stats": {}} | traverse_util.unflatten_dict(own, sep="/")
        # Without jit, JAX would compile a separate program for every shape of an array.
        create = jax.jit(partial(create_state, optimizer=self.optimizer, seed=config.seed))
        return put_state(create(variables), self.mesh)


@dataclasses.dataclass(frozen=True)
class Run:
    """A program and its training and validation data."""

    program: Program
    train: Source
    val: Source

    @property
    def config(self) -> Config:
        """The program's config."""
        return self.program.config

    def fingerprints(self) -> dict[str, Any]:
        """Returns the class names, hashes of both splits, and a hash of the shuffled order."""
        return {
            "train": self.train.fingerprint(),
            "val": self.val.fingerprint(),
            "order": order_fingerprint(len(self.train), self.config.seed),
            "classes": list(self.train.class_names),
        }

    def description(self) -> dict[str, Any]:
        """Returns the config of the model (see `config_of`), which every checkpoint contains."""
        names, outputs = list(self.train.class_names), self.program.model.arch.num_classes
        # model.num_classes may be larger than the number of classes in the data.
        names += [f"class {i}" for i in range(len(names), outputs)]
        source = {"format": "training workdir", "data": _without_folders(self.config.data.source)}
        if self.config.init is not None:
            source["started_from"] = _without_folders(self.config.init)
        pixels, model = self.config.data.preprocessing, self.program.model
        return config_of(TrainedModel(model, {}, pixels, tuple(names), source))


def _without_folders(spec: str) -> str:
    """Returns a data source or path without the folders above an absolute path.

    Models are published, and the folders of a machine can name people and customers.
    """
    # gs:// is not a path; with (?s), names may contain newlines.
    return re.sub(r"(?s)^([a-z]+:)?(?!//)[/~].*/(?=.)", r"\1", spec)


def augmentation(
    config: Config, num_classes: int, size: int | None = None
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns a function `(images, labels, key, offset=0) -> (inputs, targets)`; see `augment`.

    The inputs are resized to `size` x `size` pixels, as in the first steps of a run with an
    `early_size`; None keeps their size.
    """
    options = {"preprocessing": config.data.preprocessing, "augmentation": config.augment}
    return partial(augment, num_classes=num_classes, size=size, **options)


def training_batches(
    config: Config, source: Source, **options: Any
) -> Generator[Batch, None, None]:
    """Returns the training batches of `config`; `options` are passed to `train_batches`."""
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


def prepare(config: Config, pretrained: TrainedModel | None = None) -> Run:
    """Check `config`, open its data and return the run, without compiling or writing anything.
    With `pretrained`, its network is used; the config then sets only the number of classes, the
    auxiliary heads, dropout and dtype. Raises a UserError for any mistake in the config or data
    that would otherwise make the run fail later.
    """
    check(config)
    mesh = sharding.data_mesh()
    sharding.check_batches(config, mesh)
    cropper(config.data.decoder)
    train, val = (open_source(config.data.source, split) for split in ("train", "val"))
    data = config.data.source
    for what, source in (("train on", train), ("validate on", val)):
        if not len(source):
            raise DataError(f"{data} has no image to {what}; that split is empty")
    empty = empty_classes(train)
    if empty:  # for example in a small subset
        raise DataError(f"{data} has no training image of {listed(empty)}; each class needs one")
    program = make_program(config, train.class_names, len(train), mesh, pretrained)
    refuse_unknown(train, val, data)
    seen = len(train) * config.epochs
    if config.batch_size > seen:
        raise ConfigError(
            f"batch_size is {config.batch_size:,}, more than the {seen:,.0f} images of all epochs "
            f"together (one epoch: {len(train):,}); use a smaller --batch-size"
        )
    return Run(program, train, val)


def make_program(
    config: Config,
    class_names: Sequence[str],
    images: int,
    mesh: Mesh,
    pretrained: TrainedModel | None = None,
) -> Program:
    """Check `config` and return its program for `images` training images; raises like `prepare`."""
    if len(class_names) < 2:
        raise DataError(f"{config.data.source} has {len(class_names)} class; it needs at least 2")
    model = model_of(config, len(class_names), pretrained)
    memory = machine_memory()
    try:
        shapes = abstract_variables(model, config.data.image_size)
        if sum(4 * math.prod(x.shape) for x in jax.tree.leaves(shapes)) > memory:
            raise MemoryError
    except MemoryError as error:
        raise ConfigError(
            f"the parameters need more than the {memory / 2**30:.1f} GiB of this machine; use a "
            "smaller model.width_multiplier, reduction_factor or num_classes"
        ) from error
    check_statistics(model, shapes["batch_stats"])
    roles_by_path(shapes["params"])  # raises for parameters that the optimiser has no rule for
    check_freeze(config.optim.freeze, shapes["params"])
    if config.optim.mirrored_pairs:
        check_pairs(model.arch, shapes["params"])
    takeover = pretrained and compare(shapes, pretrained, tuple(class_names))
    loaded = frozenset(takeover.loaded if takeover else ())
    steps_per_epoch = images / config.batch_size
    total_steps = max(1, round(config.epochs * steps_per_epoch))
    if total_steps >= 2**31:
        raise ConfigError(
            f"epochs is {config.epochs:g}, which is {total_steps:,} steps; the limit is {2**31:,}"
        )
    _check_early_images(config, model, shapes)
    optimizer = make_optimizer(scaled(config), steps_per_epoch, total_steps, loaded)
    program = Program(
        config, model, optimizer, mesh, steps_per_epoch, total_steps, pretrained, takeover
    )
    early = program.early_steps
    for first, last in profile_windows(config):
        if last > total_steps:
            raise ConfigError(
                f"profile ends at step {last:,}, but the run has only {total_steps:,} steps"
            )
        if first <= early < last:
            raise ConfigError(
                f"profile has the window {first}:{last}, but after step {early:,} the images are "
                "larger (augment.early_share); use a window that ends there or starts later"
            )
    return program


def _check_early_images(config: Config, model: GoogLeNet, shapes: Any) -> None:
    """Raise a ConfigError if the network cannot process the smaller images of the first steps."""
    size = config.augment.early_size
    if size is None:
        return
    try:
        small = flat(abstract_variables(model, size))
    except ValueError as error:
        raise ConfigError(f"augment.early_size is {size}: {error}") from error
    odd = [name for name, x in flat(shapes).items() if small[name].shape != x.shape]
    if odd:
        raise ConfigError(
            f"augment.early_size is {size}, which gives {odd[0]} another shape than the "
            f"{config.data.image_size} pixels of data.image_size; use a size nearer to it"
        )


def model_of(config: Config, classes: int, pretrained: TrainedModel | None = None) -> GoogLeNet:
    """Returns the network of a config, or of `pretrained`, for data with `classes` classes."""
    m = config.model
    wanted = classes if m.num_classes is None else m.num_classes
    if wanted < classes:
        raise ConfigError(f"model.num_classes is {wanted}, but the data has {classes} classes")
    try:
        arch = dataclasses.replace(m, num_classes=wanted).build()
    except ValueError as error:
        raise ConfigError(f"model.{error}") from error
    if pretrained is not None:
        arch = _change_loaded(pretrained.model.arch, m, arch)
    if m.batch_norm_group is not None and arch.norm != "batch_norm":
        raise ConfigError(
            f"model.batch_norm_group is {m.batch_norm_group}, but the network has no batch "
            f"norm (model.norm is {arch.norm}); leave it out, or add --model.norm batch_norm"
        )
    size, smallest = config.data.image_size, smallest_size(arch)
    if size < smallest:
        other = ", or model.stem small" if arch.stem == "imagenet" else ""
        raise ConfigError(f"data.image_size {size} is too small; use at least {smallest}{other}")
    return GoogLeNet(arch, dtype=jnp.dtype(m.dtype), batch_norm_group=m.batch_norm_group)


def _change_loaded(loaded: Architecture, m: ModelConfig, wanted: Architecture) -> Architecture:
    """Returns the architecture `loaded` by --init, with the heads and dropout of the config."""
    default, dropouts = ModelConfig(), ("dropout", "aux_dropout")
    for field in dataclasses.fields(m):
        name, value = field.name, getattr(m, field.name)
        if name in ("num_classes", "aux_after", "dtype", "batch_norm_group", *dropouts):
            continue
        if value not in (getattr(default, name), getattr(VARIANTS["paper"], name, None)):
            raise ConfigError(
                f"model.{name} is {value}, but --init sets the network; start from the recipe "
                f"finetune_folder, or add --model.{name.replace('_', '-')} {getattr(default, name)}"
            )
    own = {name: getattr(m, name) for name in dropouts if getattr(m, name) is not None}
    return dataclasses.replace(
        loaded, num_classes=wanted.num_classes, aux_after=wanted.aux_after, **own
    )


def compare(shapes: Mapping[str, Any], old: TrainedModel, class_names: tuple[str, ...]) -> Takeover:
    """Returns which variables of a new network are loaded from `old`.
    `shapes` has the new variables or their shapes. Classifiers are loaded only if the classes
    and their order are the same.
    """
    reordered = set(map(nfc, old.class_names)) == set(map(nfc, class_names))
    why = "same classes in another order" if reordered else "other classes"
    same = same_classes(old.class_names, class_names)
    found, loaded, fresh = flat(old.variables), [], {}
    for name, new in flat(shapes).items():
        if name not in found:
            fresh[name] = "not in the trained model"
        elif found[name].shape != new.shape:
            fresh[name] = f"{found[name].shape} there, {new.shape} here"
        elif not same and CLASSIFIERS.match(name):
            fresh[name] = why
        else:
            loaded.append(name)
    return Takeover(tuple(loaded), fresh)


def layers(names: Iterable[str]) -> list[str]:
    """Returns the layers or blocks that have these variables: "conv1", "inception_3a", ..."""
    return list(dict.fromkeys(name.split("/")[1] for name in names))


def flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a nested tree of variables as one dict, with paths joined by "/"."""
    return traverse_util.flatten_dict(dict(variables), sep="/")  # pyright: ignore[reportReturnType]
