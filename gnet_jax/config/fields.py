"""The fields of a configuration: frozen dataclasses with types, defaults, limits and help texts.

`--help` prints the docstring below a field, with the same line breaks.
"""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_type_hints

from tyro.conf import arg

from gnet_jax.config.bucket import is_bucket
from gnet_jax.errors import UserError
from gnet_jax.model.architecture import Choices


class ConfigError(UserError):
    """A configuration is invalid."""


class Limit(NamedTuple):
    """A condition on a field's value, stored as metadata of the field's type."""

    text: str
    holds: Callable[[Any], bool]


# Marks a field that may change when a run resumes, because it does not affect the results.
FREE = "free on resume"

Count = Annotated[int, Limit("at least 1", lambda value: value >= 1)]
Index = Annotated[int, Limit("at least 0", lambda value: value >= 0)]
Positive = Annotated[float, Limit("above 0", lambda value: value > 0)]
NotNegative = Annotated[float, Limit("at least 0", lambda value: value >= 0)]
Share = Annotated[float, Limit("from 0 to 1", lambda value: 0 <= value <= 1)]
BelowOne = Annotated[float, Limit("at least 0 and below 1", lambda value: 0 <= value < 1)]

Folder = Annotated[
    str,
    Limit(
        "a folder or gs://BUCKET/FOLDER; mount another kind of storage and use its folder",
        lambda path: path and ("://" not in path or is_bucket(path)),
    ),
]

Decoder = Literal["pillow", "fast"]


@dataclasses.dataclass(frozen=True)
class ModelConfig(Choices):
    """The network: a variant of GoogLeNet and changes to it."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the computation. Parameters, LRN sums, logits and losses are always float32."""
    batch_norm_group: Count | None = None
    """Images over which batch norm averages in training: consecutive ones of the batch.
    None averages over the whole batch. The result does not depend on the devices."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image is converted to the network's input; saved together with the weights."""

    image_size: Annotated[Count, arg(aliases=["--size"])] = 224
    """Height and width of the network's input in pixels."""
    resize: Literal["shorter_side", "warp"] = "shorter_side"
    """How evaluation resizes an image before its central crop.
    shorter_side: scale the shorter side to resize_to. warp: resize to a square (Caffe)."""
    resize_to: int = 256
    """Side in pixels to which evaluation resizes an image before the central crop."""
    channels: Literal["RGB", "BGR"] = "RGB"
    """Order of the input channels."""
    mean: tuple[float, float, float] = (123.0, 117.0, 104.0)
    """Values subtracted from the channels, in the order of `channels` (pixels are 0 to 255)."""
    std: Annotated[
        tuple[float, float, float], Limit("above 0 in all channels", lambda std: min(std) > 0)
    ] = (1.0, 1.0, 1.0)
    """Values by which the channels are divided after the mean is subtracted."""


