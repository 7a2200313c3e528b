"""What does batch norm change compared with the paper's local response normalisation?

    gnet ablate ablate_norm --data.source 'npz:CIFAR_{split}.npz#10000'

CIFAR-10 at 16x16 pixels, 10,000 training images, three epochs, a quarter of the paper's width, no
auxiliary heads. AdamW with a warm-up, because both networks learn with it.
"""

import dataclasses

from common import ADAMW, SMALL_CIFAR10

from gnet_jax.config import ModelConfig, Sweep

MODEL = ModelConfig(width_multiplier=0.25, stem="small", aux_after=(), dropout=0.2)
BASE = dataclasses.replace(SMALL_CIFAR10, model=MODEL, optim=ADAMW)


def get_sweep() -> Sweep:
    """Returns a config for each kind of normalisation."""
    batch_norm = dataclasses.replace(MODEL, variant="batch_norm")
    return Sweep({"lrn": BASE, "batch_norm": dataclasses.replace(BASE, model=batch_norm)})
