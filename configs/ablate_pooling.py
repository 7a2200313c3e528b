"""What does global average pooling save against a fully connected head?

    gnet ablate ablate_pooling --data.source 'npz:CIFAR_{split}.npz#10000'

CIFAR-10 at 24x24 pixels, so that the last feature map is 3x3 and the fully connected layer reads
all nine places; 10,000 of its training images, three epochs. Batch norm, a quarter of the paper's
width, the paper's dropout of 0.4 in front of either classifier, no auxiliary heads.
"""

import dataclasses

from gnet_jax.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, Sweep

BASE = Config(
    epochs=3,
    batch_size=50,
    eval_batch_size=250,
    log_every_steps=50,
    model=ModelConfig(
        variant="batch_norm", width_multiplier=0.25, stem="small", aux_after=(), dropout=0.4
    ),
    data=DataConfig(
        source="tfds:cifar10#10000",
        image_size=24,
        resize_to=24,
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


def get_sweep() -> Sweep:
    """The configurations of this sweep."""
    fc = dataclasses.replace(BASE.model, head="fc")
    return Sweep({"average_pool": BASE, "fc": dataclasses.replace(BASE, model=fc)})
