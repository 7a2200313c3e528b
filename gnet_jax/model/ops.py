"""Which form of the costly operations a network uses: plain, as the reference, or fast.

And an outline, of the shapes alone, for what needs no values.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from gnet_jax.model import fast, fast_conv, fast_norm, layers, outline


@dataclasses.dataclass(frozen=True)
class Ops:
    """The operations that have several forms; PLAIN's and FAST's agree within rounding."""

    max_pool: Callable[..., jax.Array]
    local_response_norm: Callable[..., jax.Array]
    convolve: Callable[..., jax.Array]  # called as lax.conv_general_dilated is
    add_bias: Callable[[jax.Array, jax.Array], jax.Array]
    relu: Callable[[jax.Array], jax.Array]
    batch_norm: Callable[..., nn.Module]
    pool_first: bool  # a pool between stages in front of the ReLU: same values, a quarter as many
    join: bool  # one wide 1x1 convolution for the branches of a block that read the same input


PLAIN = Ops(
    max_pool=layers.max_pool,
    local_response_norm=layers.local_response_norm,
    convolve=lax.conv_general_dilated,
    add_bias=jnp.add,
    relu=nn.relu,
    batch_norm=nn.BatchNorm,
    pool_first=False,
    join=False,
)
FAST = Ops(
    max_pool=fast.max_pool,
    local_response_norm=fast.local_response_norm,
    convolve=fast_conv.convolve,
    add_bias=fast.add_bias,
    relu=fast.relu,
    batch_norm=fast_norm.BatchNorm,
    pool_first=True,
    join=True,
)
# The outline of each form above, by the form itself.
_OUTLINES: Mapping[Any, Any] = {
    layers.max_pool: outline.max_pool,
    fast.max_pool: outline.max_pool,
    layers.local_response_norm: outline.same,
    fast.local_response_norm: outline.same,
    lax.conv_general_dilated: outline.convolve,
    fast_conv.convolve: outline.convolve,
    jnp.add: outline.same,
    fast.add_bias: outline.same,
    nn.relu: outline.same,
    fast.relu: outline.same,
    nn.BatchNorm: outline.BatchNorm,
    fast_norm.BatchNorm: outline.BatchNorm,
}


def outlined(ops: Ops) -> Ops:
    """`ops` with the outline of each form; a form that is not of this project stays as it is."""
    forms = {field.name: getattr(ops, field.name) for field in dataclasses.fields(ops)}
    forms |= {"pool_first": False, "join": False}
    return Ops(**{name: _OUTLINES.get(form, form) for name, form in forms.items()})
