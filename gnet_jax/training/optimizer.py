"""Optimisers, schedules, frozen layers and parameter averaging, built from optax."""

import dataclasses
import fnmatch
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from gnet_jax.config import Config, ConfigError, OptimConfig, choose
from gnet_jax.model.layers import Role, roles_by_path
from gnet_jax.training.checkpoints.verify import named_leaves
from gnet_jax.training.mirror import average_pairs

REFERENCE_BATCH = 256  # for which learning rates in the literature are given
LARS_TRUST = 0.001  # the trust coefficient (arXiv 1708.03888)
MUON_ADAM = 0.1  # ratio of Adam's learning rate, for all other parameters, to Muon's
MUON_STEPS = 3  # iterations of Muon; with optax's default of 5, a training step takes 4 % longer
MUON_RMS = 0.2  # of a kernel's updates, about that of Adam's updates (arXiv 2502.16982)
_WARMUP = 10  # during its warm-up, an average covers about the last tenth of the steps so far


class Optimizer(NamedTuple):
    """An optax transformation, with its learning rate, averaging rate and frozen parameters."""

    tx: optax.GradientTransformation
    learning_rate: optax.Schedule
    averaging_rate: Callable[[jax.Array], jax.Array] | None  # None: no averaging
    frozen: tuple[str, ...] = ()  # patterns for the names of the parameters that do not learn


def scaled(config: Config) -> OptimConfig:
    """Returns `config.optim` with the learning rate for `config.batch_size`.
    Linear: Goyal et al. (arXiv 1706.02677). Square root: Krizhevsky (arXiv 1404.5997).
    """
    o = config.optim
    if o.scale_learning_rate is None:
        return o
    ratio = config.batch_size / (o.reference_batch or REFERENCE_BATCH)
    factors = {"linear": ratio, "sqrt": math.sqrt(ratio)}
    factor = choose("optim.scale_learning_rate", o.scale_learning_rate, factors)
    return dataclasses.replace(o, learning_rate=o.learning_rate * factor, scale_learning_rate=None)


def make_optimizer(
    o: OptimConfig, steps_per_epoch: float, total_steps: int, loaded: frozenset[str] = frozenset()
) -> Optimizer:
    """Returns the optimiser of a run; its learning-rate schedule ends at `total_steps`.
    `o` has the learning rate of the batch (see `scaled`).
    `loaded` has the paths ("params/conv1/conv/kernel") of the parameters that `--init` loaded.
    """
    schedule = learning_rate_schedule(o, steps_per_epoch, total_steps)
    names = {path.removeprefix("params/") for path in loaded}
    clip = optax.identity() if o.clip_norm is None else optax.clip_by_global_norm(o.clip_norm)
    if o.mirrored_pairs:
        clip = optax.chain(average_pairs(), clip)
    kernels = _has_role("kernel")
    decay = optax.add_decayed_weights(o.weight_decay, mask=kernels)

    def trust(coefficient: float) -> optax.GradientTransformation:
        ratio = optax.scale_by_trust_ratio(trust_coefficient=coefficient)
        return optax.masked(ratio, kernels)

    rate = optax.chain(
        optax.scale_by_learning_rate(schedule),
        optax.masked(optax.scale(o.bias_lr_factor), _has_role("bias")),
        optax.masked(optax.scale(o.loaded_lr_factor), partial(_select, chosen=names.__contains__)),
    )
    # As in Caffe (sgd_solver.cpp), momentum accumulates gradients times the learning rate.
    rules = {
        "sgd": (decay, rate, optax.trace(o.momentum)),
        "nesterov": (decay, rate, optax.trace(o.momentum, nesterov=True)),
        "rmsprop": (decay, optax.scale_by_rms(), rate, optax.trace(o.momentum)),
        "adamw": (optax.scale_by_adam(b1=o.momentum), decay, rate),
        # You et al. (arXiv 1708.03888, 1904.00962). The layer-wise rate, like the decay, is for
        # kernels only: biases and batch norm would get rates near zero from their small norms.
        "lars": (decay, trust(LARS_TRUST), rate, optax.trace(o.momentum)),
        "lamb": (optax.scale_by_adam(b1=o.momentum, eps=1e-6), decay, trust(1.0), rate),
        # optax's Muon descends, as `rate` does, hence the minus.
        "muon": (
            optax.contrib.muon(
                -1.0,
                ns_steps=MUON_STEPS,
                beta=o.momentum,
                adam_learning_rate=-MUON_ADAM,
                adam_b1=o.momentum,
                muon_weight_dimension_numbers=_convolution_axes,
                consistent_rms=MUON_RMS,
            ),
            decay,
            rate,
        ),
    }
    frozen = partial(_select, chosen=partial(matches, patterns=o.freeze))
    freeze = optax.masked(optax.set_to_zero(), frozen)
    tx = optax.chain(clip, *choose("optim.optimizer", o.optimizer, rules), freeze)
    return Optimizer(tx, schedule, averaging_rate(o, steps_per_epoch), o.freeze)


