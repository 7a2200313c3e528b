import dataclasses
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnet_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    LossConfig,
    OptimConfig,
    Preprocessing,
)
from gnet_jax.data.augment import augment, preprocess
from gnet_jax.model.googlenet import GoogLeNet, Outputs
from gnet_jax.training.gradients import accumulated_gradient, pmap_train_step
from gnet_jax.training.optimizer import make_optimizer
from gnet_jax.training.sharding import (
    AXIS,
    compile_eval_step,
    compile_train_step,
    data_mesh,
    put_state,
)
from gnet_jax.training.step import (
    apply_update,
    compute_gradient,
    compute_loss,
    create_state,
    eval_step,
    keep_finite,
    norm,
    step_keys,
    train_step,
)
from tests.tiny import program_of, tiny_arch, tiny_batch, tiny_variables

NO_DROPOUT = {"dropout": 0.0, "aux_dropout": 0.0}
OPTIMIZER = make_optimizer(OptimConfig(), 10, 100)
SMALL = DataConfig(image_size=16, resize_to=16)
PIXELS = Preprocessing(image_size=16, mean=(127.0,) * 3, std=(64.0,) * 3)


def gradient_in(parts):
    return compute_gradient if parts == 1 else accumulated_gradient(parts)


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
    step, before = pure_step(model, gradient=gradient_in(accumulate))
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
    model = types.SimpleNamespace(arch=Noisy.arch)
    model.clone = lambda **_: model
    model.apply = lambda *_, **__: (Outputs(logits[0], tuple(logits[1:])), {})
    loss = LossConfig(label_smoothing=smoothing, aux_weight=0.5)
    options = {"model": model, "optimizer": OPTIMIZER, "loss": loss}
    total, (_, metrics) = compute_loss({}, {}, None, jnp.asarray(targets), None, **options)
    found = [float(metrics[f"{head}_loss"]) for head in ("main", "aux4a", "aux4d")]
    assert found == pytest.approx(expected.tolist(), rel=1e-5)
    assert float(total) == pytest.approx(expected[0] + 0.5 * expected[1:].sum(), rel=1e-5)


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


class Noisy:
    """Three heads with logits drawn from the dropout key alone; notes the sizes of its batches.

    `heads` are the names of its parameters, in the order of `Outputs`.
    """

    arch = types.SimpleNamespace(aux_after=("4a", "4d"), num_classes=10)
    heads = ("main", "first", "second")

    def __init__(self):
        self.sizes = []

    def clone(self, **_):
        return self

    def apply(self, variables, images, *, rngs, **_):
        self.sizes.append(len(images))
        keys = jax.random.split(rngs["dropout"], 3)
        main, *aux = (
            variables["params"][head] * jax.random.normal(key, (len(images), 10))
            for head, key in zip(self.heads, keys, strict=True)
        )
        return Outputs(main, tuple(aux)), {}


