"""Networks as a researcher would change them, with parts that this project does not know."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gnet_jax.model import blocks
from gnet_jax.model.googlenet import GoogLeNet
from tests.tiny import tiny_arch


class NestedNorm(nn.Module):
    """A norm whose parameters are in a module inside it: "norm/group"."""

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        return nn.GroupNorm(num_groups=1, name="group")(x_BHWC)


class Gain(nn.Module):
    """A parameter of a kind that no rule knows: "norm/gain"."""

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        return x_BHWC * self.param("gain", nn.initializers.ones, (x_BHWC.shape[-1],))


def group_norm(train: bool, dtype: Any, name: str) -> nn.Module:
    return NestedNorm(name=name)


def gain(train: bool, dtype: Any, name: str) -> nn.Module:
    return Gain(name=name)


class Block(blocks.InceptionBlock):
    """The Inception block, its pool and its branch of the 5x5 open to change."""

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        w, conv = self.widths, self.conv
        branches = (
            conv(w.b1, 1, name="b1")(x_BHWC),
            conv(w.b3, 3, name="b3")(conv(w.reduce3, 1, name="reduce3")(x_BHWC)),
            self.five(conv(w.reduce5, 1, name="reduce5")(x_BHWC)),
            conv(w.pool_proj, 1, name="pool_proj")(self.pool(x_BHWC)),
        )
        return jnp.concatenate(branches, axis=-1)

    def five(self, x_BHWC: jax.Array) -> jax.Array:
        return self.conv(self.widths.b5, 5, name="b5")(x_BHWC)

    def pool(self, x_BHWC: jax.Array) -> jax.Array:
        return self.ops.max_pool(x_BHWC, 3, 1, pad=1)


class TwoThrees(Block):
    """Two 3x3 convolutions, b5a and b5b, instead of the 5x5."""

    def five(self, x_BHWC: jax.Array) -> jax.Array:
        x_BHWC = self.conv(self.widths.b5, 3, name="b5a")(x_BHWC)
        return self.conv(self.widths.b5, 3, name="b5b")(x_BHWC)


class Stack(nn.Module):
    """Two 3x3 convolutions in one module."""

    conv: Any
    features: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x_BHWC = self.conv(self.features, 3, name="first")(x_BHWC)
        return self.conv(self.features, 3, name="second")(x_BHWC)


class NestedThrees(Block):
    """The same under one name: b5/first and b5/second."""

    def five(self, x_BHWC: jax.Array) -> jax.Array:
        return Stack(self.conv, self.widths.b5, name="b5")(x_BHWC)


class ExtraLayer(Block):
    """One more 1x1 convolution, b6, behind the 5x5."""

    def five(self, x_BHWC: jax.Array) -> jax.Array:
        x_BHWC = self.conv(self.widths.b5, 5, name="b5")(x_BHWC)
        return self.conv(self.widths.b5, 1, name="b6")(x_BHWC)


class Shared(Block):
    """One 3x3 convolution, used twice instead of the 5x5."""

    def five(self, x_BHWC: jax.Array) -> jax.Array:
        w = self.widths
        twice = self.conv(w.b5, 3, name="b5")
        return twice(twice(self.conv(w.b5, 1, name="widen")(x_BHWC)))


class AveragePools(Block):
    """A pool that no parameter shows."""

    def pool(self, x_BHWC: jax.Array) -> jax.Array:
        return nn.avg_pool(x_BHWC, (3, 3), (1, 1), "SAME")


def with_block(block: Callable[..., nn.Module], variant: str = "paper") -> GoogLeNet:
    """Returns the three-block network made of `block`."""
    return GoogLeNet(tiny_arch(variant, block=block))


def with_norm(norm: Callable[..., nn.Module]) -> GoogLeNet:
    """Returns the three-block network with `norm` after every convolution."""
    return GoogLeNet(tiny_arch(norm=norm))
