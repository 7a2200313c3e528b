r"""CIFAR-10 from scratch, on a laptop.

    gnet prepare cifar10
    python train.py cifar10

or, with the images in .npz files, `python train.py cifar10 --data.source 'npz:CIFAR_{split}.npz'`.

Data: 50,000 training and 10,000 validation images of 32x32 pixels. The stem's convolutions run at
full resolution; a max pool behind them halves it. A batch-norm GoogLeNet with three quarters of the
paper's width, a narrow stem, an auxiliary head, and four of the nine blocks, because nine narrower
blocks learn more slowly at first. Every second filter is the mirror image of the one before, so an
image teaches as much as it and its mirror image. Muon learns in fewer epochs than SGD. In the first
60 % of the steps, images are reduced to 24x24 pixels; such a step takes about 60 % of the time of a
full one. The learning rate rises over the first two epochs and falls to zero by the end. There is
no dropout, because there are few epochs; images are mirrored, and shifted by at most four pixels.

Measured on CIFAR-10 re-encoded as JPEG: 89.85 % of the 10,000 test images after 36 min 47 s on 2
cores of a Zen 4 CPU, including compilation and validation; 90.14 % with the mirror image of each
test image. docs/accuracy.md has the commands, the curves and the networks that were compared.
"""

from common import CIFAR10_PIXELS

from gnet_jax.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig


def get_config() -> Config:
    """Returns the config of this recipe."""
    return Config(
        workdir="runs/cifar10",
        epochs=12,
        batch_size=128,
        eval_batch_size=250,
        eval_every_epochs=4,
        log_every_steps=100,
        model=ModelConfig(
            variant="batch_norm",
            blocks=("3a", "4a", "4e", "5b"),
            aux_after=("4a",),
            width_multiplier=0.75,
            stem="small",
            stem_widths=(16, 16, 64),
            dropout=0.0,
            aux_dropout=0.0,
        ),
        data=DataConfig(source="tfds:cifar10", image_size=32, resize_to=32, **CIFAR10_PIXELS),
        augment=AugmentConfig(crop="fixed_scale", shift=4, early_size=24, early_share=0.6),
        loss=LossConfig(label_smoothing=0.1),
        optim=OptimConfig(
            optimizer="muon",
            learning_rate=0.03,
            momentum=0.95,
            bias_lr_factor=1.0,
            weight_decay=0.05,
            schedule="poly",
            power=1.0,
            warmup_epochs=2.0,
            mirrored_pairs=True,
            averaging="ema",
            ema_decay=0.995,
        ),
    )
