"""The Inception block, the naive Inception block, and the auxiliary classifier.

Shapes: B batch, H height, W width, C channels, K classes.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gnet_jax.errors import choose
from gnet_jax.model.architecture import Architecture
from gnet_jax.model.layers import apply_each, dense
from gnet_jax.model.widths import Widths
from gnet_jax.ops.fast import FAST
from gnet_jax.ops.reference import Ops, adaptive_average_pool, average_pool


class InceptionBlock(nn.Module):
    """Applies four branches to one input and concatenates their channels (paper, Fig. 2b)."""

    widths: Widths
    conv: Callable[..., nn.Module]  # a ConvBlock with norm, dtype and train mode already bound
    branch5_kernel: int = 5
    ops: Ops = FAST

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        w, conv = self.widths, self.conv
        convs_1x1 = [
            conv(w.b1, 1, name="b1"),
            conv(w.reduce3, 1, name="reduce3"),
            conv(w.reduce5, 1, name="reduce5"),
        ]
        b1, reduced3, reduced5 = apply_each(convs_1x1, x_BHWC)
        pooled = self.ops.max_pool(x_BHWC, 3, 1, pad=1)
        self.sow("intermediates", "pool", pooled)
        branches = (
            b1,
            conv(w.b3, 3, name="b3")(reduced3),
            conv(w.b5, self.branch5_kernel, name="b5")(reduced5),
            conv(w.pool_proj, 1, name="pool_proj")(pooled),
        )
        return jnp.concatenate(branches, axis=-1)


class NaiveInceptionBlock(InceptionBlock):
    """Inception block without 1x1 reductions and without a pool projection (paper, Fig. 2a)."""

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        w, conv = self.widths, self.conv
        pooled = self.ops.max_pool(x_BHWC, 3, 1, pad=1)
        self.sow("intermediates", "pool", pooled)
        branches = (
            conv(w.b1, 1, name="b1")(x_BHWC),
            conv(w.b3, 3, name="b3")(x_BHWC),
            conv(w.b5, self.branch5_kernel, name="b5")(x_BHWC),
            pooled,
        )
        return jnp.concatenate(branches, axis=-1)


class AuxHead(nn.Module):
    """An auxiliary classifier on an intermediate feature map (paper, section 5).

    It is meant to help the training of the layers before it. Returns float32 logits (B, K).
    """

    arch: Architecture
    conv: Callable[..., nn.Module]
    train: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        arch, (channels, units) = self.arch, self.arch.aux_widths
        adaptive = choose("aux_pool", arch.aux_pool, {"caffe": False, "adaptive": True})
        x = adaptive_average_pool(x_BHWC, 4) if adaptive else average_pool(x_BHWC, 5, 3)
        x = self.conv(channels, 1, name="conv")(x)
        x_BC = x.reshape(x.shape[0], -1)
        x_BC = nn.relu(dense(units, self.dtype, bias=0.2, name="fc")(x_BC))
        x_BC = nn.Dropout(arch.aux_dropout, deterministic=not self.train)(x_BC)
        return dense(arch.num_classes, jnp.float32, name="classifier")(x_BC)
