"""What do local response normalisation and batch norm contribute?

    gnet ablate ablate_norm --data.source folder:imagenette160

Compares the paper's local response normalisation (LRN) with batch norm and with no normalisation.
Imagenette at 64x64 pixels, eight epochs, half the paper's width, no auxiliary heads. All three
networks use AdamW with a warm-up; the learning rate of each is tuned on held-out training images.
"""

from common import ADAMW, IMAGENETTE_64

from gnet_jax.config import Sweep, change, grid

BASE = change(IMAGENETTE_64, {"model.variant": "paper", "optim": ADAMW})


def get_sweep() -> Sweep:
    """Returns a config for each kind of normalisation."""
    norms = {name: name for name in ("lrn", "batch_norm", "none")}
    return Sweep(grid(BASE, {"model.norm": norms}), learning_rates=(0.0005, 0.001, 0.002))
