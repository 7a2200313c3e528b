import dataclasses
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnet_jax.config import AugmentConfig, LossConfig, OptimConfig, Preprocessing
from gnet_jax.data.augment import augment, preprocess
from gnet_jax.model.googlenet import GoogLeNet, Outputs
from gnet_jax.training.accumulation import accumulated_gradient
from gnet_jax.training.optimizer import make_optimizer
from gnet_jax.training.pmap import pmap_train_step
from gnet_jax.training.sharding import (
    AXIS,
    compile_eval_step,
    compile_train_step,
    data_mesh,
    put_state,
)
from gnet_jax.training.step import (
    create_state,
    eval_step,
    head_losses,
    keep_finite,
    step_keys,
    train_step,
)
from tests.tiny import tiny_arch, tiny_batch, tiny_variables

NO_DROPOUT = {"dropout": 0.0, "aux_dropout": 0.0}
PIXELS = Preprocessing(image_size=16, mean=(127.0,) * 3, std=(64.0,) * 3)


def new_state(model, optimizer):
    # numpy copies: the step donates what it is given
    state = create_state(tiny_variables(model), optimizer, seed=0)
    return jax.tree.map(np.array, state)


def pure_step(model, augmentation=AugmentConfig(), **options):  # noqa: B008 (frozen)
    optimizer = make_optimizer(OptimConfig(averaging="ema", weight_decay=0.0), 10, 100)
    step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        augment=partial(augment, preprocessing=PIXELS, augmentation=augmentation, num_classes=10),
        loss=LossConfig(label_smoothing=0.1),
        **options,
    )
    return step, new_state(model, optimizer)


def one_step(devices, variant="paper", accumulate=1, **arch_changes):
    """(state before, state after, metrics) of one step over so many devices."""
    model = GoogLeNet(tiny_arch(variant, **arch_changes))
    step, before = pure_step(model, gradient=accumulated_gradient(accumulate))
    mesh, batch = data_mesh(jax.devices()[:devices]), tiny_batch()
    compiled = compile_train_step(mesh, step, before, batch)
    placed = jax.device_put(batch, compiled.input_shardings[0][1])
    after, metrics = compiled(put_state(before, mesh), placed)
    return before, jax.tree.map(np.array, after), jax.device_get(metrics)


@pytest.fixture(scope="module")
def on_one_device():
    return one_step(1)


@pytest.fixture(scope="module")
def on_eight_devices_without_dropout():
    return one_step(8, **NO_DROPOUT)


def assert_close(a, b):
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5, err_msg=str(path))


def test_eight_devices_give_the_result_of_one(on_one_device):
    _, one, one_metrics = on_one_device
    _, eight, eight_metrics = one_step(8)
    assert_close(one, eight)
    assert_close(one_metrics, eight_metrics)


def test_every_parameter_moves_those_of_the_aux_heads_too(on_one_device):
    before, after, _ = on_one_device
    for (path, x), y in zip(
        jax.tree.leaves_with_path(before.params), jax.tree.leaves(after.params), strict=True
    ):
        assert (x != y).any(), path
    assert "aux_4a" in before.params


def test_a_step_counts_averages_and_keeps_its_key(on_one_device):
    before, after, _ = on_one_device
    assert after.step == before.step + 1
    np.testing.assert_array_equal(after.rng, before.rng)
    assert_close(after.average["params"], after.params)  # the first average is the value itself


def test_the_loss_is_the_main_one_and_a_share_of_each_aux_heads(on_one_device):
    metrics = on_one_device[2]
    total = metrics["main_loss"] + 0.3 * metrics["aux4a_loss"]
    assert metrics["loss"] == pytest.approx(total, rel=1e-6)
    assert metrics["grad_norm"] > 0
    assert metrics["learning_rate"] == pytest.approx(0.01)
    assert 0 <= metrics["aux4a_top1"] <= 1


def test_pmap_gives_the_result_of_jit(on_eight_devices_without_dropout):
    before, jitted, jit_metrics = on_eight_devices_without_dropout
    model = GoogLeNet(tiny_arch(**NO_DROPOUT), axis_name=AXIS)
    step, _ = pure_step(model)
    per_device = {k: v.reshape(8, 2, *v.shape[1:]) for k, v in tiny_batch().items()}
    copies = jax.tree.map(lambda x: np.stack([x] * 8), before)
    after, metrics = pmap_train_step(**step.keywords)(copies, per_device)
    for device in (0, 7):
        assert_close(jax.tree.map(lambda x, d=device: np.array(x[d]), after), jitted)
    np.testing.assert_allclose(metrics["grad_norm"], [jit_metrics["grad_norm"]] * 8, rtol=1e-4)


