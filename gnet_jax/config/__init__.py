"""The configuration of a run: its fields, what they may hold, and the recipes that give one.

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
    suggestion,
)
from gnet_jax.config.recipes import RECIPES, Sweep, load_recipe, load_sweep
from gnet_jax.config.text import json_text
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
