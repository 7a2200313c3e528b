"""What a configuration may hold."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, get_type_hints

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from gnet_jax.config.fields import Config, ConfigError, Preprocessing, value_of


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