def test_accumulation_gives_the_result_of_the_whole_batch(on_eight_devices_without_dropout):
    _, whole, whole_metrics = on_eight_devices_without_dropout
    _, parts, part_metrics = one_step(8, accumulate=2, **NO_DROPOUT)
    assert_close(whole, parts)
    assert_close(whole_metrics, part_metrics)


@pytest.mark.slow
def test_batch_norm_averages_over_all_devices_under_jit_and_pmap():
    before, one, _ = one_step(1, "batch_norm", **NO_DROPOUT)
    _, eight, _ = one_step(8, "batch_norm", **NO_DROPOUT)
    assert_close(one, eight)
    model = GoogLeNet(tiny_arch("batch_norm", **NO_DROPOUT), axis_name=AXIS)
    step, _ = pure_step(model)
    per_device = {k: v.reshape(8, 2, *v.shape[1:]) for k, v in tiny_batch().items()}
    after, _ = pmap_train_step(**step.keywords)(
        jax.tree.map(lambda x: np.stack([x] * 8), before), per_device
    )
    assert_close(jax.tree.map(lambda x: np.array(x[0]), after), one)
    moved = jax.tree.map(lambda a, b: (a != b).any(), before.batch_stats, one.batch_stats)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_each_head_is_the_cross_entropy_with_its_smoothed_targets(smoothing):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(3, 6, 10))  # of the main head and two others
    targets = generator.dirichlet(np.ones(10), 6)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    smooth = (1 - smoothing) * targets + smoothing / 10
    expected = -(smooth * log_probs).sum(-1).mean(-1)
    found = head_losses(Outputs(logits[0], tuple(logits[1:])), jnp.asarray(targets), smoothing)
    assert [float(value) for value in found] == pytest.approx(expected.tolist(), rel=1e-5)


class Linear:
    """Two heads that are linear in the pixels: a network whose loss is derived by hand."""

    arch = types.SimpleNamespace(aux_after=("4a",))

    def clone(self, **_):
        return self

    def apply(self, variables, images, **_):
        main, aux = (
            images.reshape(len(images), -1) @ variables["params"][head]["kernel"]
            for head in ("classifier", "aux_4a")
        )
        return Outputs(main, (aux,)), {}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_with_mixup_is_the_gradient_of_the_mixed_loss(accumulate):
    """Against a whole batch that is mixed, and whose loss is derived, by hand."""
    a = AugmentConfig(flip=False, mixup=1)
    mixed = partial(augment, preprocessing=PIXELS, augmentation=a, num_classes=10)
    optimizer = make_optimizer(OptimConfig(weight_decay=0.0), 10, 100)
    generator = np.random.default_rng(0)
    heads = {
        head: {"kernel": generator.normal(0, 0.02, (768, 10)).astype(np.float32)}
        for head in ("classifier", "aux_4a")
    }
    before, batch = create_state({"params": heads, "batch_stats": {}}, optimizer, 0), tiny_batch(8)
    batch["label"] = np.arange(8, dtype=np.int32)  # the two images of a pair differ in class
    step = partial(
        train_step,
        model=Linear(),
        optimizer=optimizer,
        augment=mixed,
        loss=LossConfig(label_smoothing=0.1),
        gradient=accumulated_gradient(accumulate),
    )
    after, metrics = jax.jit(step)(before, batch)

    key, _ = step_keys(before.rng, before.step)
    targets = np.asarray(jax.jit(mixed)(batch["image"], batch["label"], key)[1])
    share = targets.max(-1, keepdims=True)
    assert share.min() < 0.9
    partner = np.arange(8) ^ 1
    pixels = batch["image"].reshape(8, -1)
    x = (share * pixels + (1 - share) * pixels[partner] - 127) / 64
    one_hot = np.eye(10)[batch["label"]]
    targets = 0.9 * (share * one_hot + (1 - share) * one_hot[partner]) + 0.01
    losses, top1 = [], []
    for (name, head), weight in zip(heads.items(), (1.0, 0.3), strict=True):
        logits = x @ head["kernel"]
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses.append(-(targets * log_probs).sum(-1).mean())
        top1.append((logits.argmax(-1) == batch["label"]).mean())  # that of the larger share
        gradient = weight * x.T @ (np.exp(log_probs) - targets) / 8
        moved = after.params[name]["kernel"] - head["kernel"]
        np.testing.assert_allclose(moved, -0.01 * gradient, rtol=2e-3, atol=2e-5)
    assert [float(metrics[f"{head}_top1"]) for head in ("main", "aux4a")] == top1
    found = [float(metrics[name]) for name in ("main_loss", "aux4a_loss", "loss")]
    assert found == pytest.approx([*losses, losses[0] + 0.3 * losses[1]], rel=1e-3)


