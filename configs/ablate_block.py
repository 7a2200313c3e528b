"""What does each part of the Inception block contribute: reductions, the 5x5 branch, pooling?

    gnet ablate ablate_block --data.source folder:imagenette160

Compares the network with batch norm, as published (x1), with changes: every 1x1 reduction narrower
or wider by a factor; two stacked 3x3 convolutions, or a single one as in torchvision, instead of
the 5x5 convolution; a fully connected layer instead of global average pooling; and the naive block
of the paper's Fig. 2a, without reductions. Imagenette at 64x64 pixels, eight epochs, half the
paper's width, no auxiliary heads. The learning rate is tuned on held-out training images, once for
all networks with average pooling, and once for the fully connected layer.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from common import IMAGENETTE_64

from gnet_jax.config import Sweep, change, grid
from gnet_jax.model.blocks import InceptionBlock


class TwoThrees(InceptionBlock):
    """An Inception block with two stacked 3x3 convolutions instead of the 5x5 convolution."""

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        w, conv = self.widths, self.conv
        reduced3 = conv(w.reduce3, 1, name="reduce3")(x_BHWC)
        reduced5 = conv(w.reduce5, 1, name="reduce5")(x_BHWC)
        branches = (
            conv(w.b1, 1, name="b1")(x_BHWC),
            conv(w.b3, 3, name="b3")(reduced3),
            conv(w.b5, 3, name="b5b")(conv(w.b5, 3, name="b5a")(reduced5)),
            conv(w.pool_proj, 1, name="pool_proj")(self.ops.max_pool(x_BHWC, 3, 1, pad=1)),
        )
        return jnp.concatenate(branches, axis=-1)


def get_sweep() -> Sweep:
    """Returns the network as published, and one config for each change."""
    factors = {f"x{factor:g}": factor for factor in (1.0, 0.25, 0.5, 1.5, 2.0)}
    configs = grid(IMAGENETTE_64, {"model.reduction_factor": factors})
    configs["two_3x3"] = change(IMAGENETTE_64, {"model.block": TwoThrees})
    configs["3x3"] = change(IMAGENETTE_64, {"model.branch5_kernel": 3})
    configs["naive"] = change(IMAGENETTE_64, {"model.variant": "naive_batch_norm"})
    families = dict.fromkeys(configs, "x1")
    configs["fc"] = change(IMAGENETTE_64, {"model.head": "fc"})
    return Sweep(configs, learning_rates=(0.05, 0.1, 0.2), families=families)
