"""Alternatives to `compute_gradient`: accumulation, canonical numerics, and `jax.pmap`.

With canonical numerics, a run is bit-identical on 1, 2, 4, 8 ... devices of the same kind. This
requires the same compiler and, on CPUs, the same number of cores. The batch is cut into a
fixed number of virtual shards. The same program computes every shard's gradient, and a fixed
binary tree adds the gradients. First each device adds the gradients of its own shards, which form
one branch of the tree. Then every device adds the sums of all branches, in the same order.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gnet_jax.training.sharding import AXIS
from gnet_jax.training.step import Metrics, TrainState, apply_update, compute_gradient, train_step

Gradient = Callable[..., tuple[Any, Any, Metrics]]


def accumulated_gradient(parts: int) -> Gradient:
    """Returns a gradient function that saves memory: it averages over equal parts of the batch.

    `parts` is their number. Each has its own dropout mask, and batch norm sees one at a time.
    """

    def gradient(state: TrainState, images: Any, targets: Any, key: Any, **options: Any) -> Any:
        # Part p is every parts-th example from p on, so no example moves to another device.
        def split(x: jax.Array) -> jax.Array:
            return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

        inputs = (split(images), split(targets), jnp.arange(parts))
        results = _map_parts(compute_gradient, state, inputs, key, options)
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), results)

    return gradient


def canonical_gradient(gradient: Gradient, shards: int) -> Gradient:
    """Returns a gradient function for shard_map that averages over all virtual shards.
    `gradient`, such as `compute_gradient`, is called for each virtual shard, each time with a
    different dropout key. The number of shards and the number of devices must be powers of two.
    """

    def batch_gradient(state: TrainState, images: Any, targets: Any, key: Any, **options: Any):
        local = shards // jax.lax.psum(1, AXIS)
        numbers = jax.lax.axis_index(AXIS) * local + jnp.arange(local)
        cut = [x.reshape(local, -1, *x.shape[1:]) for x in (images, targets)]
        results = _map_parts(gradient, state, (*cut, numbers), key, options)
        sums = jax.lax.all_gather(jax.tree.map(tree_sum, results), AXIS)
        return jax.tree.map(lambda x: tree_sum(x) / shards, sums)

    return batch_gradient


def _map_parts(
    gradient: Gradient, state: TrainState, inputs: Any, dropout_key: jax.Array, options: Any
) -> Any:
    """Call `gradient` on each part in `inputs` (images, targets, numbers) and stack the results."""

    def part_gradient(part: Any) -> Any:
        images, targets, number = part
        key = jax.random.fold_in(dropout_key, number)
        return gradient(state, images, targets, key, **options)

    return jax.lax.map(part_gradient, inputs)


def tree_sum(x: jax.Array) -> jax.Array:
    """Returns the sum over the first axis (length a power of two), adding neighbours first."""
    while x.shape[0] > 1:
        x = x[0::2] + x[1::2]
    return x[0]


def isolated_update(
    state: TrainState, grads: Any, batch_stats: Any, metrics: Metrics, **options: Any
) -> tuple[TrainState, Metrics]:
    """Returns `apply_update(...)`, compiled so that XLA cannot fuse it with the gradient.
    The gradient's program depends on the number of devices. If the two were fused, the rounding of
    the update could depend on it too. XLA fuses nothing into a branch of `lax.cond`. An
    optimization barrier would not help, because XLA removes it before fusion.
    """
    update = partial(apply_update, **options)
    operands = (state, grads, batch_stats, metrics)

    def never(*_: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, jax.eval_shape(update, *operands))

    always = state.step >= 0  # always true, but the compiler does not know it
    return jax.lax.cond(always, update, never, *operands)


def augment_share(augment: Callable[..., Any]) -> Callable[..., Any]:
    """Adapt `augment` to one device's images; their random keys are the same as on one device."""

    def share_augment(images_BHWC: jax.Array, label_B: jax.Array, key: jax.Array) -> Any:
        offset = jax.lax.axis_index(AXIS) * label_B.shape[0]
        return augment(images_BHWC, label_B, key, offset=offset)

    return share_augment


def pmap_train_step(
    *, augment: Callable[..., Any], devices: Sequence[Any] | None = None, **options: Any
) -> Callable[..., Any]:
    """Returns `train_step` under `jax.pmap`; the state passed in is donated.

    The state and the batch have a leading axis with one entry for each of `devices` (all by
    default). `options` are the other arguments of `train_step`. Batch norm needs `axis_name=AXIS`
    to compute statistics over the whole batch.
    """

    def gradient(state: TrainState, images: Any, targets: Any, key: Any, **parts: Any) -> Any:
        own_key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
        grads, batch_stats, metrics = compute_gradient(state, images, targets, own_key, **parts)
        grads, metrics = jax.lax.pmean((grads, metrics), AXIS)
        return grads, batch_stats, metrics

    step = partial(train_step, augment=augment_share(augment), gradient=gradient, **options)
    return jax.pmap(step, axis_name=AXIS, devices=devices, donate_argnums=0)