@dataclasses.dataclass(frozen=True)
class DataConfig(Preprocessing):
    """The data set, how images are loaded, and how they are converted to the network's input."""

    source: Annotated[str, FREE] = "digits"  # a resume compares a hash of the data instead
    """digits (bundled), folder:PATH (train/CLASS/*.jpg, val/CLASS/*.jpg), tfds:NAME or npz:PATH.
    npz: PATH is one file (arrays x_train, y_train, ...), or NAME_{split}.npz for one per split."""
    threads: Annotated[int, Limit("from 1 to 256", lambda n: 1 <= n <= 256), FREE] = 4
    """Number of threads in each process that read and decode images; the batches stay the same."""
    workers: Annotated[int, Limit("from 0 to 256", lambda n: 0 <= n <= 256), FREE] = 0
    """Number of extra processes on each host that load batches; the batches stay the same."""
    decoder: Decoder = "pillow"
    """Decoder of training images; evaluation always uses Pillow.
    fast: takes 25 % less time; pixels differ by less than one grey level on average.
    It requires pip install -e ".[fast]"."""
    bad_limit: Annotated[BelowOne, FREE] = 0.02
    """Largest fraction of corrupt images. If there are more, the run stops and lists them.
    Training replaces a corrupt image with the next valid one; evaluation skips it."""

    @property
    def preprocessing(self) -> Preprocessing:
        """The fields that are saved with the weights."""
        names = [field.name for field in dataclasses.fields(Preprocessing)]
        return Preprocessing(**{name: getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes to the training images. Evaluation uses none of them."""

    crop: Literal["random_area", "fixed_scale"] = "random_area"
    """random_area: crop a rectangle of random size, within crop_area and crop_aspect (the paper).
    fixed_scale: resize as in evaluation, then crop a random square of image_size (Caffe)."""
    crop_area: Annotated[
        tuple[float, float], Limit("0 < low <= high <= 1", lambda area: 0 < area[0] <= area[1] <= 1)
    ] = (0.08, 1.0)
    """Smallest and largest fraction of the image's area in a crop (paper: 8 to 100 %)."""
    crop_aspect: Annotated[
        tuple[float, float], Limit("0 < low <= high", lambda aspect: 0 < aspect[0] <= aspect[1])
    ] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio (width / height) of a crop."""
    interpolation: Literal["bilinear", "random"] = "bilinear"
    """Interpolation that resizes the crops.
    random: choose bilinear, area, bicubic or nearest at random for each crop (the paper)."""
    flip: bool = True
    """Mirror each image left to right with probability 1/2."""
    shift: Index = 0
    """Largest number of pixels by which an image moves in each direction; its edges are mirrored.
    For small images that are not cropped: --augment.crop fixed_scale, with resize_to = image_size.
    """
    early_size: Count | None = None
    """Side in pixels to which images are reduced in the first part of a run, to save time."""
    early_share: BelowOne = 0.0
    """Fraction of the run's steps, at the start, that use smaller images."""
    brightness: Share = 0.0
    """Multiply the brightness by a random factor from 1 - brightness to 1 + brightness."""
    contrast: Share = 0.0
    """Multiply the contrast by a random factor from 1 - contrast to 1 + contrast."""
    saturation: Share = 0.0
    """Multiply the saturation by a random factor from 1 - saturation to 1 + saturation."""
    hue: Annotated[float, Limit("from 0 to 0.5", lambda hue: 0 <= hue <= 0.5)] = 0.0
    """Rotate the hue by at most this fraction of the colour circle."""
    erase: Share = 0.0
    """Probability that a random rectangle of an image is filled with the mean (random erasing)."""
    mixup: NotNegative = 0.0
    """Mix pairs of images and labels, with weights from Beta(mixup, mixup) (arXiv 1710.09412).
    Requires an even number of images per device. Top-1 uses the label with the larger weight."""


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Cross-entropy of the main head plus `aux_weight` times that of each auxiliary head."""

    aux_weight: NotNegative = 0.3
    """Weight of each auxiliary head's loss (paper: 0.3)."""
    label_smoothing: BelowOne = 0.0
    """Fraction of each target probability that is spread over all classes (arXiv 1512.00567)."""


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser, its schedule and the averaging of parameters."""

    optimizer: Literal["sgd", "nesterov", "rmsprop", "adamw", "lars", "lamb", "muon"] = "sgd"
    """sgd: SGD with momentum (the paper). nesterov: SGD with Nesterov momentum.
    rmsprop, adamw: as in optax. lars, lamb: SGD and Adam for large batches (docs/pods.md).
    muon: orthogonal steps for kernels of convolutions; learns in few epochs.
    The rest is then trained by Adam with a tenth of the rate."""
    learning_rate: Annotated[Positive, arg(aliases=["--lr"])] = 0.01
    """Peak learning rate for the whole batch, over all devices and hosts."""
    scale_learning_rate: Literal["linear", "sqrt"] | None = None
    """Multiply learning_rate by batch_size / reference_batch (linear), or by its square root."""
    reference_batch: Count | None = None
    """Batch size for which learning_rate is given, if it is scaled; None is 256."""
    momentum: BelowOne = 0.9
    """Momentum of sgd, nesterov, rmsprop and lars; the first beta of adamw, lamb and muon."""
    weight_decay: NotNegative = 2e-4
    """Weight decay of the kernels. Biases and batch norm parameters have none."""
    bias_lr_factor: NotNegative = 2.0
    """Factor for the learning rate of the biases of convolutions and linear layers (Caffe: 2)."""
    schedule: Literal["constant", "step", "poly", "cosine"] = "step"
    """step: multiply the learning rate by decay_rate every decay_epochs (the paper).
    poly: scale it by (1 - t)^power, t from 0 to 1 (Caffe's quick_solver). cosine: decay to zero."""
    warmup_epochs: NotNegative = 0.0
    """Epochs at the start in which the learning rate rises linearly to its peak."""
    decay_rate: Annotated[float, Limit("above 0 and at most 1", lambda rate: 0 < rate <= 1)] = 0.96
    """Factor by which the step schedule multiplies the learning rate."""
    decay_epochs: Positive = 8.0
    """Epochs between two reductions of the learning rate in the step schedule."""
    power: Positive = 0.5
    """Exponent of the poly schedule."""
    clip_norm: Positive | None = None
    """Largest global norm of the gradient; larger gradients are scaled down. None does not clip."""
    freeze: tuple[str, ...] = ()
    """Layers whose parameters stay fixed, as patterns: conv1, 'inception_[34]*', '*/b5'."""
    loaded_lr_factor: NotNegative = 1.0
    """Factor for the learning rate of the parameters that --init loaded."""
    accumulate: Count = 1
    """Split each batch into this many parts and add up their gradients, to save memory."""
    mirrored_pairs: bool = False
    """Make every second filter the mirror image of the one before; learns in fewer epochs.
    Only for images whose mirror images have the same class, and for training from scratch."""
    averaging: Literal["none", "polyak", "ema"] = "none"
    """Evaluate averaged parameters instead of the current ones.
    polyak: their mean since average_from. ema: their exponential moving average."""
    ema_decay: BelowOne = 0.999
    """Decay of the exponential moving average. Step t uses t / (10 + t) if that is smaller."""
    average_from: NotNegative = 0.0
    """Epoch at which averaging starts."""


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of one training run."""

    workdir: Annotated[Folder, FREE] = "runs/default"
    """Folder for checkpoints, logs and the config. If it has a checkpoint, the run resumes.
    It can be in a bucket: gs://BUCKET/RUN."""
    init: str | None = None
    """Model to start from: a name (caffe, hf:OWNER/NAME), model folder, workdir or file of weights.
    Uses its network and preprocessing, but the config's classes, heads, dropout and dtype."""
    epochs: Positive = 250.0
    """Number of passes over the training set; fractions are allowed."""
    batch_size: Count = 32
    """Images per step, over all devices and hosts."""
    eval_batch_size: Count | None = None
    """Images per step of an evaluation; None uses batch_size."""
    eval_every_epochs: Positive = 1.0
    """Evaluate on the validation set every N epochs."""
    save_every_steps: Annotated[Count, FREE] = 1000
    """Save a checkpoint every N steps (evaluations also save one)."""
    keep_latest: Annotated[Count, FREE] = 2
    """Number of latest checkpoints to keep in addition to the best."""
    keep_every: Annotated[Count | None, FREE] = None
    """Every N steps, save a checkpoint that is never deleted, in addition to all others.
    None keeps only the latest and the best."""
    verify_checkpoints: Annotated[bool, FREE] = True
    """Read each saved checkpoint again in the background and compare its checksums.
    A corrupt checkpoint is renamed to STEP.damaged, and training continues."""
    log_every_steps: Annotated[Count, FREE] = 50
    """Every N steps, log the mean metrics of these steps to metrics.jsonl and TensorBoard."""
    diagnose: Annotated[Count | None, FREE] = None
    """Log gradients, updates and dead channels of every block every N steps; None disables this."""
    profile: Annotated[tuple[str, ...], FREE] = ()
    """Steps to trace, as FIRST:LAST (100:110); gnet profile and XProf read the traces."""
    profile_hosts: Annotated[Literal["first", "all"], FREE] = "first"
    """Which hosts write the traces of --profile."""
    dead_heads: Annotated[Literal["warn", "stop", "ignore"], FREE] = "warn"
    """What to do if no head learns, or if only auxiliary heads learn."""
    max_bad_steps: Annotated[Count, FREE] = 3
    """Stop after N steps in a row whose loss, gradient or update is not finite.
    Such steps do not change the parameters. Before it stops, the run writes a replay file."""
    numerics: Literal["fast", "canonical"] = "fast"
    """canonical: results are bit-identical on 1, 2, 4 or more devices.
    It is slower, and batch norm has separate statistics for each part (see virtual_shards)."""
    virtual_shards: Annotated[
        int, Limit("a power of two, at least 2", lambda n: n >= 2 and not n & (n - 1))
    ] = 16
    """Number of parts into which canonical numerics splits each batch.
    Must be a power of two, and at least twice the number of devices."""
    seed: Annotated[int, Limit("from 0 to 2**32 - 1", lambda seed: 0 <= seed < 2**32)] = 0
    """Seed of the initial weights, the data order, augmentation and dropout."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)


def _fields(given: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any, Any]]:
    """Yields (name, type, type with limits, value) for each field, including nested fields."""
    types = get_type_hints(type(given))
    for name, limited in get_type_hints(type(given), include_extras=True).items():
        value = getattr(given, name)
        yield f"{prefix}{name}", types[name], limited, value
        for key, each in (value if isinstance(value, Mapping) else {name: value}).items():
            if dataclasses.is_dataclass(each):
                yield from _fields(each, f"{prefix}{key}.")


def _metadata(kind: Any) -> Iterator[Any]:
    """Yields the metadata of a type and of the types inside it, such as Count in `Count | None`."""
    yield from getattr(kind, "__metadata__", ())
    for each in get_args(kind):
        yield from _metadata(each)


def flatten(config: Config) -> dict[str, Any]:
    """Returns the values of all fields by dotted name ("optim.power"), with tuples as lists."""
    fields = {name: value for name, *_, value in _fields(config)}
    leaves = {name: each for name, each in fields.items() if not dataclasses.is_dataclass(each)}
    return json.loads(json.dumps(leaves))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Returns a line for each field with another value, unless a resume may change the field."""
    free = {name for name, _, kind, _ in _fields(Config()) if FREE in _metadata(kind)}
    return [
        f"{name}: {old.get(name, 'absent')} there, {new.get(name, 'absent')} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in free
    ]


def check_limits(given: Any, prefix: str = "", *, option: bool = False) -> None:
    """Raise a ConfigError if a field has the wrong type, breaks its limit or is not finite.

    The message gives `prefix` and the field's name, or, if `option`, the command-line option.
    """
    from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

    for field, kind, limited, value in _fields(given, prefix):
        name = f"--{field.replace('_', '-')}" if option else field
        try:
            check_type(value, kind, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError:
            text = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
            raise ConfigError(f"{name} is {value!r}; it must be {text}") from None
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, float) and not math.isfinite(part):
                raise ConfigError(f"{name} is {value}; it must be finite")
        for limit in _metadata(limited):
            if isinstance(limit, Limit) and value is not None and not limit.holds(value):
                raise ConfigError(f"{name} is {value!r}; it must be {limit.text}")


def check_preprocessing(p: Preprocessing, where: str) -> None:
    """Raise a ConfigError if a field of `p` is invalid. `where` is the name of `p` in messages."""
    check_limits(p, f"{where}.")
    if p.resize_to < p.image_size:
        limit = f"it must be at least {p.image_size} (image_size)"
        raise ConfigError(f"{where}.resize_to is {p.resize_to}; {limit}")


def profile_windows(config: Config) -> list[tuple[int, int]]:
    """Returns the first and last step of each window in `config.profile`, in order.
    Raises a ConfigError if one is invalid or two overlap.
    """
    windows = []
    for text in config.profile:
        found = re.fullmatch(r"(\d+):(\d+)", text)
        first, last = (int(number) for number in found.groups()) if found else (0, 0)
        if not 1 <= first <= last:
            limit = "FIRST:LAST, such as 100:110, with 1 <= FIRST <= LAST"
            raise ConfigError(f"profile is {text!r}; it must be {limit}")
        windows.append((first, last))
    windows.sort()
    for before, after in itertools.pairwise(windows):
        if after[0] <= before[1]:
            both = " and ".join(f"{first}:{last}" for first, last in (before, after))
            raise ConfigError(f"profile has overlapping windows, {both}; join them to one")
    return windows


def check(config: Config) -> None:
    """Raise a ConfigError that names the field and its limit if a field of `config` is invalid."""
    check_limits(config)
    profile_windows(config)
    check_preprocessing(config.data, "data")
    for name in ("warmup_epochs", "average_from"):
        value = getattr(config.optim, name)
        if value >= config.epochs:
            limit = f"it must be below {config.epochs:g} (epochs)"
            fix = f"use, for example, --optim.{name.replace('_', '-')} 0"
            raise ConfigError(f"optim.{name} is {value}; {limit}; {fix}")
    size, early = config.data.image_size, config.augment.early_size
    share = config.augment.early_share
    if bool(early) != bool(share) or (early and early >= size):
        raise ConfigError(
            f"augment.early_size is {early} and augment.early_share is {share:g}; "
            f"give a size below {size} (data.image_size) and a share above 0, or neither"
        )
    if config.augment.shift >= size:
        raise ConfigError(
            f"augment.shift is {config.augment.shift}; it must be below {size} (data.image_size)"
        )
    if config.optim.reference_batch is not None and config.optim.scale_learning_rate is None:
        raise ConfigError(
            f"optim.reference_batch is {config.optim.reference_batch}, but the learning rate "
            "is not scaled; add --optim.scale-learning-rate linear, or leave it out"
        )
    if config.optim.mirrored_pairs and not config.augment.flip:
        raise ConfigError(
            "optim.mirrored_pairs assumes that mirror images have the same class, but augment.flip "
            "is False; change one of them"
        )
    if config.data.decoder != "pillow" and config.augment.interpolation != "bilinear":
        limit = f"augment.interpolation {config.augment.interpolation} requires pillow"
        raise ConfigError(f"data.decoder is {config.data.decoder}; {limit}")


def json_text(value: Any, **options: Any) -> str:
    """Returns `value` as JSON, with null for NaN and infinity. `options` are for json.dumps."""

    def finite(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: finite(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [finite(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(value), allow_nan=False, **options)
