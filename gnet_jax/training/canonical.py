"""Numerics that do not depend on the number of devices: every bit, not only the first digits.

A sum of floats depends on its order, and a fast program orders its sums by how the batch lies on
the devices. Here the global batch is cut into virtual shards, as many whatever the devices. Each is
computed by itself, by the same program, with keys of its own; then all are added in one fixed
order, a binary tree. A device adds the branch of the tree that its shards are, and the rest is
added by every device alike.

It holds where one device computes the same bits as another: on one kind of chip, with one version
of the compiler; on CPUs, with one number of cores.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gnet_jax.config import ConfigError
from gnet_jax.training.step import Metrics, TrainState, apply_update


def canonical_gradient(
    gradient: Callable[..., Any], shards: int, axis_name: str
) -> Callable[..., Any]:
    """Returns a `gradient` for `train_step` that averages over all virtual shards of the batch.

    Each virtual shard has its own dropout mask.

    Args:
        gradient: such as `compute_gradient`; computes one virtual shard.
        shards: virtual shards of the global batch.
        axis_name: the mesh axis over which the batch is split.
    """

    def of_batch(
        state: TrainState, images: jax.Array, targets: jax.Array, dropout_key: jax.Array, **options
    ) -> Any:
        def of_shard(shard: Any, number: jax.Array) -> Any:
            return gradient(state, *shard, jax.random.fold_in(dropout_key, number), **options)

        return mean_over_shards(of_shard, (images, targets), shards, axis_name)

    return of_batch


def isolated_update(
    state: TrainState, grads: Any, batch_stats: Any, metrics: Metrics, **options: Any
) -> tuple[TrainState, Metrics]:
    """Returns `apply_update(...)`, compiled separately from what computes its operands."""
    update = partial(apply_update, **options)
    return isolated(update, state.step >= 0, state, grads, batch_stats, metrics)


def mean_over_shards(
    function: Callable[[Any, jax.Array], Any], batch: Any, shards: int, axis_name: str
) -> Any:
    """The mean of `function(shard, number)` over all virtual shards of the global batch.

    Args:
        function: from a shard of `batch`, and its number in the global batch, to a tree of floats.
        batch: this device's share, under shard_map.
        shards: of the global batch; a power of two, as is the number of devices.
        axis_name: the mesh axis over which the batch is split.
    """
    devices = jax.lax.psum(1, axis_name)
    local = shards // devices
    parts = jax.tree.map(lambda x: x.reshape(local, -1, *x.shape[1:]), batch)
    numbers = jax.lax.axis_index(axis_name) * local + jnp.arange(local)
    results = jax.lax.map(lambda each: function(*each), (parts, numbers))
    sums = jax.lax.all_gather(jax.tree.map(tree_sum, results), axis_name)
    return jax.tree.map(lambda x: tree_sum(x) / shards, sums)


def isolated(function: Callable[..., Any], always: jax.Array, *operands: Any) -> Any:
    """`function(*operands)`, compiled by itself.

    Fused with what came before it, which differs with the number of devices, it could round
    otherwise: on CPUs a product and a sum become one operation in one program and not in another.
    A branch of a conditional is fused with nothing; an optimization barrier would not do, for it
    is gone by then.

    Args:
        function: whose operations count.
        always: true, but not to the compiler's knowledge.
        operands: of `function`.
    """
    shapes = jax.eval_shape(function, *operands)

    def never(*_: Any) -> Any:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return jax.lax.cond(always, function, never, *operands)


def tree_sum(x: jax.Array) -> jax.Array:
    """The sum over the first axis, of a length that is a power of two: neighbours first."""
    while x.shape[0] > 1:
        x = x[0::2] + x[1::2]
    return x[0]


def check_virtual_shards(batch_size: int, shards: int, devices: int, parts: int) -> None:
    """Refuse shards that do not divide: over the devices, or the batch over them.

    Args:
        batch_size: the global one.
        shards: the virtual ones of the whole batch.
        devices: of the whole job.
        parts: that each shard is cut into: accumulation, and pairs where images are mixed.

    Raises:
        ConfigError: naming both numbers and what works.
    """
    if devices & (devices - 1):
        raise ConfigError(
            f"numerics canonical needs a power of two of devices, but there are {devices}; show "
            f"JAX {2 ** (devices.bit_length() - 1)} of them, or use --numerics fast"
        )
    if shards % (2 * devices):
        raise ConfigError(
            f"virtual_shards is {shards}, but {devices} devices need 2 or more each, all as many; "
            f"use {2 * devices} or a larger power of two"
        )
    if batch_size % (shards * parts):
        into = f"{shards} virtual shards" + (f" of parts of {parts}" if parts > 1 else "")
        low = batch_size // (shards * parts) * shards * parts
        near = f"{low} or {low + shards * parts}" if low else f"{shards * parts}"
        raise ConfigError(f"batch_size {batch_size} does not divide into {into}; use {near}")
