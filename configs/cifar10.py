r"""CIFAR-10 from scratch, on a laptop.

    gnet prepare cifar10
    python train.py cifar10

or, with the images in .npz files, `python train.py cifar10 --data.source 'npz:CIFAR_{split}.npz'`.

Data: 50,000 training and 10,000 validation images of 32x32 pixels. The stem keeps their full
resolution, because it has one max pool only. A batch-norm GoogLeNet of three eighths of the paper's
width, with both auxiliary heads and a narrow stem. The first 60 % of the steps reduce the images to
24x24 pixels, which takes about half the time. The learning rate rises over the first three epochs
and falls to zero by the end. Regularisation and augmentation are light, because there are few
epochs: no dropout, mirrored images, and shifts by at most two pixels.

Measured on CIFAR-10 re-encoded as JPEG: 87.85 % of the 10,000 test images after 35 min 16 s on 2
cores of a Zen 5 CPU; after 14 epochs (`--epochs 14`), 87.31 % in 40 min 49 s on 2 cores of a Zen 4
CPU. These times include compilation and validation. With the mirror image of each test image
(`gnet evaluate --crops 2`), the accuracies are 88.71 % and 88.01 % (docs/accuracy.md).

An earlier recipe enlarged the images to 64x64 pixels and used half the paper's width. It reached
85.12 % after 14 epochs, in 39 min 22 s on slower cores.
"""

from common import CIFAR10_PIXELS

from gnet_jax.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig


def get_config() -> Config:
    """Returns the config of this recipe."""
    return Config(
        workdir="runs/cifar10",
        epochs=12,
        batch_size=64,
        eval_batch_size=250,
        eval_every_epochs=4,
        log_every_steps=100,
        model=ModelConfig(
            variant="batch_norm",
            blocks=("3a", "3b", "4a", "4e", "5b"),
            aux_after=("4a",),
            width_multiplier=0.5,
            stem="small",
            stem_widths=(16, 16, 64),
            dropout=0.0,
            aux_dropout=0.0,
        ),
        data=DataConfig(source="tfds:cifar10", image_size=32, resize_to=32, **CIFAR10_PIXELS),
        augment=AugmentConfig(crop="fixed_scale", shift=2, early_size=24, early_share=0.6),
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
