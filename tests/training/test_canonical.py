import dataclasses

import jax
import numpy as np
import pytest

from gnet_jax.config import AugmentConfig, Config, ConfigError, DataConfig, OptimConfig
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.training.canonical import check_virtual_shards, tree_sum
from gnet_jax.training.checkpoints.save import digest
from gnet_jax.training.optimizer import make_optimizer
from gnet_jax.training.program import prepare, pure_train_step
from gnet_jax.training.sharding import compile_train_step, data_mesh, put_state, split
from gnet_jax.training.step import create_state
from tests.tiny import Linear, linear_params, tiny_arch, tiny_batch, tiny_config, tiny_variables


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
    step = pure_train_step(config, Linear(), optimizer)
    mesh, batch = data_mesh(jax.devices()[:devices]), tiny_batch(64)
    manual = numerics == "canonical"
    compiled = compile_train_step(mesh, step, state, batch, manual=manual)
    state, batch = put_state(state, mesh), jax.device_put(batch, split(mesh))
    for _ in range(steps):
        state, metrics = compiled(state, batch)
    return jax.device_get((state, metrics))


def test_every_bit_is_the_same_on_1_2_4_and_8_devices():
    found = {digest(linear_steps(devices, accumulate=2)) for devices in (1, 2, 4, 8)}
    assert len(found) == 1


def test_canonical_numerics_are_close_to_fast_ones():
    canonical, fast = linear_steps(8), linear_steps(8, numerics="fast")
    for a, b in zip(jax.tree.leaves(canonical), jax.tree.leaves(fast), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


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
        step = pure_train_step(config, model, optimizer)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((32, 16, 6, 1), "needs a power of two of devices, but there are 6"),
        ((32, 8, 8, 1), "virtual_shards is 8, but 8 devices need 2 or more each.* use 16 or"),
        ((40, 16, 8, 1), "batch_size 40 does not divide into 16 virtual shards; use 32 or 48"),
        ((8, 16, 8, 1), "does not divide into 16 virtual shards; use 16$"),
        ((48, 16, 8, 2), "16 virtual shards of parts of 2; use 32 or 64"),
    ],
)
def test_shards_that_do_not_divide_are_refused_with_what_would(arguments, message):
    with pytest.raises(ConfigError, match=message):
        check_virtual_shards(*arguments)


def test_a_run_checks_its_shards(tmp_path):
    config = tiny_config(tmp_path, numerics="canonical", virtual_shards=8)
    with pytest.raises(ConfigError, match="virtual_shards is 8, but 8 devices"):
        prepare(config)
    with pytest.raises(ConfigError, match="virtual_shards is 12; it must be a power of two"):
        prepare(dataclasses.replace(config, virtual_shards=12))
