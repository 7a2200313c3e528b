import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnet_jax.config import AugmentConfig, LossConfig, OptimConfig, Preprocessing
from gnet_jax.data import Labels, augment, preprocess
from gnet_jax.model import GoogLeNet
from gnet_jax.training.optimizer import make_optimizer
from gnet_jax.training.sharding import (
    AXIS,
    compile_eval_step,
    compile_train_step,
    data_mesh,
    pmap_train_step,
    put_state,
)
from gnet_jax.training.step import create_state, cross_entropy, eval_step, step_keys, train_step
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
        augment=partial(augment, preprocessing=PIXELS, augmentation=augmentation),
        loss=LossConfig(label_smoothing=0.1),
        **options,
    )
    return step, new_state(model, optimizer)


def one_step(devices, variant="paper", accumulate=1, **arch_changes):
    """(state before, state after, metrics) of one step over so many devices."""
    step, before = pure_step(GoogLeNet(tiny_arch(variant, **arch_changes)), accumulate=accumulate)
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
    step, _ = pure_step(model, axis_name=AXIS)
    per_device = {k: v.reshape(8, 2, *v.shape[1:]) for k, v in tiny_batch().items()}
    copies = jax.tree.map(lambda x: np.stack([x] * 8), before)
    after, metrics = pmap_train_step(step)(copies, per_device)
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
    step, _ = pure_step(model, axis_name=AXIS)
    per_device = {k: v.reshape(8, 2, *v.shape[1:]) for k, v in tiny_batch().items()}
    after, _ = pmap_train_step(step)(jax.tree.map(lambda x: np.stack([x] * 8), before), per_device)
    assert_close(jax.tree.map(lambda x: np.array(x[0]), after), one)
    moved = jax.tree.map(lambda a, b: (a != b).any(), before.batch_stats, one.batch_stats)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_optaxs(smoothing):
    generator = np.random.default_rng(0)
    logits = jnp.asarray(generator.normal(size=(6, 10)), jnp.float32)
    labels = jnp.asarray(generator.integers(0, 10, 6))
    targets = optax.smooth_labels(jax.nn.one_hot(labels, 10), smoothing)
    expected = optax.softmax_cross_entropy(logits, targets).mean()
    assert float(cross_entropy(logits, Labels(labels), smoothing)) == pytest.approx(float(expected))


def test_the_cross_entropy_of_a_mixed_image_is_that_of_its_soft_label():
    generator = np.random.default_rng(0)
    logits = jnp.asarray(generator.normal(size=(6, 10)), jnp.float32)
    own, partner = generator.integers(0, 10, (2, 6))
    share = generator.uniform(0.5, 1, 6).astype(np.float32)
    mixed = share[:, None] * jax.nn.one_hot(own, 10)
    mixed += (1 - share[:, None]) * jax.nn.one_hot(partner, 10)
    expected = optax.softmax_cross_entropy(logits, optax.smooth_labels(mixed, 0.1)).mean()
    labels = Labels(jnp.asarray(own), jnp.asarray(partner), jnp.asarray(share))
    assert float(cross_entropy(logits, labels, 0.1)) == pytest.approx(float(expected))


def test_a_step_with_mixup_is_the_gradient_of_the_mixed_loss():
    """In two accumulated parts, against one whole batch mixed and derived by hand."""
    mixup = AugmentConfig(flip=False, mixup=0.4)
    model = GoogLeNet(tiny_arch(**NO_DROPOUT))
    step, before = pure_step(model, mixup, accumulate=2)
    batch = tiny_batch(8)
    after, metrics = jax.jit(step)(before, batch)

    key, _ = step_keys(before.rng, before.step)
    pixels = {"preprocessing": PIXELS, "augmentation": mixup}
    share = augment(batch["image"], batch["label"], key, **pixels)[1].share
    share = np.asarray(share)[:, None, None, None]
    assert share.min() < 0.9
    partner = np.arange(8) ^ 1
    levels = share * batch["image"] + (1 - share) * batch["image"][partner]
    images = (levels - 127) / 64
    one_hot = np.eye(10, dtype=np.float32)[batch["label"]]
    targets = share[:, 0, 0] * one_hot + (1 - share[:, 0, 0]) * one_hot[partner]
    smoothed = 0.9 * targets + 0.01

    @jax.jit
    @jax.value_and_grad
    def mixed_loss(params):
        outputs, _ = model.apply(
            {"params": params, "batch_stats": {}}, images, train=True, mutable=["batch_stats"]
        )
        main, aux = (
            -jnp.mean(jnp.sum(smoothed * jax.nn.log_softmax(logits), -1))
            for logits in (outputs.logits, *outputs.aux)
        )
        return main + 0.3 * aux

    loss, grads = mixed_loss(before.params)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-4)
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-3)
    kernels = [state["classifier"]["kernel"] for state in (before.params, after.params, grads)]
    np.testing.assert_allclose(kernels[1], kernels[0] - 0.01 * kernels[2], rtol=1e-4, atol=2e-6)


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
    logits = np.asarray(model.apply({"params": state.params}, images).logits)[:11]
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
