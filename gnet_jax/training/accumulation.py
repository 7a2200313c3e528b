"""Gradient accumulation: compute the gradient of a batch in several parts, to save memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gnet_jax.training.step import Metrics, TrainState, compute_gradient


def accumulated_gradient(parts: int) -> Callable[..., tuple[Any, Any, Metrics]]:
    """Returns a `gradient` for `train_step` that averages over `parts` parts of the batch.

    Each part has its own dropout mask, and batch norm sees one part at a time.
    """

    def gradient(
        state: TrainState,
        images_BHWC: jax.Array,
        targets_BK: jax.Array,
        dropout_key: jax.Array,
        **options: Any,
    ) -> tuple[Any, Any, Metrics]:
        def part_gradient(part: Any) -> tuple[Any, Any, Metrics]:
            images, targets, number = part
            key = jax.random.fold_in(dropout_key, number)
            return compute_gradient(state, images, targets, key, **options)

        # Part p takes every parts-th example, so that each device's share stays on that device.
        def split(x: jax.Array) -> jax.Array:
            return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

        inputs = (split(images_BHWC), split(targets_BK), jnp.arange(parts))
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), jax.lax.map(part_gradient, inputs))

    return gradient
