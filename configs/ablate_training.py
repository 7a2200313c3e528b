"""What makes 22 layers trainable: auxiliary heads, local response normalisation, batch norm?

    gnet ablate ablate_training --data.source folder:imagenette160

Compares the paper's network without auxiliary heads (lrn) with the same network with one head
(after block 4a) and with both, with batch norm, and without any normalisation. Imagenette at 64x64
pixels, eight epochs, half the paper's width. All networks use AdamW with a warm-up. The learning
rate is tuned on held-out training images, once for each kind of normalisation. The gradient of each
block is measured every 100 steps, and the report plots it.
"""

from common import ADAMW, IMAGENETTE_64

from gnet_jax.config import Sweep, change

BASE = change(
    IMAGENETTE_64,
    {"model.variant": "paper", "model.aux_dropout": 0.2, "optim": ADAMW, "diagnose": 100},
)


def get_sweep() -> Sweep:
    """Returns the paper's network without auxiliary heads, and one config for each change."""
    configs = {
        "lrn": BASE,
        "lrn+4a": change(BASE, {"model.aux_after": ("4a",)}),
        "lrn+4a+4d": change(BASE, {"model.aux_after": ("4a", "4d")}),
        "batch_norm": change(BASE, {"model.norm": "batch_norm"}),
        "no_norm": change(BASE, {"model.norm": "none"}),
    }
    families = {"lrn+4a": "lrn", "lrn+4a+4d": "lrn"}
    return Sweep(configs, learning_rates=(0.0005, 0.001, 0.002), families=families)
