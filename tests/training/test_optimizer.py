import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from gnet_jax.config import Config, OptimConfig, UserError, load_recipe
from gnet_jax.training.optimizer import (
    averaging_rate,
    averaging_warning,
    learning_rate_schedule,
    make_optimizer,
    scaled,
    warm_rate,
)
from gnet_jax.training.program import prepare
from tests.odd_nets import gain
from tests.tiny import tiny_config

PARAMS = {
    "conv1": {
        "conv": {"kernel": jnp.full((2,), 1.0), "bias": jnp.full((2,), 1.0)},
        "norm": {"scale": jnp.full((2,), 1.0), "bias": jnp.full((2,), 1.0)},
    }
}


def schedule(count=100, per_epoch=10, **options):
    found = learning_rate_schedule(OptimConfig(learning_rate=1.0, **options), per_epoch, count)
    return [float(found(step)) for step in range(count)]


def test_the_papers_schedule_falls_by_four_per_cent_every_eight_epochs():
    rates = schedule(200, schedule="step")
    assert rates[0] == rates[79] == 1.0
    assert rates[80] == rates[159] == pytest.approx(0.96)
    assert rates[160] == pytest.approx(0.96**2)


def test_caffes_quick_schedule_is_a_square_root_to_zero():
    rates = schedule(schedule="poly", power=0.5)
    np.testing.assert_allclose(rates, [(1 - i / 100) ** 0.5 for i in range(100)], rtol=1e-5)


def test_cosine_with_warm_up_begins_above_zero_and_ends_at_zero():
    rates = schedule(schedule="cosine", warmup_epochs=2)
    np.testing.assert_allclose(rates[:20], [(i + 1) / 20 for i in range(20)], rtol=1e-6)
    assert rates[20] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3


def test_a_warm_up_comes_before_any_schedule_which_then_begins_at_its_peak():
    rates = schedule(schedule="step", warmup_epochs=2, decay_epochs=3, decay_rate=0.5)
    np.testing.assert_allclose(rates[:20], [(i + 1) / 20 for i in range(20)], rtol=1e-6)
    assert rates[20:50] == [1.0] * 30
    assert rates[50:80] == [0.5] * 30
    assert schedule(schedule="constant", warmup_epochs=0.1)[:3] == [1.0] * 3


@pytest.mark.parametrize("name", ["poly", "cosine"])
def test_a_schedule_is_zero_from_the_last_step_on(name):
    o = OptimConfig(learning_rate=2.0, schedule=name, power=1.0, warmup_epochs=2)
    found = learning_rate_schedule(o, 10, 100)
    assert found(20) == pytest.approx(2.0)
    assert found(60) == pytest.approx(1.0)
    assert found(99) > 0
    assert found(100) == found(150) == pytest.approx(0, abs=1e-6)


def test_intervals_of_a_part_of_an_epoch_are_rounded_to_whole_steps():
    rates = schedule(20, 2.6, schedule="step", decay_epochs=1, decay_rate=0.5)
    assert rates[:7] == [1.0] * 3 + [0.5] * 3 + [0.25]
    assert schedule(3, 1, schedule="step", decay_epochs=0.1, decay_rate=0.5) == [1.0, 0.5, 0.25]


def update(step_count=1, gradient=0.0, **options):
    optimizer = make_optimizer(OptimConfig(schedule="constant", **options), 10, 100)
    state, params = optimizer.tx.init(PARAMS), PARAMS
    for each in np.broadcast_to(gradient, step_count):
        grads = jax.tree.map(lambda x, each=each: jnp.full_like(x, each), params)
        updates, state = optimizer.tx.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return {
        f"{part}/{name}": float(value[0])
        for part, values in params["conv1"].items()
        for name, value in values.items()
    }


@pytest.mark.parametrize(
    "optimizer", ["sgd", "nesterov", "rmsprop", "adamw", "lars", "lamb", "muon"]
)
def test_kernels_alone_are_decayed(optimizer):
    after = update(optimizer=optimizer, learning_rate=0.1, weight_decay=0.01)
    assert after.pop("conv/kernel") < 1
    assert set(after.values()) == {1.0}


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "rmsprop", "adamw"])
def test_biases_learn_twice_as_fast_but_those_of_batch_norm_do_not(optimizer):
    after = update(gradient=1.0, optimizer=optimizer, learning_rate=0.01, weight_decay=0.0)
    moved = {name: 1 - value for name, value in after.items()}
    assert moved["conv/bias"] == pytest.approx(2 * moved["conv/kernel"], rel=1e-4)
    assert moved["norm/bias"] == pytest.approx(moved["conv/kernel"], rel=1e-4)
    assert moved["conv/kernel"] > 0


