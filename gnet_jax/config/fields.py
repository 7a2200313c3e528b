"""The fields of a configuration: frozen dataclasses, and what each of them means."""

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_type_hints

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from gnet_jax.errors import UserError
from gnet_jax.model.architecture import VARIANTS, Choices


class ConfigError(UserError):
    """A configuration that cannot be run."""


Decoder = Literal["pillow", "fast"]


@dataclasses.dataclass(frozen=True)
class ModelConfig(Choices):
    """Which GoogLeNet: a variant and changes of it."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation. Parameters, LRN sums, logits and losses stay float32."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes the network's input. It belongs to the weights, and is kept with them."""

    image_size: int = 224
    """Side of the square that the network sees, in pixels."""
    resize: Literal["shorter_side", "warp"] = "shorter_side"
    """Before the central crop of an evaluation: scale the shorter side to resize_to, or warp the
    whole image to a square of it (Caffe)."""
    resize_to: int = 256
    """Side in pixels that an image is resized to before the central crop."""
    channels: Literal["RGB", "BGR"] = "RGB"
    """Order of the channels that the network is given."""
    mean: tuple[float, float, float] = (123.0, 117.0, 104.0)
    """Subtracted from the channels, in the network's order (pixels are 0 to 255)."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """What the channels are then divided by."""


@dataclasses.dataclass(frozen=True)
class DataConfig(Preprocessing):
    """What is read, and what the network sees of it."""

    source: str = "digits"
    """digits (bundled), folder:PATH (train/CLASS/*.jpg, val/CLASS/*.jpg), tfds:NAME, or npz:PATH
    (arrays: one file with x_train, y_train ..., or NAME_{split}.npz for a file of each split)."""
    threads: int = 4
    """Threads that read and decode in each process; the batches do not depend on it."""
    workers: int = 0
    """Processes that load training batches on each host, besides the one that trains. 0 will do
    where decoding lets threads run, as it does here; the batches do not depend on it."""
    decoder: Decoder = "pillow"
    """Of training images. fast: simplejpeg decodes upright JPEGs and OpenCV resizes every crop, in
    three quarters of the time (pip install -e ".[fast]"): the same crops, whose pixels differ by
    less than a grey level on average. What is evaluated is always Pillow's."""
    bad_limit: float = 0.02
    """Largest share of the examples that may be damaged. Up to it, each is replaced by the next
    good one (left out in evaluation), named and counted; above it the run stops with the list."""

    @property
    def preprocessing(self) -> Preprocessing:
        """The part that belongs to the weights."""
        names = [field.name for field in dataclasses.fields(Preprocessing)]
        return Preprocessing(**{name: getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What training images go through; evaluation sees none of it."""

    crop: Literal["random_area", "fixed_scale"] = "random_area"
    """random_area: rectangles of any size and shape within the next two (the paper); fixed_scale:
    the image resized as for evaluation, and a random square of image_size of it (Caffe)."""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image that a training crop covers (the paper's 8-100 %)."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a training crop."""
    interpolation: Literal["bilinear", "random"] = "bilinear"
    """Of the crop's resizing. random draws one of bilinear, area, bicubic and nearest for each
    crop, as the paper does."""
    flip: bool = True
    """Mirror half of the images."""
    brightness: float = 0.0
    """Brightness is multiplied by a factor within 1 +- this (photometric distortions, in random
    order)."""
    contrast: float = 0.0
    """The same of the contrast."""
    saturation: float = 0.0
    """The same of the saturation."""
    hue: float = 0.0
    """The hue is turned by at most this share of the colour circle."""
    erase: float = 0.0
    """Share of the images in which a random rectangle is filled with the mean colour
    (random erasing, arXiv 1708.04896)."""
    mixup: float = 0.0
    """Each image and its label are mixed with another of the batch, by a share drawn from
    Beta(this, this) (arXiv 1710.09412); 0 mixes none. The larger share is the image's own, and the
    training top-1 is counted against its label. Each device needs an even number of images."""


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Cross-entropy of the main head plus `aux_weight` times that of each auxiliary head."""

    aux_weight: float = 0.3
    """What each auxiliary head's cross-entropy counts in the loss (the paper's 0.3)."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes (arXiv 1512.00567)."""


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser, its schedule and the averaging of parameters."""

    optimizer: Literal["sgd", "nesterov", "rmsprop", "adamw"] = "sgd"
    """sgd: with momentum, as the paper; nesterov: with Nesterov's; rmsprop, adamw: optax's."""
    learning_rate: float = 0.01
    """The peak, for the whole batch."""
    momentum: float = 0.9
    """Of sgd, nesterov and rmsprop; the first beta of adamw."""
    weight_decay: float = 2e-4
    """On kernels only: biases and batch norm's scales are not decayed."""
    bias_lr_factor: float = 2.0
    """Learning rate of the convolutions' and linear layers' biases, times this (Caffe: 2)."""
    schedule: Literal["constant", "step", "poly", "cosine"] = "step"
    """step: x decay_rate every decay_epochs (the paper); poly: (1 - t)^power (Caffe's
    quick_solver); cosine: to zero."""
    warmup_epochs: float = 0.0
    """In which the learning rate rises evenly to its peak, in front of any schedule."""
    decay_rate: float = 0.96
    """Factor of the step schedule, every decay_epochs (the paper: 0.96 every 8)."""
    decay_epochs: float = 8.0
    """Epochs between two steps of the step schedule."""
    power: float = 0.5
    """Of the poly schedule."""
    clip_norm: float | None = None
    """Largest global norm of the gradient; None does not clip."""
    freeze: tuple[str, ...] = ()
    """Layers that do not learn, as patterns: conv1, 'inception_[34]*', '*/b5'."""
    loaded_lr_factor: float = 1.0
    """Learning rate of the parameters that --init loaded, times this."""
    accumulate: int = 1
    """Parts that each batch is split into, one after another, to save memory."""
    averaging: Literal["none", "polyak", "ema"] = "none"
    """Averaged parameters, which evaluation then uses. polyak: the mean since `average_from`."""
    ema_decay: float = 0.999
    """Share of the ema that a step keeps. Step t keeps t / (10 + t) while that is less, so the
    first steps are soon forgotten."""
    average_from: float = 0.0
    """Epoch at which averaging begins."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run."""

    workdir: str = "runs/default"
    """Checkpoints, logs, config and run record. The same workdir again goes on where it stopped."""
    init: str | None = None
    """A model to start from: a model folder, a training workdir or a file of weights. It brings
    the network and the preprocessing; the classes, the aux heads, dropout and dtype remain yours to
    choose."""
    epochs: float = 250.0
    """How often every training image is seen; a part of an epoch will do."""
    batch_size: int = 32
    """Images a step, over all devices and hosts together."""
    eval_batch_size: int | None = None
    """Images in one step of an evaluation; None takes batch_size."""
    eval_every_epochs: float = 1.0
    """Epochs from one evaluation on the validation images to the next."""
    save_every_steps: int = 1000
    """Steps from one save to the next; every evaluation saves, too."""
    keep_latest: int = 2
    """Newest checkpoints kept, besides the best."""
    verify_checkpoints: bool = True
    """Read every checkpoint back and compare its digests before it counts as saved, in the
    background. One that differs is put aside, and the next save tries again."""
    log_every_steps: int = 50
    """Steps from one line of metrics.jsonl, and point in TensorBoard, to the next; it has the means
    over them, or, after a resume, over those since."""
    diagnose: int | None = None
    """Steps from one look inside to the next: gradient and update of every block, scale and dead
    channels of every layer, into diagnostics.jsonl and TensorBoard; None never looks."""
    dead_heads: Literal["warn", "stop", "ignore"] = "warn"
    """When heads do not learn, the main one while an auxiliary one does or all of them past the
    warm-up: say so with the remedies, or stop as well."""
    max_bad_steps: int = 3
    """Steps in a row whose loss, gradient or update is not finite, at which the run stops and
    leaves a replay file; up to it each is skipped, and the state stays as it was."""
    numerics: Literal["fast", "canonical"] = "fast"
    """canonical: every bit is the same on 1, 2, 4 or more devices; slower, and batch norm sees one
    virtual shard at a time."""
    virtual_shards: int = 16
    """Parts that canonical numerics cut each batch into: a power of two, two or more a device."""
    seed: int = 0
    """Of weights, order, augmentation and dropout: the same seed gives the same run."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)


# Fields that may change between a run and its continuation: they do not touch the numbers.
FREE_ON_RESUME = (
    "workdir",
    "save_every_steps",
    "keep_latest",
    "verify_checkpoints",
    "log_every_steps",
    "data.source",  # the same data may have moved; its fingerprint is compared
    "data.threads",
    "data.workers",
    "data.bad_limit",
    "diagnose",
    "dead_heads",
    "max_bad_steps",
)


def flatten(config: Config) -> dict[str, Any]:
    """Every field by its dotted name, in the form that JSON gives back."""

    def walk(prefix: str, tree: dict[str, Any]) -> dict[str, Any]:
        flat = {}
        for name, value in tree.items():
            if isinstance(value, dict):
                flat |= walk(f"{prefix}{name}.", value)
            else:
                flat[f"{prefix}{name}"] = value
        return flat

    return walk("", json.loads(json.dumps(dataclasses.asdict(config))))


def value_of(config: Config, name: str) -> Any:
    """The value of the field with the dotted name `name`."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Returns the fields in which two flattened configs differ and a resumed run must not.

    A network's field that is None, or absent from an older file, has the variant's own value.
    """
    old, new = (_with_defaults(each) for each in (old, new))
    return [
        f"{name}: {old.get(name, 'absent')} there, {new.get(name, 'absent')} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in FREE_ON_RESUME
    ]


def _with_defaults(flat: dict[str, Any]) -> dict[str, Any]:
    """Returns a flattened config with the network's fields that are absent or None filled in."""
    own: dict[str, Any] = {f"model.{field.name}": None for field in dataclasses.fields(Choices)}
    paper = VARIANTS["paper"]  # older files state these three, which all variants share
    own |= {"model.aux_after": list(paper.aux_after), "model.head": paper.head}
    own |= {"model.stem": paper.stem}
    return flat | {name: value for name, value in own.items() if flat.get(name) is None}


def check_types(given: Any, prefix: str = "") -> None:
    """Refuse a dataclass of a Python file with a field of another type than it is said to have.

    Raises:
        ConfigError: naming the field, its value and what it must be.
    """
    for name, kind in get_type_hints(type(given)).items():
        value = getattr(given, name)
        try:
            check_type(value, kind, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError:
            said = kind.__name__ if isinstance(kind, type) else str(kind)
            said = said.replace("typing.", "").replace("gnet_jax.config.fields.", "")
            raise ConfigError(f"{prefix}{name} is {value!r}; it must be {said}") from None
        below = value if isinstance(value, Mapping) else {name: value}
        for key, each in below.items():
            if dataclasses.is_dataclass(each):
                check_types(each, f"{prefix}{key}.")


def check(config: Config) -> None:
    """Refuse what no run can use.

    Raises:
        ConfigError: naming the field, its value and what it may be.
    """
    check_types(config)
    limits: list[tuple[str, Any, bool, str]] = []

    def require(name: str, holds: bool, limit: str) -> None:
        limits.append((name, value_of(config, name), holds, limit))

    d, a, o = config.data, config.augment, config.optim
    below = f"at least 0 and below {config.epochs:g} (epochs); a shorter run needs a smaller one"
    local = bool(config.workdir) and "://" not in config.workdir
    require("workdir", local, "a folder; mount a bucket (gcsfuse) and name its folder")
    require("epochs", config.epochs > 0, "above 0")
    for name in ("batch_size", "save_every_steps", "keep_latest", "log_every_steps"):
        require(name, value_of(config, name) >= 1, "at least 1")
    require("diagnose", config.diagnose is None or config.diagnose >= 1, "at least 1")
    eval_batch_size = config.eval_batch_size
    require("eval_batch_size", eval_batch_size is None or eval_batch_size >= 1, "at least 1")
    require("eval_every_epochs", config.eval_every_epochs > 0, "above 0")
    require("max_bad_steps", config.max_bad_steps >= 1, "at least 1")
    shards = config.virtual_shards
    require("virtual_shards", shards >= 2 and not shards & (shards - 1), "a power of two, from 2")
    require("seed", 0 <= config.seed < 2**32, "from 0 to 2**32 - 1")
    check_preprocessing(d, "data")
    require("data.threads", d.threads >= 1, "at least 1")
    require("data.workers", d.workers >= 0, "at least 0")
    require(
        "data.decoder",
        d.decoder == "pillow" or a.interpolation == "bilinear",
        f"pillow where augment.interpolation is {a.interpolation}",
    )
    require("data.bad_limit", 0 <= d.bad_limit < 1, "in [0, 1)")
    require("augment.crop_area", 0 < a.crop_area[0] <= a.crop_area[1] <= 1, "0 < low <= high <= 1")
    require("augment.crop_aspect", 0 < a.crop_aspect[0] <= a.crop_aspect[1], "0 < low <= high")
    for name in ("brightness", "contrast", "saturation"):
        require(f"augment.{name}", 0 <= getattr(a, name) <= 1, "in [0, 1]")
    require("augment.hue", 0 <= a.hue <= 0.5, "in [0, 0.5]")
    require("augment.erase", 0 <= a.erase <= 1, "in [0, 1]")
    require("augment.mixup", a.mixup >= 0, "at least 0")
    require("loss.aux_weight", config.loss.aux_weight >= 0, "at least 0")
    require("loss.label_smoothing", 0 <= config.loss.label_smoothing < 1, "in [0, 1)")
    require("optim.learning_rate", o.learning_rate > 0, "above 0")
    require("optim.momentum", 0 <= o.momentum < 1, "in [0, 1)")
    require("optim.weight_decay", o.weight_decay >= 0, "at least 0")
    require("optim.bias_lr_factor", o.bias_lr_factor >= 0, "at least 0")
    require("optim.warmup_epochs", 0 <= o.warmup_epochs < config.epochs, below)
    require("optim.decay_rate", 0 < o.decay_rate <= 1, "above 0, at most 1")
    require("optim.decay_epochs", o.decay_epochs > 0, "above 0")
    require("optim.power", o.power > 0, "above 0")
    require("optim.loaded_lr_factor", o.loaded_lr_factor >= 0, "at least 0")
    require("optim.clip_norm", o.clip_norm is None or o.clip_norm > 0, "above 0")
    require("optim.accumulate", o.accumulate >= 1, "at least 1")
    require("optim.ema_decay", 0 <= o.ema_decay < 1, "in [0, 1)")
    require("optim.average_from", 0 <= o.average_from < config.epochs, below)
    _refuse(limits)


def check_preprocessing(p: Preprocessing, where: str) -> None:
    """Refuse a preprocessing that no network can use.

    Raises:
        ConfigError: naming the field of `where`, its value and what it may be.
    """
    check_types(p, f"{where}.")
    limits = [
        ("image_size", p.image_size, p.image_size >= 1, "at least 1"),
        (
            "resize_to",
            p.resize_to,
            p.resize_to >= p.image_size,
            f"at least {p.image_size} (image_size)",
        ),
        ("mean", p.mean, len(p.mean) == 3, "three numbers"),
        ("std", p.std, len(p.std) == 3 and min(p.std) > 0, "above 0 in all three channels"),
    ]
    _refuse([(f"{where}.{name}", *rest) for name, *rest in limits])


def _refuse(limits: Iterable[tuple[str, Any, bool, str]]) -> None:
    for name, value, holds, limit in limits:
        parts = value if isinstance(value, tuple) else (value,)
        if not all(math.isfinite(part) for part in parts if isinstance(part, float)):
            raise ConfigError(f"{name} is {value}; it must be finite")
        if not holds:
            raise ConfigError(f"{name} is {value if value != '' else repr('')}; it must be {limit}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of an error: the name of `known` that was meant, or else all that there are."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
