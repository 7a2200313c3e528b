"""How narrow can the 1x1 reductions be, and how accurate is the network without them?

    gnet ablate ablate_reduction --data.source 'npz:CIFAR_{split}.npz#10000'

Multiplies the width of every reduction before a 3x3 or 5x5 convolution by 0.25 to 2, and also
trains the naive block of the paper's Fig. 2a. CIFAR-10 at 16x16 pixels, 10,000 training images. In
three epochs no network converges, but the configs already differ. The networks have batch norm, a
quarter of the paper's width, and no auxiliary heads.
"""

import dataclasses

from common import SMALL_CIFAR10

from gnet_jax.config import ModelConfig, Sweep

MODEL = ModelConfig(
    variant="batch_norm", width_multiplier=0.25, stem="small", aux_after=(), dropout=0.0
)


def get_sweep() -> Sweep:
    """Returns a config for each width of the reductions, and one without reductions."""
    models = {
        f"x{factor:g}": dataclasses.replace(MODEL, reduction_factor=factor)
        for factor in (0.25, 0.5, 1.0, 1.5, 2.0)
    }
    models["naive"] = dataclasses.replace(MODEL, variant="naive_batch_norm")
    return Sweep({name: dataclasses.replace(SMALL_CIFAR10, model=m) for name, m in models.items()})
