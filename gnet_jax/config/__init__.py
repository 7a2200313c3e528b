"""The configuration of a run: its fields with their limits, and recipes that set the fields."""

from typing import TYPE_CHECKING, Any

from gnet_jax.config.fields import (
    AugmentConfig,
    Config,
    ConfigError,
    DataConfig,
    Decoder,
    LossConfig,
    ModelConfig,
    OptimConfig,
    Preprocessing,
    check,
    check_preprocessing,
    differences,
    flatten,
    json_text,
    suggestion,
)
from gnet_jax.errors import UserError, choose

if TYPE_CHECKING:
    from gnet_jax.config.recipes import RECIPES, Sweep, load_recipe, load_sweep

__all__ = [
    "RECIPES",
    "AugmentConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "Decoder",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "Preprocessing",
    "Sweep",
    "UserError",
    "check",
    "check_preprocessing",
    "choose",
    "differences",
    "flatten",
    "json_text",
    "load_recipe",
    "load_sweep",
    "suggestion",
]


def __getattr__(name: str) -> Any:
    if name in ("RECIPES", "Sweep", "load_recipe", "load_sweep"):
        from gnet_jax.config import recipes  # here, because a trained model requires no recipe

        return getattr(recipes, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
