"""CIFAR-100 from scratch on a GPU: the network of the recipe cifar10_gpu, for 200 epochs.

    gnet prepare cifar100
    python train.py cifar100_gpu

Data: 50,000 training and 10,000 validation images of 32x32 pixels, of 100 classes. Steps of 128
images, as in the best published result for a GoogLeNet (78.03 % after 200 epochs,
github.com/weiaicunzai/pytorch-cifar100). This recipe has not been run here.
"""

import dataclasses

import cifar10_gpu
from common import CIFAR100_PIXELS

from gnet_jax.config import Config


def get_config() -> Config:
    """Returns the config of this recipe."""
    base = cifar10_gpu.get_config()
    return dataclasses.replace(
        base,
        workdir="runs/cifar100_gpu",
        epochs=200,
        batch_size=128,
        data=dataclasses.replace(base.data, source="tfds:cifar100", **CIFAR100_PIXELS),
        optim=dataclasses.replace(base.optim, ema_decay=0.9995),
    )
