"""The Inception block, its naive ancestor, and the auxiliary classifier.

Shapes: B batch, H height, W width, C channels, K classes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gnet_jax.config import choose
from gnet_jax.model.initializers import caffe_xavier, constant
from gnet_jax.model.layers import ConvBlock, adaptive_average_pool, average_pool
from gnet_jax.model.ops import FAST, Ops
from gnet_jax.model.widths import Widths

Joined = Literal["b1", "reduce3", "reduce5"]  # the 1x1 convolutions that read a block's input


class InceptionBlock(nn.Module):
    """Four branches over one input, concatenated on channels (paper, Fig. 2b)."""

    widths: Widths
    conv: Callable[..., nn.Module]  # partial(ConvBlock, ...): norm, dtype and mode already bound
    branch5_kernel: int = 5
    ops: Ops = FAST
    relu: bool = True  # False leaves that of the output to the caller

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        w, conv, one = self.widths, self.conv, self._joined(x_BHWC)
        last = {} if self.relu else {"relu": None}
        pooled = self.ops.max_pool(x_BHWC, 3, 1, pad=1)
        self.sow("intermediates", "pool", pooled)
        reduced3 = one(w.reduce3, 1, name="reduce3")(x_BHWC)
        reduced5 = one(w.reduce5, 1, name="reduce5")(x_BHWC)
        branches = (
            one(w.b1, 1, name="b1", **last)(x_BHWC),
            conv(w.b3, 3, name="b3", **last)(reduced3),
            conv(w.b5, self.branch5_kernel, name="b5", **last)(reduced5),
            conv(w.pool_proj, 1, name="pool_proj", **last)(pooled),
        )
        return jnp.concatenate(branches, axis=-1)

    def _joined(self, x_BHWC: jax.Array) -> Callable[..., nn.Module]:
        """`conv` for the three 1x1 convolutions of `x`, their products taken from one wide one.

        The parameters stay apart, so they must exist: `init` computes every branch by itself.
        """
        ours = isinstance(self.conv, partial) and self.conv.func is ConvBlock
        if not (self.ops.join and ours) or self.is_initializing():
            return self.conv  # a convolution of another kind may compute anything
        params = self.variables["params"]
        names: tuple[Joined, ...] = get_args(Joined)
        kernels = [params[name]["conv"]["kernel"].astype(x_BHWC.dtype) for name in names]
        wide = self.ops.convolve(
            x_BHWC,
            jnp.concatenate(kernels, axis=-1),
            (1, 1),
            [(0, 0), (0, 0)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        ends = np.cumsum([kernel.shape[-1] for kernel in kernels])
        products = dict(zip(names, jnp.split(wide, ends[:-1], axis=-1), strict=True))

        def one(*args: Any, name: Joined, **options: Any) -> nn.Module:
            return self.conv(*args, name=name, convolve=lambda *_, **__: products[name], **options)

        return one


class NaiveInceptionBlock(nn.Module):
    """The block without its 1x1 reductions, the max pool passed through (paper, Fig. 2a)."""

    widths: Widths
    conv: Callable[..., nn.Module]
    branch5_kernel: int = 5
    ops: Ops = FAST
    relu: bool = True  # False leaves that of the output to the caller

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        w, conv = self.widths, self.conv
        last = {} if self.relu else {"relu": None}
        pooled = self.ops.max_pool(x_BHWC, 3, 1, pad=1)
        self.sow("intermediates", "pool", pooled)
        branches = (
            conv(w.b1, 1, name="b1", **last)(x_BHWC),
            conv(w.b3, 3, name="b3", **last)(x_BHWC),
            conv(w.b5, self.branch5_kernel, name="b5", **last)(x_BHWC),
            pooled,
        )
        return jnp.concatenate(branches, axis=-1)


class AuxHead(nn.Module):
    """A classifier on an intermediate feature map, there to train the layers below it (paper, 5).

    Average pool 5x5/3, 1x1 convolution, fully connected layer, dropout, linear layer. Returns
    float32 logits of shape (B, K).
    """

    num_classes: int
    widths: tuple[int, int]  # channels of the 1x1 convolution, units of the hidden layer
    conv: Callable[..., nn.Module]
    pool: Literal["caffe", "adaptive"]
    dropout: float
    train: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        pools = {
            "caffe": lambda x: average_pool(x, 5, 3),
            "adaptive": lambda x: adaptive_average_pool(x, 4),
        }
        x = choose("aux_pool", self.pool, pools)(x_BHWC)
        x = self.conv(self.widths[0], 1, name="conv")(x)
        x_BC = x.reshape(x.shape[0], -1)
        hidden = nn.Dense(
            self.widths[1],
            kernel_init=caffe_xavier,
            bias_init=constant(0.2),
            dtype=self.dtype,
            name="fc",
        )
        x_BC = nn.relu(hidden(x_BC))
        x_BC = nn.Dropout(self.dropout, deterministic=not self.train)(x_BC)
        # float32 logits whatever the compute dtype
        classifier = nn.Dense(
            self.num_classes,
            kernel_init=caffe_xavier,
            bias_init=constant(0.0),
            dtype=jnp.float32,
            name="classifier",
        )
        return classifier(x_BC)