def noisy_losses(key, labels):
    """The cross-entropy of each head of `Noisy` whose parameters are one, in NumPy."""
    found = []
    for each in jax.random.split(key, 3):
        logits = np.asarray(jax.random.normal(each, (len(labels), 10)), np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        found.append(-log_probs[np.arange(len(labels)), labels].mean())
    return np.array(found)


def noisy_step(config, model, batch, finished=0):
    """The metrics of the step of `config` after so many finished ones."""
    optimizer = make_optimizer(config.optim, 10, 100)
    params = {head: jnp.ones(()) for head in Noisy.heads}
    state = create_state({"params": {"a": {"kernel": 0}}, "batch_stats": {}}, optimizer, 3)
    state = state.replace(params=params, step=jnp.asarray(finished))
    keywords = program_of(config, model, optimizer).train_step().keywords
    keep_state = lambda state, grads, stats, metrics, **_: (  # noqa: E731
        state,
        metrics | {"grad_norm": norm(grads)},
    )
    return train_step(state, batch, **(keywords | {"update": keep_state}))[1]


@pytest.mark.parametrize("finished", [0, 7])
def test_the_loss_sums_the_auxiliary_heads_and_every_step_has_its_own_dropout_key(finished):
    batch, model = tiny_batch(8), Noisy()
    config = Config(data=SMALL, loss=LossConfig(aux_weight=0.25))
    metrics = noisy_step(config, model, batch, finished)
    key = jax.random.split(jax.random.fold_in(jax.random.PRNGKey(3), finished))[1]
    losses = noisy_losses(key, batch["label"])
    found = [metrics[name] for name in ("main_loss", "aux4a_loss", "aux4d_loss", "loss")]
    total = losses[0] + 0.25 * (losses[1] + losses[2])
    np.testing.assert_allclose(found, [*losses, total], rtol=1e-5)
    assert model.sizes == [8]


def test_accumulation_draws_another_dropout_mask_for_every_part():
    batch, model = tiny_batch(8), Noisy()
    metrics = noisy_step(Config(data=SMALL, optim=OptimConfig(accumulate=4)), model, batch)
    key = jax.random.split(jax.random.fold_in(jax.random.PRNGKey(3), 0))[1]
    parts = [
        noisy_losses(jax.random.fold_in(key, part), batch["label"][part::4]) for part in range(4)
    ]
    assert set(model.sizes) == {2}
    names = ("main_loss", "aux4a_loss", "aux4d_loss")
    np.testing.assert_allclose([metrics[n] for n in names], np.mean(parts, axis=0), rtol=1e-5)


def test_every_device_of_pmap_draws_its_own_dropout_mask():
    batch = tiny_batch(4)
    state = create_state({"params": {"a": {"kernel": 0}}, "batch_stats": {}}, OPTIMIZER, 3)
    state = state.replace(params={head: jnp.ones(()) for head in Noisy.heads}, opt_state=())
    step = pmap_train_step(
        augment=lambda images, labels, key, offset: (images / 255, jax.nn.one_hot(labels, 10)),
        devices=jax.devices()[:2],
        model=Noisy(),
        optimizer=OPTIMIZER,
        loss=LossConfig(),
        update=lambda state, grads, stats, metrics, **_: (
            state,
            metrics | {"grad_norm": norm(grads)},
        ),
    )
    copies = jax.tree.map(lambda x: jnp.stack([x] * 2), state)
    _, metrics = step(copies, {k: v.reshape(2, 2, *v.shape[1:]) for k, v in batch.items()})
    key = step_keys(jax.random.PRNGKey(3), 0)[1]
    shares = [noisy_losses(jax.random.fold_in(key, d), batch["label"][2 * d :][:2]) for d in (0, 1)]
    np.testing.assert_allclose(metrics["main_loss"], [np.mean(shares, axis=0)[0]] * 2, rtol=1e-5)


def test_every_step_has_its_own_augmentation_key_and_never_that_of_dropout():
    rng, seen = jax.random.PRNGKey(0), []
    for step in range(5):
        augment_key, dropout_key = step_keys(rng, step)
        expected = jax.random.split(jax.random.fold_in(rng, step))
        np.testing.assert_array_equal([augment_key, dropout_key], expected)
        seen += [tuple(augment_key.tolist()), tuple(dropout_key.tolist())]
    assert len(set(seen)) == 10

    def augment_with(images, labels, key):
        seen.append(key)
        raise InterruptedError

    state = create_state({"params": {"a": {"kernel": 0}}, "batch_stats": {}}, OPTIMIZER, 0)
    for step in (0, 4):
        with pytest.raises(InterruptedError):
            train_step(
                state.replace(step=step),
                tiny_batch(2),
                model=None,
                optimizer=OPTIMIZER,
                augment=augment_with,
                loss=LossConfig(),
            )
        np.testing.assert_array_equal(seen[-1], step_keys(rng, step)[0])


def test_a_step_moves_by_the_learning_rate_that_it_logs_and_averages_its_result():
    o = OptimConfig(learning_rate=0.1, momentum=0.0, weight_decay=0.0, warmup_epochs=1.0)
    o = dataclasses.replace(o, averaging="ema", ema_decay=0.5)
    optimizer = make_optimizer(o, 10, 100)
    variables = {"params": {"a": {"kernel": jnp.ones(2)}}, "batch_stats": {}}
    state, value, average = create_state(variables, optimizer, 0), 1.0, 1.0
    for step in range(3):
        grads = jax.tree.map(jnp.ones_like, state.params)
        state, metrics = apply_update(state, grads, {}, {"loss": 1.0}, optimizer=optimizer)
        rate = 0.1 * (step + 1) / 10
        value -= rate
        average += (value - average) * 10 / (10 + step)
        assert metrics["learning_rate"] == pytest.approx(rate)
        assert metrics["loss"] == 1
        assert metrics["grad_norm"] == pytest.approx(2**0.5)
        assert state.step == step + 1
        np.testing.assert_allclose(state.params["a"]["kernel"], value, rtol=1e-6)
        np.testing.assert_allclose(state.average["params"]["a"]["kernel"], average, rtol=1e-6)


def test_the_norm_covers_vectors_and_other_arrays():
    tree = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[4.0]]), "c": jnp.array([2.0]), "d": 0.0}
    assert norm(jax.tree.map(jnp.asarray, tree)) == pytest.approx(5)
    assert norm({"b": jnp.array([[3.0], [4.0]])}) == pytest.approx(5)


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
        gradient=gradient_in(accumulate),
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
            gradient=gradient_in(accumulate),
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


def test_evaluation_sums_the_ranks_and_losses_of_what_the_mask_lets_through():
    """By hand: seven classes, the largest logits first."""
    logits = np.tile(np.arange(7.0, 0.0, -1.0), (5, 1))
    labels = np.array([0, 1, 4, 5, 0], np.int32)  # ranks 1, 2, 5, 6, and one that is masked
    model = types.SimpleNamespace(apply=lambda variables, images: Outputs(logits, ()))
    state = types.SimpleNamespace(average={}, params={}, batch_stats={})
    batch = {"image": logits, "label": labels, "mask": np.array([True] * 4 + [False])}
    sums = eval_step(state, batch, model=model, preprocess=lambda x: x)
    assert [int(sums[name]) for name in ("count", "top1", "top5")] == [4, 1, 3]
    losses = np.log(np.exp(logits[0]).sum()) - logits[0][labels[:4]]
    assert sums["loss"] == pytest.approx(losses.sum(), rel=1e-5)
    few = types.SimpleNamespace(apply=lambda variables, images: Outputs(logits[:, :3], ()))
    batch["label"] = np.array([0, 1, 2, 2, 0], np.int32)
    sums = eval_step(state, batch, model=few, preprocess=lambda x: x)
    assert [int(sums[name]) for name in ("top1", "top5")] == [1, 4]


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
        lambda x: x._replace(count=x.count - 1) if is_schedule(x) else x, kept, is_leaf=is_schedule
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
