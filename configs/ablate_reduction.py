"""How narrow may the 1x1 reductions be, and what would the block be without them?

    gnet ablate ablate_reduction --data.source 'npz:CIFAR_{split}.npz#10000'

Every reduction in front of a 3x3 or 5x5 scaled by 0.25 to 2, and the naive block of the paper's
Fig. 2a. CIFAR-10 at 16x16 pixels, 10,000 of its training images, three epochs: enough to tell
configs apart, not to train any of them out. Batch norm, a quarter of the paper's width, no
auxiliary heads.
"""

import dataclasses

from gnet_jax.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, Sweep

BASE = Config(
    epochs=3,
    batch_size=50,
    eval_batch_size=250,
    log_every_steps=50,
    data=DataConfig(
        source="tfds:cifar10#10000",
        image_size=16,
        resize_to=16,
        mean=(125.3, 123.0, 113.9),
        std=(63.0, 62.1, 66.7),
    ),
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
MODEL = ModelConfig(
    variant="batch_norm", width_multiplier=0.25, stem="small", aux_after=(), dropout=0.0
)


def get_sweep() -> Sweep:
    """The configurations of this sweep."""
    models = {
        f"x{factor:g}": dataclasses.replace(MODEL, reduction_factor=factor)
        for factor in (0.25, 0.5, 1.0, 1.5, 2.0)
    }
    models["naive"] = dataclasses.replace(MODEL, variant="naive_batch_norm")
    return Sweep({name: dataclasses.replace(BASE, model=m) for name, m in models.items()})
