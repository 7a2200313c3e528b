"""ImageNet on many accelerators: batch 4,096, bfloat16, linear scaling with a long warm-up.

    gnet prepare tfds:imagenet2012 --manual-dir DOWNLOADS
    python train.py imagenet_pod

The peak learning rate is 0.1 per 256 images of the batch, also with another --batch-size, and is
reached after 5 epochs. With this rule and weight decay 1e-4, ResNet-50 loses no accuracy up to
batch 8,192 (Goyal et al., arXiv 1706.02677, who average batch norm over groups of 32 images:
--model.batch-norm-group 32). Cosine, label smoothing 0.1 and no decay of biases and norms follow
He et al. (arXiv 1812.01187). For batch 32,768, use imagenet_pod_32k. The paper's own network, which
has no batch norm, does not tolerate such rates. This recipe has not been run here.

According to `gnet plan imagenet_pod --topology v5e:16x16` (docs/pods.md), a step on 256 TPU v5e
chips takes at least 1.43 ms, and 90 epochs take at least 40 s, if the hosts decode fast enough.
"""

from common import IMAGENET_PIXELS

from gnet_jax.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig


def get_config() -> Config:
    """Returns the config of this recipe."""
    return Config(
        workdir="runs/imagenet_pod",
        epochs=90,
        batch_size=4096,
        eval_batch_size=4096,
        save_every_steps=500,
        log_every_steps=20,
        model=ModelConfig(variant="batch_norm", dropout=0.2, dtype="bfloat16"),
        data=DataConfig(source="tfds:imagenet2012", threads=8, workers=8, **IMAGENET_PIXELS),
        augment=AugmentConfig(brightness=0.4, contrast=0.4, saturation=0.4),
        loss=LossConfig(label_smoothing=0.1),
        optim=OptimConfig(
            optimizer="nesterov",
            learning_rate=0.1,
            scale_learning_rate="linear",
            bias_lr_factor=1.0,
            weight_decay=1e-4,
            schedule="cosine",
            warmup_epochs=5,
            averaging="ema",
            ema_decay=0.999,
        ),
    )
