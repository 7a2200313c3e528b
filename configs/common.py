"""Settings that several recipes and sweeps share, and import from this module."""

import dataclasses
from typing import Any

from gnet_jax.config import AugmentConfig, Config, DataConfig, OptimConfig

# Mean and standard deviation of the pixels of the training set.
IMAGENET_PIXELS: dict[str, Any] = {"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}
CIFAR10_PIXELS: dict[str, Any] = {"mean": (125.3, 123.0, 113.9), "std": (63.0, 62.1, 66.7)}

# The base of the sweeps: 10,000 training images of CIFAR-10 at 16x16 pixels, three epochs.
SMALL_CIFAR10 = Config(
    epochs=3,
    batch_size=50,
    eval_batch_size=250,
    log_every_steps=50,
    data=DataConfig(source="tfds:cifar10#10000", image_size=16, resize_to=16, **CIFAR10_PIXELS),
    augment=AugmentConfig(crop_area=(0.6, 1.0), crop_aspect=(0.85, 1.18)),
    optim=OptimConfig(
        optimizer="nesterov",
        learning_rate=0.05,
        bias_lr_factor=1.0,
        weight_decay=5e-4,
        schedule="cosine",
        warmup_epochs=0.5,
    ),
)
# For networks without batch norm: they learn slowly at first.
ADAMW = dataclasses.replace(
    SMALL_CIFAR10.optim, optimizer="adamw", learning_rate=1e-3, weight_decay=1e-3
)
