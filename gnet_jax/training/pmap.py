"""The training step under `jax.pmap`, for code that has not moved to `jit` over a mesh."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from gnet_jax.training.sharding import AXIS, augment_share
from gnet_jax.training.step import Metrics, TrainState, compute_gradient, train_step


def pmap_train_step(
    *, augment: Callable[..., Any], devices: Sequence[Any] | None = None, **options: Any
) -> Callable[..., Any]:
    """Returns `train_step` under `jax.pmap`; the state passed in is donated.

    State and batch have a leading axis with one entry per device. `devices` are all by default;
    `options` are the other arguments of `train_step`. A model with batch norm needs
    `axis_name=AXIS`, so that its statistics cover the whole batch.
    """

    def gradient(state: TrainState, images: Any, targets: Any, dropout_key: Any, **parts: Any):
        key = jax.random.fold_in(dropout_key, jax.lax.axis_index(AXIS))
        grads, batch_stats, metrics = compute_gradient(state, images, targets, key, **parts)
        grads, metrics = jax.lax.pmean((grads, metrics), AXIS)
        return grads, batch_stats, metrics

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        share = augment_share(augment, AXIS)
        return train_step(state, batch, augment=share, gradient=gradient, **options)

    return jax.pmap(step, axis_name=AXIS, devices=devices, donate_argnums=0)
