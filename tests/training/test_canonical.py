from typing import ClassVar

import jax
import numpy as np
import pytest

from gnet_jax.config import AugmentConfig, Config, DataConfig, LossConfig, OptimConfig
from gnet_jax.model.googlenet import GoogLeNet, Outputs
from gnet_jax.training.checkpoints.verify import digest
from gnet_jax.training.gradients import accumulated_gradient, canonical_gradient, tree_sum
from gnet_jax.training.optimizer import make_optimizer
from gnet_jax.training.sharding import compile_train_step, data_mesh, put_state, replicated, split
from gnet_jax.training.step import compute_gradient, create_state
from tests.tiny import (
    Linear,
    linear_params,
    program_of,
    tiny_arch,
    tiny_batch,
    tiny_config,
    tiny_variables,
)


class Noisy(Linear):
    """`Linear`, whose logits are shifted by draws from the dropout key; notes its batch sizes."""

    sizes: ClassVar[set[int]] = set()

    def apply(self, variables, images, *, rngs, **options):
        self.sizes.add(len(images))
        outputs, updated = super().apply(variables, images, **options)
        noise = jax.random.normal(rngs["dropout"], outputs.logits.shape)
        return Outputs(outputs.logits + noise, outputs.aux_logits), updated


def linear_steps(devices, steps=3, numerics="canonical", accumulate=1):
    """The state and the metrics after some steps of a linear network on so many devices."""
    config = Config(
        numerics=numerics,
        virtual_shards=16,
        augment=AugmentConfig(mixup=0.2),
        data=DataConfig(image_size=16, mean=(127.0,) * 3, std=(64.0,) * 3),
        optim=OptimConfig(averaging="ema", clip_norm=1.0, accumulate=accumulate),
    )
    optimizer = make_optimizer(config.optim, 10, 100)
    state = create_state({"params": linear_params(), "batch_stats": {}}, optimizer, 0)
    step = program_of(config, Noisy(), optimizer).train_step()
    mesh, batch = data_mesh(jax.devices()[:devices]), tiny_batch(64)
    manual = numerics == "canonical"
    compiled = compile_train_step(mesh, step, state, batch, manual=manual)
    state, batch = put_state(state, mesh), jax.device_put(batch, split(mesh))
    for _ in range(steps):
        state, metrics = compiled(state, batch)
    return jax.device_get((state, metrics))


def test_every_bit_is_the_same_on_1_2_4_and_8_devices():
    Noisy.sizes.clear()
    found = {digest(linear_steps(devices, accumulate=2)) for devices in (1, 2, 4, 8)}
    assert len(found) == 1
    assert Noisy.sizes == {2}  # half of a shard


def linear_gradient(gradient, images, targets):
    """The gradient and the metrics of `gradient` for a noisy linear network on eight devices."""
    config, mesh = Config(loss=LossConfig(aux_weight=0.3)), data_mesh()
    optimizer = make_optimizer(config.optim, 10, 100)
    state = create_state({"params": linear_params(), "batch_stats": {}}, optimizer, 0)
    options = {"model": Noisy(), "optimizer": optimizer, "loss": config.loss}
    whole, parts = replicated(mesh).spec, split(mesh).spec
    call = jax.shard_map(
        lambda *batch: gradient(state, *batch, jax.random.PRNGKey(5), **options),
        mesh=mesh,
        in_specs=(parts, parts),
        out_specs=whole,
        check_vma=False,
    )
    return jax.device_get(jax.jit(call)(images, targets)), (state, options)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_canonical_gradients_are_the_mean_over_shards_with_keys_of_their_own(accumulate):
    generator = np.random.default_rng(0)
    images = generator.normal(size=(32, 16, 16, 3)).astype(np.float32)
    targets = np.eye(10, dtype=np.float32)[np.arange(32) % 10]
    inner = compute_gradient if accumulate == 1 else accumulated_gradient(accumulate)
    found, (state, options) = linear_gradient(canonical_gradient(inner, 16), images, targets)
    step, results = jax.jit(lambda *batch: compute_gradient(state, *batch, **options)), []
    for shard in range(16):
        key = jax.random.fold_in(jax.random.PRNGKey(5), shard)
        own = images[2 * shard :][:2], targets[2 * shard :][:2]
        if accumulate == 1:
            results.append(step(*own, key))
            continue
        for part in range(2):
            place = slice(part, part + 1)
            results.append(step(own[0][place], own[1][place], jax.random.fold_in(key, part)))
    expected = jax.tree.map(lambda *x: np.mean(x, axis=0), *results)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("variant", ["paper", "batch_norm"])
def test_every_bit_of_a_googlenet_is_the_same_on_1_2_4_and_8_devices(variant, tmp_path):
    """With dropout, augmentation and averaging; batch norm's statistics are compared too."""
    config = tiny_config(tmp_path, numerics="canonical")
    optimizer = make_optimizer(config.optim, 10, 100)
    model = GoogLeNet(tiny_arch(variant))
    state = jax.tree.map(np.array, create_state(tiny_variables(model), optimizer, 0))
    found, batch = set(), tiny_batch(32)
    for devices in (1, 2, 4, 8):
        mesh = data_mesh(jax.devices()[:devices])
        step = program_of(config, model, optimizer).train_step()
        compiled = compile_train_step(mesh, step, state, batch, manual=True)
        now, placed = put_state(state, mesh), jax.device_put(batch, split(mesh))
        for _ in range(3):
            now, metrics = compiled(now, placed)
        found.add(digest((now, metrics)))
    assert len(found) == 1


def test_the_sum_is_a_binary_tree_whatever_the_split():
    x = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    whole = tree_sum(jax.numpy.asarray(x))
    for devices in (2, 4, 8):
        shares = jax.numpy.asarray(x).reshape(devices, -1, 5)
        branches = jax.numpy.stack([tree_sum(share) for share in shares])
        np.testing.assert_array_equal(tree_sum(branches), whole)
    np.testing.assert_allclose(whole, x.sum(0), rtol=1e-4, atol=1e-5)
