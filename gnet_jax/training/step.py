"""One step of training and one of evaluation, as pure functions that know no device.

Shapes: B batch, H height, W width, C channels, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from gnet_jax.config import LossConfig
from gnet_jax.data import Labels
from gnet_jax.model import GoogLeNet
from gnet_jax.training.canonical import isolated, mean_over_shards
from gnet_jax.training.finetune import without_gradient
from gnet_jax.training.optimizer import Optimizer, warm_rate

Metrics = dict[str, jax.Array]

STATISTICS_DECAY = 0.9  # of batch norm's running mean and variance, after their warm-up


class TrainState(struct.PyTreeNode):
    """Everything that changes from step to step, and nothing else."""

    step: jax.Array  # finished steps
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    average: Any  # averaged {"params", "batch_stats"}, which evaluation uses; {} without averaging
    rng: jax.Array  # never changes: the key of step n is fold_in(rng, n)


def create_state(variables: Mapping[str, Any], optimizer: Optimizer, seed: int) -> TrainState:
    """The state in front of step 0, for freshly drawn or loaded `variables`."""
    own = {"params": variables["params"], "batch_stats": variables["batch_stats"]}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        opt_state=optimizer.tx.init(variables["params"]),
        average={} if optimizer.averaging_rate is None else jax.tree.map(jnp.copy, own),
        rng=jax.random.PRNGKey(seed),
        **own,
    )


def head_names(model: GoogLeNet) -> tuple[str, ...]:
    """Prefixes of the heads' metrics: "main", then "aux4a" and so on, as `Outputs` orders them."""
    return ("main", *(f"aux{name}" for name in model.arch.aux_after))


def step_keys(rng: jax.Array, step: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """The keys of augmentation and of dropout in the step that follows `step` finished ones."""
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(rng, step))
    return augment_key, dropout_key


def cross_entropy(logits_BK: jax.Array, labels: Labels, smoothing: float) -> jax.Array:
    """Mean cross-entropy, of labels smoothed over all classes (arXiv 1512.00567, section 7).

    Of a mixed image it is that of both labels, by their shares (arXiv 1710.09412).
    """
    log_probs_BK = jax.nn.log_softmax(logits_BK)

    def of(label_B: jax.Array) -> jax.Array:
        return jnp.take_along_axis(log_probs_BK, label_B[:, None], axis=-1)[:, 0]

    of_label_B = of(labels.label)
    if labels.partner is not None and labels.share is not None:
        share_B = labels.share
        of_label_B = share_B * of_label_B + (1 - share_B) * of(labels.partner)
    return -jnp.mean((1 - smoothing) * of_label_B + smoothing * jnp.mean(log_probs_BK, axis=-1))


def loss_of(
    params: Any,
    batch_stats: Any,
    images_BHWC: jax.Array,
    labels: Labels,
    dropout_key: jax.Array,
    *,
    model: GoogLeNet,
    loss: LossConfig,
    mutable: Sequence[str] = ("batch_stats",),
) -> tuple[jax.Array, tuple[Any, Metrics]]:
    """Returns the training loss, the `mutable` collections, and `loss`, `*_loss` and `*_top1`.

    `batch_stats` are those of this batch alone: the training step averages them.
    """
    outputs, updated = model.clone(momentum=0.0).apply(
        {"params": params, "batch_stats": batch_stats},
        images_BHWC,
        train=True,
        rngs={"dropout": dropout_key},
        mutable=list(mutable),
    )
    metrics = {}
    for head, logits_BK in zip(head_names(model), (outputs.logits, *outputs.aux), strict=True):
        metrics[f"{head}_loss"] = cross_entropy(logits_BK, labels, loss.label_smoothing)
        metrics[f"{head}_top1"] = jnp.mean(jnp.argmax(logits_BK, -1) == labels.label)
    aux_losses = [metrics[f"{head}_loss"] for head in head_names(model)[1:]]
    metrics["loss"] = metrics["main_loss"] + loss.aux_weight * sum(aux_losses)
    return metrics["loss"], (updated, metrics)