class Statistics(Linear):
    """`Linear` with statistics of its batch: the mean of the pixels."""

    def __init__(self, momentum=0.9):
        self.momentum = momentum

    def clone(self, momentum):
        return Statistics(momentum)

    def apply(self, variables, images, **_):
        outputs, _ = super().apply(variables, images)
        old, new = variables["batch_stats"]["mean"], jnp.mean(images)
        mean = self.momentum * old + (1 - self.momentum) * new
        return outputs, {"batch_stats": {"mean": mean}}


def grey(level):
    return {
        "image": np.full((4, 16, 16, 3), 127 + 64 * level, np.uint8),
        "label": np.zeros(4, np.int32),
    }


def statistics_after(levels, finished=0, accumulate=1, **options):
    """Batch and averaged statistics after a step on images of each of the `levels`."""
    optimizer = make_optimizer(OptimConfig(**options), 10, 1000)
    kernel = {"kernel": np.zeros((768, 10), np.float32)}
    variables = {
        "params": {"classifier": kernel, "aux_4a": kernel},
        "batch_stats": {"mean": np.float32(1e4)},
    }
    state = create_state(variables, optimizer, 0).replace(step=jnp.asarray(finished))
    step = jax.jit(
        partial(
            train_step,
            model=Statistics(),
            optimizer=optimizer,
            augment=partial(
                augment, preprocessing=PIXELS, augmentation=AugmentConfig(), num_classes=10
            ),
            loss=LossConfig(),
            gradient=accumulated_gradient(accumulate),
        )
    )
    for level in levels:
        state, metrics = step(state, grey(level))
        assert not metrics["skipped"]
    average = state.average["batch_stats"]["mean"] if state.average else None
    return float(state.batch_stats["mean"]), average


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_first_statistics_are_the_batchs_own_and_not_the_initial_ones(accumulate):
    found = statistics_after([1], accumulate=accumulate, averaging="ema")
    np.testing.assert_allclose(found, [1, 1], rtol=1e-5)


def test_the_average_holds_the_batches_statistics_and_does_not_lag_as_the_running_ones():
    """One extreme batch at step 10, as with a learning rate that rises: forgotten by step 45."""
    levels = [0.0] * 9 + [2.0] + [1.0] * 35
    running, average = statistics_after(levels, averaging="ema", ema_decay=0.99)
    assert running == pytest.approx(1, abs=0.01)
    assert average == pytest.approx(1, abs=0.01)


def test_late_statistics_are_averaged_over_ten_batches_at_least():
    """Polyak's mean not yet begun, and an exponential average of three steps."""
    for options in (
        {"averaging": "polyak", "average_from": 90.0},
        {"averaging": "ema", "ema_decay": 0.5},
    ):
        running, average = statistics_after([0, 1], finished=500, **options)
        assert running == pytest.approx(0.81e4 + 0.1, rel=1e-4)
        assert average == pytest.approx(running)


def evaluated(state, model, batch, devices=1):
    mesh = data_mesh(jax.devices()[:devices])
    pixels = partial(preprocess, preprocessing=PIXELS)
    step = compile_eval_step(mesh, partial(eval_step, model=model, preprocess=pixels))
    return jax.device_get(step(put_state(state, mesh), batch))


