"""The configuration of a run: its fields, what they may hold, and the recipes that give one.

A recipe (`configs/*.py`) returns a `Config`; `train.py --field.path value` overrides any field.
"""

from gnet_jax.config.check import check, check_preprocessing
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
    UserError,
    differences,
    flatten,
)
from gnet_jax.config.json_text import json_text
from gnet_jax.config.recipe import RECIPES, load_recipe
from gnet_jax.config.suggest import choose, suggestion
from gnet_jax.config.sweep import Sweep, load_sweep

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
