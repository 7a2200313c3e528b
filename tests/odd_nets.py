"""Networks as a researcher would change them, with parts that this project does not know."""

import sys
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gnet_jax.model import GoogLeNet, blocks
from gnet_jax.model.layers import ConvBlock
from tests.tiny import tiny_arch

MODULE = sys.modules["gnet_jax.model.googlenet"]  # the package has a function of that name


class GroupNorm(nn.Module):
    """A norm whose parameters are in a module inside it: "norm/group"."""

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        return nn.GroupNorm(num_groups=1, name="group")(x_BHWC)


class Gain(nn.Module):
    """A parameter of a kind that no rule knows: "norm/gain"."""

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        return x_BHWC * self.param("gain", nn.initializers.ones, (x_BHWC.shape[-1],))


class Block(blocks.InceptionBlock):
    """The Inception block, its pool and its branch of the 5x5 open to change."""

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        w, conv = self.widths, self.conv
        last: dict[str, Any] = {} if self.relu else {"relu": None}
        reduced3, reduced5 = (
            conv(getattr(w, name), 1, name=name)(x_BHWC) for name in ("reduce3", "reduce5")
        )
        branches = (
            conv(w.b1, 1, name="b1", **last)(x_BHWC),
            conv(w.b3, 3, name="b3", **last)(reduced3),
            self.five(reduced5, last),
            conv(w.pool_proj, 1, name="pool_proj", **last)(self.pool(x_BHWC)),
        )
        return jnp.concatenate(branches, axis=-1)

    def five(self, x_BHWC: jax.Array, last: dict[str, Any]) -> jax.Array:
        return self.conv(self.widths.b5, 5, name="b5", **last)(x_BHWC)

    def pool(self, x_BHWC: jax.Array) -> jax.Array:
        return self.ops.max_pool(x_BHWC, 3, 1, pad=1)


class TwoThrees(Block):
    """Two 3x3 convolutions, b5a and b5b, in place of the 5x5."""

    def five(self, x_BHWC: jax.Array, last: dict[str, Any]) -> jax.Array:
        x_BHWC = self.conv(self.widths.b5, 3, name="b5a")(x_BHWC)
        return self.conv(self.widths.b5, 3, name="b5b", **last)(x_BHWC)


class Stack(nn.Module):
    """Two 3x3 convolutions in one module."""

    conv: Any
    features: int
    last: Any

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x_BHWC = self.conv(self.features, 3, name="first")(x_BHWC)
        return self.conv(self.features, 3, name="second", **self.last)(x_BHWC)


class NestedThrees(Block):
    """The same under one name: b5/first and b5/second."""

    def five(self, x_BHWC: jax.Array, last: dict[str, Any]) -> jax.Array:
        return Stack(self.conv, self.widths.b5, last, name="b5")(x_BHWC)


class ExtraLayer(Block):
    """One more 1x1 convolution, b6, behind the 5x5."""

    def five(self, x_BHWC: jax.Array, last: dict[str, Any]) -> jax.Array:
        x_BHWC = self.conv(self.widths.b5, 5, name="b5")(x_BHWC)
        return self.conv(self.widths.b5, 1, name="b6", **last)(x_BHWC)


class Shared(Block):
    """One 3x3 convolution, used twice in place of the 5x5."""

    def five(self, x_BHWC: jax.Array, last: dict[str, Any]) -> jax.Array:
        w = self.widths
        twice = self.conv(w.b5, 3, name="b5")
        return twice(twice(self.conv(w.b5, 1, name="widen")(x_BHWC)))


class AveragePools(Block):
    """A pool that no parameter shows."""

    def pool(self, x_BHWC: jax.Array) -> jax.Array:
        return nn.avg_pool(x_BHWC, (3, 3), (1, 1), "SAME")


def with_block(monkeypatch, block: type[nn.Module], variant: str = "paper") -> GoogLeNet:
    """The three-block network, made of `block`."""
    monkeypatch.setattr(MODULE, "InceptionBlock", block)
    return GoogLeNet(tiny_arch(variant))


def with_norm(monkeypatch, norm: type[nn.Module], word: str) -> GoogLeNet:
    """The three-block network with `norm` behind every convolution.

    Args:
        norm: the module.
        word: what its architecture calls it.
    """

    def conv(model: GoogLeNet, train: bool) -> Any:
        return partial(ConvBlock, norm=norm, dtype=model.dtype, convolve=model.ops.convolve)

    monkeypatch.setattr(MODULE, "_conv", conv)
    return GoogLeNet(tiny_arch(norm=word))
