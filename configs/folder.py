"""Train a network from scratch on a folder of your own images.

    python train.py folder --data.source folder:PHOTOS

PHOTOS has train/CLASS/*.jpg and val/CLASS/*.jpg. A batch-norm GoogLeNet of half the paper's width,
for 112x112 pixels. With a few thousand photos, the published weights and `finetune_folder` give far
better results. Use this recipe if your images are not photos, or if you have many. First run `gnet
check-data folder:PHOTOS` to find images that are corrupt or in two splits, and `gnet show-data
folder --data.source folder:PHOTOS` to draw what the network sees.
"""

from common import IMAGENET_PIXELS

from gnet_jax.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig


def get_config() -> Config:
    """Returns the config of this recipe."""
    return Config(
        workdir="runs/folder",
        epochs=60,
        batch_size=64,
        log_every_steps=20,
        model=ModelConfig(variant="batch_norm", width_multiplier=0.5),
        data=DataConfig(source="folder:photos", image_size=112, resize_to=128, **IMAGENET_PIXELS),
        augment=AugmentConfig(crop_area=(0.25, 1.0), brightness=0.4, contrast=0.4, saturation=0.4),
        loss=LossConfig(label_smoothing=0.1),
        optim=OptimConfig(
            optimizer="nesterov",
            learning_rate=0.05,
            weight_decay=5e-4,
            schedule="cosine",
            warmup_epochs=2,
            averaging="ema",
            ema_decay=0.99,
        ),
    )