def train_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    *,
    model: GoogLeNet,
    optimizer: Optimizer,
    augment: Callable[..., tuple[jax.Array, Labels]],
    loss: LossConfig,
    accumulate: int = 1,
    axis_name: str | None = None,
    virtual_shards: int | None = None,
) -> tuple[TrainState, Metrics]:
    """The state after one more step, and that step's metrics.

    The loss is that of the main head plus `loss.aux_weight` times each auxiliary head's (paper,
    section 5). Weight decay is the optimiser's, not the loss's. Where loss, gradient or the new
    parameters are not finite, nothing changes but the number of steps: see `keep_finite`.

    Args:
        batch: `image` (B, H, W, C) uint8 and `label` (B,) int32.
        augment: `(images, labels, key, offset=...)` to float32 inputs and `Labels`; see
            `gnet_jax.data.augment`.
        accumulate: parts that the batch is split into; their gradients are averaged. Batch norm
            then sees a part at a time.
        axis_name: under pmap or shard_map, the axis over which gradients are averaged; `batch` is
            then this device's share. None under jit, which averages by itself.
        virtual_shards: parts of the global batch that are computed each by itself, under shard_map
            over `axis_name`; see `gnet_jax.training.canonical`. None computes a share at once.

    Returns:
        The new state and float32 scalars: `loss`, per head `*_loss` and `*_top1` (a share of 1; of
        a mixed image the label with the larger share counts), `learning_rate`, `grad_norm`, and
        `skipped`, 1 where nothing changed.
    """
    augment_key, dropout_key = step_keys(state.rng, state.step)
    gradient = partial(
        _gradient, state, model=model, optimizer=optimizer, loss=loss, accumulate=accumulate
    )

    def of_share(share, number, dropout_key):
        offset = number * share["label"].shape[0]
        inputs = augment(share["image"], share["label"], augment_key, offset=offset)
        return gradient(*inputs, dropout_key)

    def of_numbered(share, number):
        return of_share(share, number, jax.random.fold_in(dropout_key, number))

    if axis_name is None:
        grads, batch_stats, metrics = of_share(batch, 0, dropout_key)
    elif virtual_shards is None:
        grads, batch_stats, metrics = of_numbered(batch, jax.lax.axis_index(axis_name))
        grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
    else:
        grads, batch_stats, metrics = mean_over_shards(
            of_numbered, batch, virtual_shards, axis_name
        )

    update = partial(_update, optimizer=optimizer)
    if virtual_shards is None:
        return update(state, grads, batch_stats, metrics)
    return isolated(update, state.step >= 0, state, grads, batch_stats, metrics)


def _update(
    state: TrainState, grads: Any, batch_stats: Any, metrics: Metrics, *, optimizer: Optimizer
) -> tuple[TrainState, Metrics]:
    """The state after the optimiser's step, if that is finite, and all of its metrics."""
    metrics = dict(metrics)
    metrics["learning_rate"] = jnp.asarray(optimizer.learning_rate(state.step), jnp.float32)
    metrics["grad_norm"] = norm(grads)
    updates, opt_state = optimizer.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    stats_rate = warm_rate(state.step, STATISTICS_DECAY)
    average = state.average
    if optimizer.averaging_rate is not None:
        rate = jnp.asarray(optimizer.averaging_rate(state.step), jnp.float32)
        # The batch's own statistics: the running ones lag behind the parameters, and an average of
        # them would lag even more. One batch is too few, so they are never averaged over fewer.
        average = {
            "params": optax.incremental_update(params, average["params"], rate),
            "batch_stats": optax.incremental_update(
                batch_stats, average["batch_stats"], jnp.minimum(rate, stats_rate)
            ),
        }
    new = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=optax.incremental_update(batch_stats, state.batch_stats, stats_rate),
        opt_state=opt_state,
        average=average,
    )
    return keep_finite(new, state, metrics)


