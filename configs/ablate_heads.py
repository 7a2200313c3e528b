"""What do the auxiliary heads do for a net that is deep and has no batch norm?

    gnet ablate ablate_heads --data.source 'npz:CIFAR_{split}.npz#10000'

None, the one after 4a, or both, as in the paper. CIFAR-10 at 16x16 pixels, 10,000 of its training
images, four epochs. All 22 layers with LRN and biases, at a quarter of the paper's width. AdamW
with a warm-up, since such a net is slow to begin; every 100 steps the gradients of its blocks are
measured, which the report draws.
"""

import dataclasses

from gnet_jax.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, Sweep

BASE = Config(
    epochs=4,
    batch_size=50,
    eval_batch_size=250,
    log_every_steps=50,
    diagnose=100,
    model=ModelConfig(
        variant="paper", width_multiplier=0.25, stem="small", dropout=0.2, aux_dropout=0.2
    ),
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
HEADS = {"none": (), "one": ("4a",), "both": ("4a", "4d")}


def get_sweep() -> Sweep:
    """The configurations of this sweep."""
    return Sweep(
        {
            name: dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, aux_after=heads))
            for name, heads in HEADS.items()
        }
    )
