"""What do the auxiliary heads do for a deep network without batch norm?

    gnet ablate ablate_heads --data.source folder:imagenette160

Compares networks with no auxiliary head, one (after block 4a), and both. Imagenette at 64x64
pixels, eight epochs, 22 layers, LRN, biases, half the paper's width. The networks use AdamW with a
warm-up, because they learn slowly at first. The learning rate of each is tuned on held-out training
images. The gradient of each block is measured every 100 steps, and the report plots it.
"""

from common import ADAMW, IMAGENETTE_64

from gnet_jax.config import Sweep, change, grid

BASE = change(
    IMAGENETTE_64,
    {"model.variant": "paper", "model.aux_dropout": 0.2, "optim": ADAMW, "diagnose": 100},
)


def get_sweep() -> Sweep:
    """Returns a config for each choice of auxiliary heads."""
    heads = {"none": (), "one": ("4a",), "both": ("4a", "4d")}
    configs = grid(BASE, {"model.aux_after": heads})
    return Sweep(configs, learning_rates=(0.0005, 0.001, 0.002))