def test_sgd_is_caffes():
    """v <- 0.9 v + lr (g + wd w); w <- w - v, by hand for three steps."""
    w, v = 1.0, 0.0
    for _ in range(3):
        v = 0.9 * v + 0.1 * (0.5 + 0.01 * w)
        w -= v
    after = update(3, 0.5, learning_rate=0.1, weight_decay=0.01)
    assert after["conv/kernel"] == pytest.approx(w, rel=1e-6)


def test_nesterov_looks_one_step_ahead():
    """v <- 0.8 v + u; w <- w - (u + 0.8 v), with u = lr (g + wd w)."""
    w, v = 1.0, 0.0
    for _ in range(3):
        u = 0.1 * (0.5 + 0.01 * w)
        v = 0.8 * v + u
        w -= u + 0.8 * v
    options = {"momentum": 0.8, "learning_rate": 0.1, "weight_decay": 0.01}
    after = update(3, 0.5, optimizer="nesterov", **options)
    assert after["conv/kernel"] == pytest.approx(w, rel=1e-6)


def test_rmsprop_divides_the_decayed_gradient_by_its_root_mean_square():
    w, square, v = 1.0, 0.0, 0.0
    for _ in range(3):
        g = 0.5 + 0.3 * w
        square = 0.9 * square + 0.1 * g * g
        v = 0.6 * v + 0.01 * g / np.sqrt(square)
        w -= v
    options = {"momentum": 0.6, "learning_rate": 0.01, "weight_decay": 0.3}
    after = update(3, 0.5, optimizer="rmsprop", **options)
    assert after["conv/kernel"] == pytest.approx(w, rel=1e-4)


def test_adamw_decays_the_weights_after_adam():
    """A constant gradient, so that Adam's step is one; decayed before Adam it would be one, too."""
    w = 1.0
    for _ in range(3):
        w -= 0.1 * (1 + 0.3 * w)
    after = update(3, 0.5, optimizer="adamw", learning_rate=0.1, weight_decay=0.3)
    assert after["conv/kernel"] == pytest.approx(w, rel=1e-5)


def test_lars_gives_each_kernel_a_rate_from_its_norm_and_the_rest_plain_sgd():
    """v <- 0.8 v + lr 0.001 |w| / |u| u, with u = g + wd w; the two elements are equal."""
    w, v, bias, bias_v = 1.0, 0.0, 1.0, 0.0
    for _ in range(3):
        u = 0.5 + 0.3 * w
        v = 0.8 * v + 10 * 0.001 * (abs(w) / abs(u)) * u
        bias_v = 0.8 * bias_v + 10 * 0.5
        w, bias = w - v, bias - bias_v
    options = {"momentum": 0.8, "weight_decay": 0.3, "bias_lr_factor": 1.0}
    after = update(3, 0.5, optimizer="lars", learning_rate=10.0, **options)
    assert after.pop("conv/kernel") == pytest.approx(w, rel=1e-5)
    assert list(after.values()) == pytest.approx([bias] * 3, rel=1e-5)


def test_lamb_gives_each_kernel_a_step_as_long_as_its_rate_times_its_norm():
    """A constant gradient, so that Adam's step is one, which LAMB scales to the kernel's norm."""
    w, bias = 1.0, 1.0
    for _ in range(3):
        u = 1 + 0.3 * w
        w, bias = w - 0.1 * (abs(w) / abs(u)) * u, bias - 0.1
    options = {"weight_decay": 0.3, "bias_lr_factor": 1.0}
    after = update(3, 0.5, optimizer="lamb", learning_rate=0.1, **options)
    assert after.pop("conv/kernel") == pytest.approx(w, rel=1e-4)
    assert list(after.values()) == pytest.approx([bias] * 3, rel=1e-4)


