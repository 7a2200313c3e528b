"""A common modern ImageNet recipe: batch norm, cosine, label smoothing, mixup and averaged weights.

    gnet prepare tfds:imagenet2012 --manual-dir DOWNLOADS
    python train.py imagenet_modern

The network is the paper's with batch norm instead of LRN. The recipe follows GluonCV's GoogLeNet
(batch norm and mixup; 72.87 % top-1, 91.17 % top-5) and mindcv's (cosine, label smoothing 0.1, 300
epochs; 72.89 %, 90.89 %), as reported by their authors. This recipe has not been run here.

According to `gnet plan imagenet_modern --topology v5e:2x4`, a step on eight TPU v5e chips takes at
least 5.7 ms, and 200 epochs take at least 1 h 36 min.
"""

from common import IMAGENET_PIXELS

from gnet_jax.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig


def get_config() -> Config:
    """Returns the config of this recipe."""
    return Config(
        workdir="runs/imagenet_modern",
        epochs=200,
        batch_size=256,
        eval_batch_size=256,
        log_every_steps=100,
        model=ModelConfig(variant="batch_norm", dropout=0.2),
        data=DataConfig(source="tfds:imagenet2012", threads=16, **IMAGENET_PIXELS),
        augment=AugmentConfig(brightness=0.4, contrast=0.4, saturation=0.4, mixup=0.2),
        loss=LossConfig(label_smoothing=0.1),
        optim=OptimConfig(
            optimizer="nesterov",
            learning_rate=0.1,
            bias_lr_factor=1.0,
            weight_decay=1e-4,
            schedule="cosine",
            warmup_epochs=5,
            averaging="ema",
            ema_decay=0.9999,
        ),
    )
