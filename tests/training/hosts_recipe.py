"""Digits on a narrow network of the paper's kind, for runs over several processes.

    python train.py tests/training/hosts_recipe.py
"""

import dataclasses

from gnet_jax.config import Config, ModelConfig, OptimConfig, load_recipe


def get_config() -> Config:
    """The configuration of this recipe."""
    digits, _ = load_recipe("digits")
    return dataclasses.replace(
        digits,
        epochs=0.5,
        batch_size=16,
        eval_batch_size=104,
        log_every_steps=1,
        model=ModelConfig(variant="paper", width_multiplier=1 / 8, stem="small", aux_after=("4a",)),
        optim=OptimConfig(learning_rate=0.01),
    )
