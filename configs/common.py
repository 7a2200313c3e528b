"""Settings that several recipes and sweeps share, and import from this module."""

import dataclasses
from typing import Any

from gnet_jax.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig

# Mean and standard deviation of the pixels of the training set.
IMAGENET_PIXELS: dict[str, Any] = {"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}
CIFAR10_PIXELS: dict[str, Any] = {"mean": (125.3, 123.0, 113.9), "std": (63.0, 62.1, 66.7)}
CIFAR100_PIXELS: dict[str, Any] = {"mean": (129.3, 124.1, 112.4), "std": (68.2, 65.4, 70.4)}

# The base of the sweeps: Imagenette's photos at 64x64 pixels, half the paper's width, batch norm.
IMAGENETTE_64 = Config(
    epochs=8,
    batch_size=64,
    eval_batch_size=256,
    eval_every_epochs=2,
    log_every_steps=50,
    model=ModelConfig(variant="batch_norm", width_multiplier=0.5, aux_after=(), dropout=0.2),
    data=DataConfig(
        source="tfds:imagenette/160px-v2", image_size=64, resize_to=64, **IMAGENET_PIXELS
    ),
    augment=AugmentConfig(crop_area=(0.5, 1.0), crop_aspect=(0.8, 1.25)),
    optim=OptimConfig(
        optimizer="nesterov",
        learning_rate=0.1,
        bias_lr_factor=1.0,
        weight_decay=5e-4,
        schedule="cosine",
        warmup_epochs=1.0,
        averaging="ema",
        ema_decay=0.995,
    ),
)
# For networks without batch norm: with SGD, they learn slowly at first.
ADAMW = dataclasses.replace(
    IMAGENETTE_64.optim, optimizer="adamw", learning_rate=1e-3, weight_decay=1e-3
)
