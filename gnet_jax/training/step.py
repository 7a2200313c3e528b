"""The training step and the evaluation step as pure functions.

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
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.training.optimizer import Optimizer, stop_frozen_gradients, warm_rate

Metrics = dict[str, jax.Array]

STATISTICS_DECAY = 0.9  # decay of batch norm's running mean and variance after their warm-up


class TrainState(struct.PyTreeNode):
    """The state of training, which a step takes and returns."""

    step: jax.Array  # number of finished steps
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    average: Any  # averages of params and batch_stats, for evaluation; {} without averaging
    rng: jax.Array  # never changes: the key of step n is fold_in(rng, n)


def create_state(variables: Mapping[str, Any], optimizer: Optimizer, seed: int) -> TrainState:
    """Returns the state of a run before its first step, with the given variables."""
    own = {"params": variables["params"], "batch_stats": variables["batch_stats"]}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        opt_state=optimizer.tx.init(variables["params"]),
        average={} if optimizer.averaging_rate is None else jax.tree.map(jnp.copy, own),
        rng=jax.random.PRNGKey(seed),
        **own,
    )


def step_keys(rng: jax.Array, step: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the keys (augmentation, dropout) for the step that follows `step` finished steps."""
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(rng, step))
    return augment_key, dropout_key


def compute_gradient(
    state: TrainState, images_BHWC: Any, targets_BK: Any, dropout_key: Any, **options: Any
) -> tuple[Any, Any, Metrics]:
    """Returns three values: the loss's gradient, this batch's norm statistics, the heads' metrics.
    `options` are the `model`, `optimizer` and `loss` of `compute_loss`.
    """
    gradient = jax.grad(partial(compute_loss, **options), has_aux=True)
    grads, (updated, metrics) = gradient(
        state.params, state.batch_stats, images_BHWC, targets_BK, dropout_key
    )
    return grads, updated.get("batch_stats", {}), metrics


def compute_loss(
    params: Any,
    batch_stats: Any,
    images_BHWC: jax.Array,
    targets_BK: jax.Array,
    dropout_key: jax.Array,
    *,
    model: GoogLeNet,
    optimizer: Optimizer,
    loss: LossConfig,
    mutable: Sequence[str] = ("batch_stats",),
) -> tuple[jax.Array, tuple[Any, Metrics]]:
    """Returns the training loss, and a pair: the `mutable` collections and the metrics.

    The loss is that of the main head plus `loss.aux_weight` times that of each auxiliary head
    (paper, section 5), with label smoothing (arXiv 1512.00567). The metrics are `loss`, and each
    head's `*_loss` and `*_top1`. The `batch_stats` are the statistics of this batch alone;
    `apply_update` averages them. The optimiser's frozen parameters have no gradient.
    """
    outputs, updated = model.clone(momentum=0.0).apply(
        {"params": stop_frozen_gradients(params, optimizer.frozen), "batch_stats": batch_stats},
        images_BHWC,
        train=True,
        rngs={"dropout": dropout_key},
        mutable=list(mutable),
    )
    metrics, losses = {}, []
    logits = (outputs.logits, *outputs.aux_logits)
    with jax.named_scope("loss"):
        smooth_BK = optax.smooth_labels(targets_BK, loss.label_smoothing)
        for head, logits_BK in zip(head_names(model), logits, strict=True):
            losses.append(jnp.mean(optax.softmax_cross_entropy(logits_BK, smooth_BK)))
            hits_B = jnp.argmax(logits_BK, -1) == jnp.argmax(targets_BK, -1)
            metrics |= {f"{head}_loss": losses[-1], f"{head}_top1": jnp.mean(hits_B)}
        metrics["loss"] = losses[0] + loss.aux_weight * sum(losses[1:])
    return metrics["loss"], (updated, metrics)


def head_names(model: GoogLeNet) -> tuple[str, ...]:
    """Returns the names of the heads in the order of `Outputs`: "main", "aux4a" and so on."""
    return ("main", *(f"aux{name}" for name in model.arch.aux_after))


def apply_update(
    state: TrainState, grads: Any, batch_stats: Any, metrics: Metrics, *, optimizer: Optimizer
) -> tuple[TrainState, Metrics]:
    """Returns the updated state, and `metrics` with `learning_rate` and `grad_norm` added."""
    updates, opt_state = optimizer.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    stats_rate = warm_rate(state.step, STATISTICS_DECAY)
    average = state.average
    if optimizer.averaging_rate is not None:
        rate = jnp.asarray(optimizer.averaging_rate(state.step), jnp.float32)
        # Average the statistics of each batch, because the running statistics lag behind the
        # parameters. The average covers at least as many batches as the running statistics.
        rates = {"params": rate, "batch_stats": jnp.minimum(rate, stats_rate)}
        new = {"params": params, "batch_stats": batch_stats}
        average = {k: optax.incremental_update(new[k], average[k], rates[k]) for k in new}
    new_state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=optax.incremental_update(batch_stats, state.batch_stats, stats_rate),
        opt_state=opt_state,
        average=average,
    )
    learning_rate = jnp.asarray(optimizer.learning_rate(state.step), jnp.float32)
    return new_state, metrics | {"learning_rate": learning_rate, "grad_norm": norm(grads)}


