"""ImageNet on a large pod: batch 32,768, LARS, warm-up and quadratic decay.

    gnet prepare tfds:imagenet2012 --manual-dir DOWNLOADS
    python train.py imagenet_pod_32k

SGD with linear scaling loses accuracy above batch 8,192 (Goyal et al., arXiv 1706.02677), so LARS
sets each layer's rate (You et al., arXiv 1708.03888). The values are those with which Google trains
ResNet-50 on 1,024 TPU cores (github.com/tensorflow/tpu, models/official/resnet/lars_util.py and
configs/cloud/v3-1024.yaml; Ying et al., arXiv 1811.06992): peak rate 34 after 12 epochs, power 2,
momentum 0.9, weight decay 1e-4, label smoothing 0.1, and batch norm over the 32 images of a core.
They are not tuned for GoogLeNet. The rest is imagenet_pod's. This recipe has not been run here.
"""

import dataclasses

from imagenet_pod import get_config as get_pod_config

from gnet_jax.config import Config, OptimConfig


def get_config() -> Config:
    """Returns the config of this recipe."""
    pod = get_pod_config()
    return dataclasses.replace(
        pod,
        workdir="runs/imagenet_pod_32k",
        batch_size=32768,
        save_every_steps=100,
        log_every_steps=10,
        model=dataclasses.replace(pod.model, batch_norm_group=32),
        optim=OptimConfig(
            optimizer="lars",
            learning_rate=34.0,
            bias_lr_factor=1.0,
            weight_decay=1e-4,
            schedule="poly",
            power=2.0,
            warmup_epochs=12,
            averaging="ema",
            ema_decay=0.99,
        ),
    )
