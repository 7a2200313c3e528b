"""Imagenette from scratch at 128x128 pixels, for 20 epochs.

    gnet prepare imagenette
    python train.py imagenette

or, with the photos in folders, `python train.py imagenette --data.source folder:imagenette160`.

Data: ten classes of ImageNet, 9,469 training and 3,925 validation photos. A batch-norm GoogLeNet of
the paper's width, with both auxiliary heads. The first half of the steps reduces the images to
96x96 pixels, which takes about half the time. Our recipe has not been run here.
"""

from common import IMAGENET_PIXELS

from gnet_jax.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig


def get_config() -> Config:
    """Returns the config of this recipe."""
    return Config(
        workdir="runs/imagenette",
        epochs=20,
        batch_size=64,
        eval_batch_size=64,
        eval_every_epochs=5,
        model=ModelConfig(variant="batch_norm", dropout=0.2, aux_dropout=0.2),
        data=DataConfig(
            source="tfds:imagenette/160px-v2", image_size=128, resize_to=128, **IMAGENET_PIXELS
        ),
        augment=AugmentConfig(crop_area=(0.35, 1.0), early_size=96, early_share=0.5),
        loss=LossConfig(label_smoothing=0.1),
        optim=OptimConfig(
            optimizer="nesterov",
            learning_rate=0.1,
            bias_lr_factor=1.0,
            weight_decay=5e-4,
            schedule="cosine",
            warmup_epochs=2.0,
            averaging="ema",
            ema_decay=0.995,
        ),
    )
