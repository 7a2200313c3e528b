"""What does global average pooling save compared with a fully connected head?

    gnet ablate ablate_pooling --data.source 'npz:CIFAR_{split}.npz#10000'

CIFAR-10 at 24x24 pixels, so that the last feature map is 3x3 and the fully connected layer reads
all nine positions. 10,000 training images, three epochs. The networks have batch norm, a quarter of
the paper's width, the paper's dropout of 0.4 before the classifier, and no auxiliary heads.
"""

import dataclasses

from common import SMALL_CIFAR10

from gnet_jax.config import ModelConfig, Sweep

MODEL = ModelConfig(
    variant="batch_norm", width_multiplier=0.25, stem="small", aux_after=(), dropout=0.4
)
BASE = dataclasses.replace(
    SMALL_CIFAR10,
    model=MODEL,
    data=dataclasses.replace(SMALL_CIFAR10.data, image_size=24, resize_to=24),
)


def get_sweep() -> Sweep:
    """Returns a config for each kind of main head."""
    fc = dataclasses.replace(MODEL, head="fc")
    return Sweep({"average_pool": BASE, "fc": dataclasses.replace(BASE, model=fc)})
