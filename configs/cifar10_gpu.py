"""CIFAR-10 from scratch on a GPU: the whole width, at 32x32 pixels, for 100 epochs.

    gnet prepare cifar10
    python train.py cifar10_gpu

Data: 50,000 training and 10,000 validation images of 32x32 pixels. The stem's convolutions run at
full resolution. The images are shifted by up to four pixels, mirrored and partly erased. A step
takes 512 images and computes in bfloat16. This recipe has not been run here.
"""

from common import CIFAR10_PIXELS

from gnet_jax.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig


def get_config() -> Config:
    """Returns the config of this recipe."""
    return Config(
        workdir="runs/cifar10_gpu",
        epochs=100,
        batch_size=512,
        eval_batch_size=1000,
        eval_every_epochs=5,
        model=ModelConfig(
            variant="batch_norm", stem="small", dropout=0.2, aux_dropout=0.5, dtype="bfloat16"
        ),
        data=DataConfig(
            source="tfds:cifar10", image_size=32, resize_to=32, threads=16, **CIFAR10_PIXELS
        ),
        augment=AugmentConfig(crop="fixed_scale", shift=4, erase=0.5),
        loss=LossConfig(label_smoothing=0.1),
        optim=OptimConfig(
            optimizer="nesterov",
            learning_rate=0.1,
            scale_learning_rate="linear",
            reference_batch=128,
            bias_lr_factor=1.0,
            weight_decay=5e-4,
            schedule="cosine",
            warmup_epochs=5,
            averaging="ema",
            ema_decay=0.999,
        ),
    )