def test_muon_turns_the_gradient_of_a_convolution_into_an_orthogonal_step():
    """The step has equal singular values, within those of its approximation, and an RMS of 0.2."""
    gradient = np.float32(np.random.default_rng(0).normal(size=(3, 3, 2, 6)) ** 3)
    params = {
        "conv": {"kernel": np.zeros_like(gradient), "bias": np.zeros(6, np.float32)},
        "linear": {"kernel": np.zeros((4, 2), np.float32), "bias": np.zeros(2, np.float32)},
    }
    grads = jax.tree.map(np.ones_like, params)
    grads["conv"]["kernel"] = gradient
    o = OptimConfig(optimizer="muon", learning_rate=0.1, schedule="constant")
    after = walk(make_optimizer(o, 10, 100).tx, params, [grads])
    step, matrix = -np.reshape(after["conv"]["kernel"], (18, 6)), gradient.reshape(18, 6)
    left, sizes, right = np.linalg.svd(matrix, full_matrices=False)
    assert sizes.max() > 2 * sizes.min()
    found = np.diagonal(left.T @ step @ right.T)
    length = 0.1 * 0.2 * 18**0.5
    assert found.min() > 0.6 * length
    assert found.max() < 1.3 * length
    np.testing.assert_allclose((left * found) @ right, step, atol=1e-3)
    others = walk(optax.nadam(0.01), params, [grads])  # a tenth of Muon's rate
    np.testing.assert_allclose(after["linear"]["kernel"], others["linear"]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(after["conv"]["bias"], 2 * others["conv"]["bias"], rtol=1e-5)


def odd_tree():
    """Parameters with other norms than those of `PARAMS`, and gradients for three steps."""
    draw = np.random.default_rng(0).normal
    layer = {
        "conv": {"kernel": draw(size=(3, 3, 2, 4)), "bias": draw(size=4)},
        "norm": {"scale": draw(size=4), "bias": draw(size=4)},
    }
    zero = {"conv": {"kernel": np.zeros((1, 1, 2, 2)), "bias": np.zeros(2)}}
    params = jax.tree.map(np.float32, {"conv1": layer, "conv2": zero})
    grads = [jax.tree.map(lambda x: np.float32(draw(size=x.shape)), params) for _ in range(3)]
    return params, grads


def walk(transformation, params, grads):
    state = transformation.init(params)
    for each in grads:
        updates, state = transformation.update(each, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("name", ["lars", "lamb", "muon"])
def test_without_a_bias_factor_it_is_optaxs_own_with_everything_but_kernels_left_out(name):
    params, grads = odd_tree()
    kernels = jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)
    others = jax.tree.map(lambda kernel: not kernel, kernels)
    adam = optax.chain(optax.scale_by_adam(b1=0.8, eps=1e-6), optax.scale_by_learning_rate(0.1))
    expected = {
        "lars": lambda: optax.lars(0.1, 0.3, kernels, trust_ratio_mask=kernels, momentum=0.8),
        "lamb": lambda: optax.chain(
            optax.masked(optax.lamb(0.1, b1=0.8, weight_decay=0.3), kernels),
            optax.masked(adam, others),
        ),
        "muon": lambda: optax.contrib.muon(
            0.1,
            ns_steps=3,
            beta=0.8,
            adam_learning_rate=0.01,
            adam_b1=0.8,
            weight_decay=0.3,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=jax.tree.map(
                lambda kernel: optax.contrib.MuonDimensionNumbers((0, 1, 2), 3) if kernel else None,
                kernels,
            ),
        ),
    }[name]()
    o = OptimConfig(
        optimizer=name,
        learning_rate=0.1,
        momentum=0.8,
        weight_decay=0.3,
        bias_lr_factor=1.0,
        schedule="constant",
    )
    own, theirs = walk(make_optimizer(o, 10, 100).tx, params, grads), walk(expected, params, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), own, theirs)


@pytest.mark.parametrize("name", ["lars", "lamb", "muon"])
def test_frozen_layers_stay_and_clipping_and_factors_apply_with_layer_wise_rates(name):
    params, grads = odd_tree()

    def after(**options):
        o = OptimConfig(optimizer=name, schedule="constant", **options)
        return walk(make_optimizer(o, 10, 100).tx, params, grads)

    frozen = after(freeze=("conv1",))
    jax.tree.map(np.testing.assert_array_equal, frozen["conv1"], params["conv1"])
    assert not np.array_equal(frozen["conv2"]["conv"]["bias"], params["conv2"]["conv"]["bias"])
    still = after(bias_lr_factor=0.0)["conv1"]
    np.testing.assert_array_equal(still["conv"]["bias"], params["conv1"]["conv"]["bias"])
    assert not np.array_equal(still["norm"]["bias"], params["conv1"]["norm"]["bias"])
    clipped = after(clip_norm=1e-3, weight_decay=0.0)["conv1"]["norm"]["scale"]
    moved = np.abs(clipped - params["conv1"]["norm"]["scale"]).max()
    # Adam does not depend on the gradient's scale, so only LARS is slower.
    assert (moved < 1e-4) == (name == "lars")


