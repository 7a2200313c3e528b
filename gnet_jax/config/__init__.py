"""The configuration of a run: its fields, their limits, and the recipes that return one.

A recipe (`configs/*.py`) returns a `Config`; `train.py --field.path value` overrides any field.
"""

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
from gnet_jax.config.recipes import RECIPES, Sweep, load_recipe, load_sweep
from gnet_jax.errors import UserError, choose

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
