"""The configuration of a run: its fields with their limits, and recipes that set the fields."""

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
    profile_windows,
)
from gnet_jax.config.recipes import RECIPES, Sweep, change, grid, load_recipe, load_sweep
from gnet_jax.errors import UserError, choose, suggestion