def _gradient(
    state: TrainState,
    images_BHWC: jax.Array,
    labels: Labels,
    dropout_key: jax.Array,
    *,
    model: GoogLeNet,
    optimizer: Optimizer,
    loss: LossConfig,
    accumulate: int,
) -> tuple[Any, Any, Metrics]:
    """Returns gradient, the batch's own statistics and metrics of prepared images."""

    def of_learning(params, *arguments):
        params = without_gradient(params, optimizer.frozen)
        value, (updated, metrics) = loss_of(params, *arguments, model=model, loss=loss)
        return value, (updated.get("batch_stats", {}), metrics)

    gradient = jax.grad(of_learning, has_aux=True)
    if accumulate == 1:
        grads, (batch_stats, metrics) = gradient(
            state.params, state.batch_stats, images_BHWC, labels, dropout_key
        )
        return grads, batch_stats, metrics

    def one_part(_, part):
        images, labels, number = part
        return None, gradient(
            state.params, state.batch_stats, images, labels, jax.random.fold_in(dropout_key, number)
        )

    # Part p takes every accumulate-th example: each device's share then stays on that device.
    def parts_of(x):
        return x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)

    split = jax.tree.map(parts_of, (images_BHWC, labels))
    parts = (*split, jnp.arange(accumulate))
    _, stacked = jax.lax.scan(one_part, None, parts)
    grads, (batch_stats, metrics) = jax.tree.map(lambda x: jnp.mean(x, axis=0), stacked)
    return grads, batch_stats, metrics


def norm(tree: Any) -> jax.Array:
    """The Euclidean norm of all leaves together.

    The vectors, which are most of a network's arrays and few of its numbers, are taken as one: each
    by itself would be two operations more to trace, to compile, to load and to start.
    """
    leaves = jax.tree.leaves(tree)
    vectors = [x for x in leaves if x.ndim == 1]
    others = [x for x in leaves if x.ndim != 1]
    joined = [jnp.concatenate(vectors)] if vectors else []
    return optax.tree.norm([*others, *joined])


def keep_finite(new: TrainState, old: TrainState, metrics: Metrics) -> tuple[TrainState, Metrics]:
    """`new` where it is finite; else `old`, whole, but for what counts the steps.

    Looked at are the loss, the gradient, the new parameters and batch statistics: on CPUs the loss
    can stay finite while gradients are not, and the statistics while the loss is. The counter of
    the learning rate's schedule goes on with the step, so that the two never part.

    Returns:
        The state, and `metrics` with `skipped`: 1.0 where it is the old one.
    """
    size = norm((new.params, new.batch_stats))
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"] + size)

    def counts_steps(x: Any) -> bool:
        return isinstance(x, optax.ScaleByScheduleState)

    kept = jax.tree.map(
        lambda a, b: a if counts_steps(a) else jax.lax.select(finite, a, b),
        new,
        old,
        is_leaf=counts_steps,
    )
    skipped = 1.0 - finite.astype(jnp.float32)
    return kept.replace(step=new.step), metrics | {"skipped": skipped}


def eval_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    *,
    model: GoogLeNet,
    preprocess: Callable[..., jax.Array],
) -> Metrics:
    """Sums over the examples whose `mask` is True: divide by `count` when all batches are added.

    Uses the averaged parameters where the state has them.

    Returns:
        int32 `count`, `top1`, `top5` (the label is among the 5 largest logits), float32 `loss`.
    """
    variables = state.average or {"params": state.params, "batch_stats": state.batch_stats}
    outputs: Any = model.apply(variables, preprocess(batch["image"]))
    logits_BK = outputs.logits
    label_B, mask_B = batch["label"], batch["mask"]
    losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BK, label_B)
    _, best_B5 = jax.lax.top_k(logits_BK, min(5, logits_BK.shape[-1]))
    hits_B5 = (best_B5 == label_B[:, None]) & mask_B[:, None]
    return {
        "count": jnp.sum(mask_B, dtype=jnp.int32),
        "top1": jnp.sum(hits_B5[:, 0], dtype=jnp.int32),
        "top5": jnp.sum(hits_B5, dtype=jnp.int32),
        "loss": jnp.sum(jnp.where(mask_B, losses_B, 0.0)),
    }
