"""Which form of the costly operations a network uses: plain, as the reference, or fast."""

import dataclasses
from collections.abc import Callable

import jax
from jax import lax

from gnet_jax.model import fast, layers


@dataclasses.dataclass(frozen=True)
class Ops:
    """The operations that have two forms; the forms agree within rounding, gradients too."""

    max_pool: Callable[..., jax.Array]
    local_response_norm: Callable[..., jax.Array]
    convolve: Callable[..., jax.Array]  # called as lax.conv_general_dilated is
    join: bool  # one wide 1x1 convolution for the branches of a block that read the same input


PLAIN = Ops(layers.max_pool, layers.local_response_norm, lax.conv_general_dilated, join=False)
FAST = Ops(fast.max_pool, fast.local_response_norm, fast.convolve, join=True)