@pytest.mark.parametrize(
    ("scale", "batch", "reference", "rate"),
    [
        (None, 4096, None, 0.1),
        ("linear", 4096, None, 1.6),
        ("linear", 64, None, 0.025),
        ("linear", 4096, 1024, 0.4),
        ("sqrt", 4096, None, 0.4),
        ("sqrt", 4096, 1024, 0.2),
    ],
)
def test_the_learning_rate_follows_the_batch_if_the_config_says_so(scale, batch, reference, rate):
    o = OptimConfig(learning_rate=0.1, scale_learning_rate=scale, reference_batch=reference)
    found = scaled(Config(batch_size=batch, optim=o))
    assert found.learning_rate == pytest.approx(rate)
    # What is scaled once is not scaled again.
    assert scaled(Config(batch_size=batch, optim=found)) == found


def test_a_run_uses_the_scaled_rate_and_keeps_the_given_one_in_its_config(tmp_path):
    o = OptimConfig(learning_rate=0.1, scale_learning_rate="linear", schedule="constant")
    program = prepare(tiny_config(tmp_path, batch_size=32, optim=o)).program
    assert float(program.optimizer.learning_rate(0)) == pytest.approx(0.1 / 8)
    assert program.config.optim.learning_rate == 0.1


def test_the_pod_recipes_have_the_rates_of_their_sources():
    pod, large = (load_recipe(name)[0] for name in ("imagenet_pod", "imagenet_pod_32k"))
    assert scaled(pod).learning_rate == pytest.approx(1.6)
    assert scaled(dataclasses.replace(pod, batch_size=8192)).learning_rate == pytest.approx(3.2)
    schedule = learning_rate_schedule(scaled(large), 1_281_167 / 32768, 3519)
    warmup = round(12 * 1_281_167 / 32768)
    assert schedule(warmup) == pytest.approx(34.0)
    assert schedule((warmup + 3519) / 2) == pytest.approx(34.0 / 4, rel=1e-3)


def test_the_momentum_of_adamw_is_its_first_decay_rate():
    """Gradients 1 and 0: the means are 0.5 / 0.5 and 0.25 / 0.75, of the squares 1 and 0.49975."""
    options = {"momentum": 0.5, "learning_rate": 0.1, "weight_decay": 0.0}
    after = update(2, (1.0, 0.0), optimizer="adamw", **options)
    expected = 1 - 0.1 * (1 + (1 / 3) / (0.000999 / (1 - 0.999**2)) ** 0.5)
    assert after["conv/kernel"] == pytest.approx(expected, rel=1e-4)


# Each field, a value that changes the run, and what else must be set for that.
FIELDS = {
    "optimizer": ("nesterov", {}),
    "learning_rate": (0.2, {}),
    "momentum": (0.5, {}),
    "weight_decay": (0.1, {}),
    "bias_lr_factor": (3.0, {}),
    "schedule": ("cosine", {}),
    "warmup_epochs": (1.0, {}),
    "decay_rate": (0.5, {"decay_epochs": 0.1}),
    "decay_epochs": (0.1, {}),
    "power": (2.0, {"schedule": "poly"}),
    "clip_norm": (0.1, {}),
    "freeze": (("conv1/norm",), {}),
    "loaded_lr_factor": (0.5, {}),
    "averaging": ("polyak", {}),
    "ema_decay": (0.5, {"averaging": "ema"}),
    "average_from": (1.0, {"averaging": "ema"}),
}


def trajectory(**options):
    """Parameters, learning rates and averaging rates of a few steps with a loaded parameter."""
    optimizer = make_optimizer(
        OptimConfig(**options), 10, 100, frozenset({"params/conv1/conv/kernel"})
    )
    state, params, found = optimizer.tx.init(PARAMS), PARAMS, []
    for _ in range(3):
        grads = jax.tree.map(jnp.ones_like, params)
        updates, state = optimizer.tx.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        found += [float(x[0]) for x in jax.tree.leaves(params)]
    rate = optimizer.averaging_rate
    rates = [] if rate is None else [float(rate(jnp.asarray(step))) for step in (5, 50)]
    return [*found, *rates, len(rates), optimizer.frozen]


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_the_optimiser_changes_the_run(name):
    value, others = FIELDS[name]
    assert trajectory(**others) != trajectory(**others, **{name: value})


def test_no_field_of_the_optimiser_is_forgotten():
    """`accumulate` belongs to the step, `scaled` uses the next two, test_mirror.py has the last."""
    others = {"accumulate", "scale_learning_rate", "reference_batch", "mirrored_pairs"}
    names = {field.name for field in dataclasses.fields(OptimConfig)}
    assert names == FIELDS.keys() | others


def test_clipping_limits_the_global_norm():
    after = update(gradient=100.0, learning_rate=1.0, weight_decay=0.0, clip_norm=8**0.5)
    assert after["conv/kernel"] == pytest.approx(0.0, abs=1e-5)  # eight gradients of one


