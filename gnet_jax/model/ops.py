"""Which form of the costly operations a network uses: plain, as the reference, or fast."""

import dataclasses
from collections.abc import Callable

import jax

from gnet_jax.model import fast, layers


@dataclasses.dataclass(frozen=True)
class Ops:
    """The operations that have two forms, as functions; they agree within rounding."""

    max_pool: Callable[..., jax.Array]
    local_response_norm: Callable[..., jax.Array]


PLAIN = Ops(layers.max_pool, layers.local_response_norm)
FAST = Ops(fast.max_pool, fast.local_response_norm)
