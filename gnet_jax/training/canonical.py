"""Canonical numerics: every bit of a run is the same on 1, 2, 4 or more devices.

A sum of floats depends on its order, and a fast program orders its sums by how the batch is split
over the devices. Here the global batch is cut into a fixed number of virtual shards. The same
program computes each shard with its own keys, and a fixed binary tree adds the results: each device
adds the branch of its own shards, then all devices add the branches in the same order.

The promise holds for one kind of chip, one version of the compiler and, on CPUs, one number of
cores.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gnet_jax.training.step import Metrics, TrainState, apply_update


def canonical_gradient(
    gradient: Callable[..., Any], shards: int, axis_name: str
) -> Callable[..., Any]:
    """Returns a `gradient` for `train_step` that averages over all virtual shards of the batch.

    It runs under shard_map. Each virtual shard has its own dropout mask.

    Args:
        gradient: such as `compute_gradient`; computes one virtual shard.
        shards: virtual shards of the global batch; a power of two, as is the number of devices.
        axis_name: the mesh axis over which the batch is split.
    """

    def batch_gradient(
        state: TrainState, images: jax.Array, targets: jax.Array, dropout_key: jax.Array, **options
    ) -> Any:
        def shard_gradient(shard: Any) -> Any:
            images, targets, number = shard
            key = jax.random.fold_in(dropout_key, number)
            return gradient(state, images, targets, key, **options)

        local = shards // jax.lax.psum(1, axis_name)
        numbers = jax.lax.axis_index(axis_name) * local + jnp.arange(local)
        cut = [x.reshape(local, -1, *x.shape[1:]) for x in (images, targets)]
        results = jax.lax.map(shard_gradient, (*cut, numbers))
        sums = jax.lax.all_gather(jax.tree.map(tree_sum, results), axis_name)
        return jax.tree.map(lambda x: tree_sum(x) / shards, sums)

    return batch_gradient


def tree_sum(x: jax.Array) -> jax.Array:
    """Returns the sum over the first axis, neighbours first; its length is a power of two."""
    while x.shape[0] > 1:
        x = x[0::2] + x[1::2]
    return x[0]


def isolated_update(
    state: TrainState, grads: Any, batch_stats: Any, metrics: Metrics, **options: Any
) -> tuple[TrainState, Metrics]:
    """Returns `apply_update(...)`, compiled separately from what computes its operands.

    What computes them differs with the number of devices. If XLA fused both, CPUs could round
    differently, because a product and a sum become one operation in one program and not in another.
    XLA fuses nothing into a branch of a conditional; an optimization barrier is removed before
    fusion.
    """
    update = partial(apply_update, **options)
    operands = (state, grads, batch_stats, metrics)
    shapes = jax.eval_shape(update, *operands)

    def never(*_: Any) -> Any:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    always = state.step >= 0  # the compiler does not know this
    return jax.lax.cond(always, update, never, *operands)