def norm(tree: Any) -> jax.Array:
    """Returns the Euclidean norm over all leaves."""
    # Concatenate the many small vectors, because each one alone would launch two operations.
    leaves = jax.tree.leaves(tree)
    vectors = [x for x in leaves if x.ndim == 1]
    joined = [jnp.concatenate(vectors)] if vectors else []
    return optax.tree.norm([*(x for x in leaves if x.ndim != 1), *joined])


def keep_finite(new: TrainState, old: TrainState, metrics: Metrics) -> tuple[TrainState, Metrics]:
    """Returns `new` if it is finite, otherwise `old` with its step counters advanced.
    Checks the loss, gradient, parameters and batch statistics, because on CPUs any one of them can
    be the only one that is not finite. Adds the metric `skipped`: 1.0 if `old` is returned,
    otherwise 0.0.
    """
    size = norm((new.params, new.batch_stats))
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"] + size)

    def keep(a: Any, b: Any) -> Any:
        return a if counts_steps(a) else jax.lax.select(finite, a, b)

    kept = jax.tree.map(keep, new, old, is_leaf=counts_steps).replace(step=new.step)
    return kept, metrics | {"skipped": 1.0 - finite.astype(jnp.float32)}


def counts_steps(x: Any) -> bool:
    """Returns whether `x` is a part of the optimiser's state that counts the steps of the run."""
    return isinstance(x, optax.ScaleByScheduleState)


def train_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    *,
    model: GoogLeNet,
    optimizer: Optimizer,
    augment: Callable[..., tuple[jax.Array, jax.Array]],
    loss: LossConfig,
    gradient: Callable[..., tuple[Any, Any, Metrics]] = compute_gradient,
    update: Callable[..., tuple[TrainState, Metrics]] = apply_update,
) -> tuple[TrainState, Metrics]:
    """Returns the state after one optimiser step, and the step's metrics.

    `batch` has `image` (B, H, W, C) uint8 and `label` (B,) int32, which `augment` turns into
    float32 inputs and targets. The metrics are float32 scalars: `loss`, each head's `*_loss` and
    `*_top1`, `learning_rate`, `grad_norm`, `skipped`. `gradients.py` has alternatives for
    `gradient`.
    """
    augment_key, dropout_key = step_keys(state.rng, state.step)
    with jax.named_scope("augment"):  # `gnet profile` shows the time by scope
        images_BHWC, targets_BK = augment(batch["image"], batch["label"], augment_key)
    grads, batch_stats, metrics = gradient(
        state, images_BHWC, targets_BK, dropout_key, model=model, optimizer=optimizer, loss=loss
    )
    with jax.named_scope("optimizer"):
        new_state, metrics = update(state, grads, batch_stats, metrics, optimizer=optimizer)
        return keep_finite(new_state, state, metrics)


def eval_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    *,
    model: GoogLeNet,
    preprocess: Callable[..., jax.Array],
) -> Metrics:
    """Returns the sums of the metrics over the examples whose `mask` is True.
    They are int32 `count`, `top1`, `top5` and float32 `loss`. Uses averaged parameters if present.
    """
    variables = state.average or {"params": state.params, "batch_stats": state.batch_stats}
    outputs: Any = model.apply(variables, preprocess(batch["image"]))
    return sum_metrics(outputs.logits, batch["label"], batch["mask"])


def sum_metrics(logits_BK: jax.Array, label_B: jax.Array, mask_B: jax.Array) -> Metrics:
    """Returns the metrics of one head, summed over the examples in the mask; see `eval_step`."""
    losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BK, label_B)
    _, best_B5 = jax.lax.top_k(logits_BK, min(5, logits_BK.shape[-1]))
    hits_B5 = (best_B5 == label_B[:, None]) & mask_B[:, None]
    return {
        "count": jnp.sum(mask_B, dtype=jnp.int32),
        "top1": jnp.sum(hits_B5[:, 0], dtype=jnp.int32),
        "top5": jnp.sum(hits_B5, dtype=jnp.int32),
        "loss": jnp.sum(jnp.where(mask_B, losses_B, 0.0)),
    }
