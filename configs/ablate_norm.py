"""What does batch norm change against the paper's local response normalisation?

    gnet ablate ablate_norm --data.source 'npz:CIFAR_{split}.npz#10000'

CIFAR-10 at 16x16 pixels, 10,000 of its training images, three epochs, a quarter of the paper's
width, no auxiliary heads. AdamW with a warm-up for both: one recipe from which both begin to learn.
"""

import dataclasses

from gnet_jax.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, Sweep

BASE = Config(
    epochs=3,
    batch_size=50,
    eval_batch_size=250,
    log_every_steps=50,
    model=ModelConfig(width_multiplier=0.25, stem="small", aux_after=(), dropout=0.2),
    data=DataConfig(
        source="tfds:cifar10#10000",
        image_size=16,
        resize_to=16,
        mean=(125.3, 123.0, 113.9),
        std=(63.0, 62.1, 66.7),
    ),
    augment=AugmentConfig(crop_area=(0.6, 1.0), crop_aspect=(0.85, 1.18)),
    optim=OptimConfig(
        optimizer="adamw",
        learning_rate=1e-3,
        bias_lr_factor=1.0,
        weight_decay=1e-3,
        schedule="cosine",
        warmup_epochs=0.5,
    ),
)


def get_sweep() -> Sweep:
    """The configurations of this sweep."""
    batch_norm = dataclasses.replace(BASE.model, variant="batch_norm")
    return Sweep({"lrn": BASE, "batch_norm": dataclasses.replace(BASE, model=batch_norm)})
