"""What do the auxiliary heads do for a deep network without batch norm?

    gnet ablate ablate_heads --data.source 'npz:CIFAR_{split}.npz#10000'

Compares networks with no auxiliary head, one (after block 4a), and both. CIFAR-10 at 16x16
pixels, 10,000 training images, four epochs. The networks have 22 layers, LRN, biases, and a quarter
of the paper's width. They use AdamW with a warm-up, because they learn slowly at first. The
gradient of each block is measured every 100 steps, and the report plots it.
"""

import dataclasses

from common import ADAMW, SMALL_CIFAR10

from gnet_jax.config import ModelConfig, Sweep

MODEL = ModelConfig(
    variant="paper", width_multiplier=0.25, stem="small", dropout=0.2, aux_dropout=0.2
)
BASE = dataclasses.replace(SMALL_CIFAR10, epochs=4, diagnose=100, optim=ADAMW)
HEADS = {"none": (), "one": ("4a",), "both": ("4a", "4d")}


def get_sweep() -> Sweep:
    """Returns a config for each choice of auxiliary heads."""
    models = {name: dataclasses.replace(MODEL, aux_after=heads) for name, heads in HEADS.items()}
    return Sweep({name: dataclasses.replace(BASE, model=m) for name, m in models.items()})
