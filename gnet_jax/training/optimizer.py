"""Optimisers, schedules and parameter averaging: the paper's, Caffe's and today's, in optax.

Schedules and averaging count steps; a configuration counts epochs.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gnet_jax.config import OptimConfig, choose
from gnet_jax.model.roles import Role, roles_by_path
from gnet_jax.training.finetune import select

_WARMUP = 10  # an average covers about the last tenth of the steps, until its decay is reached


class Optimizer(NamedTuple):
    """An optax transformation, and what the step reports and averages beside it."""

    tx: optax.GradientTransformation
    learning_rate: optax.Schedule
    averaging_rate: Callable[[jax.Array], jax.Array] | None  # None: no averaging
    frozen: tuple[str, ...] = ()  # patterns of the parameters that do not learn


def make_optimizer(
    o: OptimConfig,
    steps_per_epoch: float,
    total_steps: int,
    loaded: frozenset[str] = frozenset(),
) -> Optimizer:
    """The optimiser of a run of `total_steps` steps.

    Args:
        o: the configuration.
        steps_per_epoch: may be a fraction.
        total_steps: where the schedule ends.
        loaded: paths ("params/conv1/conv/kernel") of parameters that a trained model filled.
    """
    schedule = learning_rate_schedule(o, steps_per_epoch, total_steps)
    clip = optax.identity() if o.clip_norm is None else optax.clip_by_global_norm(o.clip_norm)
    decay = optax.add_decayed_weights(o.weight_decay, mask=partial(has_role, role="kernel"))
    rate = optax.chain(
        optax.scale_by_learning_rate(schedule),
        optax.masked(optax.scale(o.bias_lr_factor), partial(has_role, role="bias")),
        optax.masked(optax.scale(o.loaded_lr_factor), partial(_is_in, names=loaded)),
    )
    # Caffe's order (sgd_solver.cpp): the learning rate goes into the momentum, not after it.
    rules = {
        "sgd": (decay, rate, optax.trace(o.momentum)),
        "nesterov": (decay, rate, optax.trace(o.momentum, nesterov=True)),
        "rmsprop": (decay, optax.scale_by_rms(), rate, optax.trace(o.momentum)),
        "adamw": (optax.scale_by_adam(b1=o.momentum), decay, rate),
    }
    still = optax.masked(optax.set_to_zero(), partial(select, patterns=o.freeze))
    tx = optax.chain(clip, *choose("optim.optimizer", o.optimizer, rules), still)
    return Optimizer(tx, schedule, averaging_rate(o, steps_per_epoch), o.freeze)


def learning_rate_schedule(
    o: OptimConfig, steps_per_epoch: float, total_steps: int
) -> optax.Schedule:
    """The learning rate at each step, from 0: a linear warm-up, then the schedule of `o`.

    step: x 0.96 every 8 epochs is the paper's; poly with power 0.5 is Caffe's quick_solver.
    """
    warmup = round(o.warmup_epochs * steps_per_epoch)
    rest = max(1, total_steps - warmup)
    peak = o.learning_rate
    schedules = {
        "constant": optax.constant_schedule(peak),
        "step": optax.exponential_decay(
            peak, max(1, round(o.decay_epochs * steps_per_epoch)), o.decay_rate, staircase=True
        ),
        "poly": optax.polynomial_schedule(peak, 0.0, o.power, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
    }
    main = choose("optim.schedule", o.schedule, schedules)
    if warmup == 0:
        return main
    return optax.join_schedules([lambda step: peak * (step + 1) / warmup, main], [warmup])


def averaging_rate(
    o: OptimConfig, steps_per_epoch: float
) -> Callable[[jax.Array], jax.Array] | None:
    """Returns the share of each step's parameters in their average; None without averaging.

    Polyak's mean takes 1 / n at its n-th step, so that all steps count alike. The exponential
    average warms up as `warm_rate`. Up to `average_from` the share is 1.
    """
    floors = {"none": None, "polyak": 0.0, "ema": 1 - o.ema_decay}
    floor = choose("optim.averaging", o.averaging, floors)
    if floor is None:
        return None
    first = round(o.average_from * steps_per_epoch)

    def rate(step: jax.Array) -> jax.Array:
        steps = jnp.maximum(step - first, 0)
        return 1 / (1 + steps) if o.averaging == "polyak" else warm_rate(steps, o.ema_decay)

    return rate


def warm_rate(steps: jax.Array | int, decay: float) -> jax.Array:
    """Returns the share that an exponential average takes of a value, after so many `steps`.

    It keeps min(decay, steps / (10 + steps)), as TensorFlow's and timm's averages do but for a 1
    in the numerator: the first value is taken whole. A mean over all steps would hold the values
    of the first ones, which are far from today's, for the first 1 / (1 - decay) steps.
    """
    return jnp.maximum(_WARMUP / (_WARMUP + steps), 1 - decay)


def averaging_warning(o: OptimConfig, steps_per_epoch: float, total_steps: int) -> str | None:
    """Returns how a run is too short for its average, or begins it too early; None if neither."""
    steps = total_steps - round(o.average_from * steps_per_epoch)
    if o.averaging == "polyak" and steps == total_steps:
        return (
            "optim.averaging polyak averages the parameters of all steps, those of the first ones "
            "too, so validations are worse than the training crops suggest; begin it in the last "
            f"part of the run, such as --optim.average-from {0.9 * total_steps / steps_per_epoch:g}"
        )
    wanted = round(3 / (1 - o.ema_decay), 6)
    if o.averaging != "ema" or steps >= wanted:
        return None
    decay = 1 - float(warm_rate(max(0, steps - 1), o.ema_decay))
    fitting = math.floor(1000 * max(0.0, 1 - 3 / max(1, steps))) / 1000
    return (
        f"optim.ema_decay {o.ema_decay:g} is for runs of {wanted:,.0f} steps or more, but this one "
        f"averages {steps:,}: the decay of its warm-up ends at {decay:.3g}, so the average is over "
        f"fewer steps; train longer, or use --optim.ema-decay {fitting:g} or less"
    )


def _is_in(params: Any, names: frozenset[str]) -> Any:
    return jax.tree.map_with_path(
        lambda path, _: "/".join(("params", *(part.key for part in path))) in names, params
    )


def has_role(params: Any, role: Role) -> Any:
    """A tree of booleans like `params`: True for the parameters of that role.

    Kernels are decayed. The biases of convolutions and linear layers learn faster in Caffe. Nothing
    of a norm does either.

    Raises:
        UserError: naming a parameter of unknown role.
    """
    found = roles_by_path(params)
    return jax.tree.map_with_path(
        lambda path, _: found[tuple(part.key for part in path)] == role, params
    )