def test_evaluation_counts_what_the_mask_lets_through_on_any_number_of_devices():
    model = GoogLeNet(tiny_arch())
    optimizer = make_optimizer(OptimConfig(), 10, 100)
    state, batch = new_state(model, optimizer), tiny_batch(16)
    batch["mask"] = np.arange(16) < 11
    images = preprocess(jnp.asarray(batch["image"]), preprocessing=PIXELS)
    logits = np.asarray(jax.jit(model.apply)({"params": state.params}, images).logits)[:11]
    order = np.argsort(-logits, axis=-1)
    for devices in (1, 8):
        sums = evaluated(state, model, batch, devices)
        assert sums["count"] == 11
        assert sums["top1"] == (order[:, 0] == batch["label"][:11]).sum()
        assert sums["top5"] == (order[:, :5] == batch["label"][:11, None]).sum()
    loss = sums["loss"]
    batch["image"][11:] = 255 - batch["image"][11:]  # what is masked makes no difference
    assert evaluated(state, model, batch, 8)["loss"] == loss


def test_evaluation_uses_the_averaged_parameters():
    model = GoogLeNet(tiny_arch())
    optimizer = make_optimizer(OptimConfig(averaging="ema"), 10, 100)
    state = new_state(model, optimizer)
    broken = dataclasses.replace(
        state, params=jax.tree.map(lambda x: np.full_like(x, np.nan), state.params)
    )
    loss = evaluated(state, model, tiny_batch())["loss"]
    assert np.isfinite(loss)
    assert evaluated(broken, model, tiny_batch())["loss"] == loss


FINE = {"loss": jnp.float32(1), "grad_norm": jnp.float32(1)}
HUGE = np.float32(1e30)  # its square is infinite


@pytest.mark.parametrize(
    ("metrics", "params", "batch_stats"),
    [
        ({"loss": jnp.float32(np.nan)}, 2, 2),
        ({"loss": jnp.float32(np.inf)}, 2, 2),
        ({"grad_norm": jnp.float32(np.nan)}, 2, 2),
        ({}, np.inf, 2),
        ({}, HUGE, 2),
        ({}, 2, np.nan),
        ({}, 2, 2),
    ],
)
def test_a_step_that_is_not_finite_changes_nothing_but_the_count_of_steps(
    metrics, params, batch_stats
):
    optimizer = make_optimizer(OptimConfig(optimizer="adamw", averaging="ema"), 10, 100)
    one = {"kernel": np.ones((2, 2), np.float32)}
    old = create_state({"params": one, "batch_stats": one}, optimizer, 0)
    moved = jax.tree.map(lambda x: x + 1, old)
    new = moved.replace(
        params=jax.tree.map(lambda x: x * np.float32(params) / 2, moved.params),
        batch_stats=jax.tree.map(lambda x: x * np.float32(batch_stats) / 2, moved.batch_stats),
        rng=old.rng,
    )
    kept, found = keep_finite(new, old, FINE | metrics)
    assert kept.step == 1
    if not metrics and (params, batch_stats) == (2, 2):
        assert found["skipped"] == 0
        assert_same(kept, new)
        return
    assert found["skipped"] == 1
    counts = [x for x in jax.tree.leaves(kept.opt_state, is_leaf=is_schedule) if is_schedule(x)]
    assert [x.count for x in counts] == [1]  # the learning rate's, which follows the step
    back = jax.tree.map(
        lambda x: x._replace(count=x.count - 1) if is_schedule(x) else x,
        kept,
        is_leaf=is_schedule,
    )
    assert_same(back.replace(step=old.step), old)


def is_schedule(x):
    return isinstance(x, optax.ScaleByScheduleState)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_an_infinite_update_leaves_a_network_with_batch_norm_as_it_was():
    model = GoogLeNet(tiny_arch("batch_norm"))
    optimizer = make_optimizer(OptimConfig(learning_rate=1e38, averaging="ema"), 10, 100)
    step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        augment=partial(
            augment, preprocessing=PIXELS, augmentation=AugmentConfig(), num_classes=10
        ),
        loss=LossConfig(),
    )
    before, mesh = new_state(model, optimizer), data_mesh(jax.devices()[:1])
    after, metrics = compile_train_step(mesh, step, before, tiny_batch())(
        put_state(before, mesh), put_state(tiny_batch(), mesh)
    )
    assert metrics["skipped"] == 1
    assert np.isfinite(metrics["loss"])
    for name in ("params", "batch_stats", "average"):
        assert_same(getattr(after, name), getattr(before, name))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))
