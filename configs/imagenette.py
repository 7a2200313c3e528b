"""Imagenette from scratch at 128x128 pixels, for 20 epochs.

    gnet prepare imagenette
    python train.py imagenette

or, with the photos in folders, `python train.py imagenette --data.source folder:imagenette160`.

Data: ten classes of ImageNet, 9,469 training and 3,925 validation photos. A batch-norm GoogLeNet of
three eighths of the paper's width, with both auxiliary heads; every second filter is the mirror
image of the one before. In the first half of the steps, images are reduced to 96x96 pixels; such a
step takes about half the time of a full one.

Measured on photos that were warped to 160x160 pixels: 88.13 % of the validation photos after 18 min
22 s on 2 CPU cores with AVX-512. This time includes 103 s of compilation and 40 s of validation.
The optimiser's settings were chosen on CIFAR-10 (docs/accuracy.md).
"""

import dataclasses

from common import IMAGENETTE_64

from gnet_jax.config import AugmentConfig, Config, LossConfig, ModelConfig
from gnet_jax.model.widths import Widths


def get_config() -> Config:
    """Returns the config of this recipe."""
    base = IMAGENETTE_64
    return dataclasses.replace(
        base,
        workdir="runs/imagenette",
        epochs=20,
        eval_every_epochs=5,
        model=ModelConfig(
            variant="batch_norm",
            width_multiplier=0.375,
            # Mirrored pairs need even numbers; three eighths of the reductions to 24 would be 9.
            widths={"4b": Widths(60, 42, 84, 10, 24, 24), "4c": Widths(48, 48, 96, 10, 24, 24)},
            dropout=0.2,
            aux_dropout=0.2,
        ),
        data=dataclasses.replace(base.data, image_size=128, resize_to=128),
        augment=AugmentConfig(crop_area=(0.35, 1.0), early_size=96, early_share=0.5),
        loss=LossConfig(label_smoothing=0.1),
        optim=dataclasses.replace(
            base.optim,
            optimizer="muon",
            learning_rate=0.02,
            momentum=0.95,
            weight_decay=0.05,
            schedule="poly",
            power=1.0,
            warmup_epochs=2.0,
            mirrored_pairs=True,
        ),
    )