def learning_rate_schedule(
    o: OptimConfig, steps_per_epoch: float, total_steps: int
) -> optax.Schedule:
    """Returns the learning rate as a function of the step: a linear warm-up, then `o.schedule`."""
    warmup, peak = round(o.warmup_epochs * steps_per_epoch), o.learning_rate
    rest = max(1, total_steps - warmup)
    decay_steps = max(1, round(o.decay_epochs * steps_per_epoch))
    schedules = {
        "constant": optax.constant_schedule(peak),
        "step": optax.exponential_decay(peak, decay_steps, o.decay_rate, staircase=True),
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
    """Returns the weight that a step's parameters get in the average, as a function of the step.
    Before `average_from`, the average is the newest parameters. From then on, all steps have the
    same weight in a Polyak average. Returns None without averaging.
    """
    ema_share = partial(warm_rate, decay=o.ema_decay)
    shares = {"none": None, "polyak": lambda steps: 1 / (1 + steps), "ema": ema_share}
    share = choose("optim.averaging", o.averaging, shares)
    first = round(o.average_from * steps_per_epoch)
    return share and (lambda step: share(jnp.maximum(step - first, 0)))


def warm_rate(steps: jax.Array | int, decay: float) -> jax.Array:
    """Returns the weight of a new value in an exponential average of `steps` earlier values.
    The old average has the weight min(decay, steps / (10 + steps)). Without this warm-up, the first
    values would dominate for 1 / (1 - decay) steps.
    """
    return jnp.maximum(_WARMUP / (_WARMUP + steps), 1 - decay)


def averaging_warning(o: OptimConfig, steps_per_epoch: float, total_steps: int) -> str | None:
    """Returns a warning if a Polyak average includes the parameters of the first steps."""
    if o.averaging != "polyak" or round(o.average_from * steps_per_epoch):
        return None
    return (
        "optim.averaging polyak includes the parameters of the first steps; average only the last "
        f"part, for example with --optim.average-from {0.9 * total_steps / steps_per_epoch:g}"
    )


def check_freeze(patterns: tuple[str, ...], params: Any) -> None:
    """Raise a ConfigError if a pattern matches no parameter, or if all parameters are frozen."""
    names = list(named_leaves(params))
    for pattern in patterns:
        if not any(matches(name, (pattern,)) for name in names):
            known = ", ".join(dict.fromkeys(name.split("/")[0] for name in names))
            raise ConfigError(f"optim.freeze: {pattern!r} matches none of the layers {known}")
    if all(matches(name, patterns) for name in names):
        raise ConfigError(f"optim.freeze {patterns} matches every parameter; nothing would learn")


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Returns whether a pattern matches `name` ("inception_3a/b5/conv/kernel") or its parents."""
    prefixes = itertools.accumulate(name.split("/"), "{}/{}".format)
    return any(fnmatch.fnmatchcase(*pair) for pair in itertools.product(prefixes, patterns))


def stop_frozen_gradients(params: Any, patterns: tuple[str, ...]) -> Any:
    """Returns `params` with stopped gradients for the frozen ones, to shorten the backward pass."""
    frozen = _select(params, partial(matches, patterns=patterns))
    return jax.tree.map(lambda x, stop: jax.lax.stop_gradient(x) if stop else x, params, frozen)


def _convolution_axes(params: Any) -> Any:
    """Returns the axes of inputs and of outputs for kernels of convolutions, and None elsewhere."""
    axes = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
    return jax.tree.map(lambda x: axes if x.ndim == 4 else None, params)


def _has_role(role: Role) -> Callable[[Any], Any]:
    """Returns a function from parameters to a tree of bools: True for parameters with this role.
    As in Caffe, weight decay is for kernels only, and `bias_lr_factor` for biases; norms have
    neither role.
    """

    def mask(params: Any) -> Any:
        roles = roles_by_path(params)
        return _select(params, lambda name: roles[tuple(name.split("/"))] == role)

    return mask


def _select(params: Any, chosen: Callable[[str], bool]) -> Any:
    """Returns a tree like `params` with `chosen(name)` as leaves; a name is "conv1/conv/kernel"."""
    return jax.tree.unflatten(jax.tree.structure(params), map(chosen, named_leaves(params)))