def averages(values, **options):
    rate = averaging_rate(OptimConfig(**options), 10)
    average, found = 0.0, []
    for step, value in enumerate(values):
        share = float(rate(jnp.asarray(step)))
        average += share * (value - average)
        found.append(average)
    return found


def test_polyak_is_the_mean_since_it_began():
    values = np.arange(1.0, 31.0)
    found = averages(values, averaging="polyak", average_from=1)
    np.testing.assert_allclose(found[9], values[9])  # the step before it begins: no average yet
    np.testing.assert_allclose(found[29], values[10:].mean(), rtol=1e-5)


def test_the_exponential_average_covers_the_last_steps_from_the_first_one_on():
    values = np.zeros(91)
    values[:10] = 1000.0  # the first steps are far from all others
    found = averages(values, averaging="ema", ema_decay=0.9)
    assert found[0] == values[0]
    assert found[44] < 1  # their mean is 222
    values = np.arange(1.0, 100.0)
    found = averages(values, averaging="ema", ema_decay=0.9)
    assert found[98] == pytest.approx(0.9 * found[97] + 0.1 * values[98])


def test_the_exponential_average_keeps_t_of_ten_plus_t_until_its_decay():
    kept = [
        1 - float(warm_rate(jnp.asarray(step), 0.99)) for step in (0, 1, 10, 90, 989, 991, 5000)
    ]
    expected = [0, 1 / 11, 0.5, 0.9, 989 / 999, 0.99, 0.99]
    np.testing.assert_allclose(kept, expected, rtol=1e-5)


def test_an_average_that_begins_late_is_the_value_itself_until_then():
    values = np.arange(1.0, 31.0)
    found = averages(values, averaging="ema", ema_decay=0.9, average_from=1)
    np.testing.assert_allclose(found[:11], values[:11])
    assert found[11] == pytest.approx(values[10] / 11 + values[11] * 10 / 11)


def warned(total_steps, **options):
    return averaging_warning(OptimConfig(**options), 45, total_steps)


def test_a_mean_over_the_whole_run_is_told_to_hold_the_first_steps():
    assert "--optim.average-from 10.8" in warned(540, averaging="polyak")
    assert warned(540, averaging="polyak", average_from=9.0) is None
    assert warned(540, averaging="ema", ema_decay=0.9999) is None


def test_no_averaging_costs_nothing():
    assert averaging_rate(OptimConfig(), 10) is None


def moved(params, **options):
    """How far every parameter moves in one step with gradients of one."""
    optimizer = make_optimizer(OptimConfig(schedule="constant", **options), 10, 100)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.tx.update(grads, optimizer.tx.init(params), params)
    return {
        "/".join(part.key for part in path): float(value.ravel()[0])
        for path, value in jax.tree.leaves_with_path(updates)
    }


def test_the_rules_follow_what_a_parameter_is_and_not_the_names_around_it():
    layer = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    group = {"scale": jnp.ones(2), "bias": jnp.ones(2)}
    params = {"conv1": {"conv": layer, "norm": {"group": group}}, "norm": layer, "whiten": group}
    plain = moved(params, learning_rate=0.1, weight_decay=0.0)
    fast = {name for name, value in plain.items() if value == pytest.approx(-0.2)}
    assert fast == {"conv1/conv/bias", "norm/bias"}
    assert all(plain[name] == pytest.approx(-0.1) for name in plain.keys() - fast)
    decayed = moved(params, learning_rate=0.1, weight_decay=0.5)
    assert {name for name in plain if decayed[name] != pytest.approx(plain[name])} == {
        "conv1/conv/kernel",
        "norm/kernel",
    }


def test_a_parameter_without_a_rule_is_refused_by_name():
    with pytest.raises(UserError, match="act/negative_slope"):
        moved({"conv": {"kernel": jnp.ones(2)}, "act": {"negative_slope": jnp.ones(2)}})


def test_a_run_refuses_a_parameter_without_a_rule_before_it_compiles(tmp_path):
    config = tiny_config(tmp_path)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, norm=gain))
    with pytest.raises(UserError, match="norm/gain"):
        prepare(config)


def test_a_run_of_one_step_and_one_that_ends_with_its_warm_up_have_schedules():
    o = OptimConfig(learning_rate=1.0, schedule="poly", power=1.0)
    found = learning_rate_schedule(o, 10, 1)
    assert [float(found(step)) for step in (0, 1)] == [1.0, 0.0]
    rates = schedule(count=20, schedule="poly", power=1.0, warmup_epochs=2)
    np.testing.assert_allclose(rates, [(i + 1) / 20 for i in range(20)], rtol=1e-6)
