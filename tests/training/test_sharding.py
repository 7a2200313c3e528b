import dataclasses
import os
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnet_jax.config import AugmentConfig, Config, ConfigError, DataConfig, ModelConfig, OptimConfig
from gnet_jax.training import sharding
from gnet_jax.training.program import prepare
from gnet_jax.training.sharding import check_batches, data_mesh, put_batches, use_compilation_cache

CANONICAL = {"numerics": "canonical"}
MIXED = {"augment": AugmentConfig(mixup=0.2)}


def in_parts(parts):
    return {"optim": OptimConfig(accumulate=parts)}


@pytest.mark.parametrize(
    ("batch_size", "changes"),
    [
        (32, {}),
        (48, MIXED | in_parts(2)),
        (32, in_parts(4)),
        (16, MIXED),
        (48, MIXED | in_parts(3)),
        (16, CANONICAL),
        (32, CANONICAL | MIXED),
        (96, CANONICAL | MIXED | in_parts(3)),
        (32, {"eval_batch_size": 8}),
    ],
)
def test_batches_that_divide_are_accepted(batch_size, changes):
    check_batches(Config(batch_size=batch_size, **changes), data_mesh())


@pytest.mark.parametrize(
    ("batch_size", "changes", "found"),
    [
        (30, {}, "batch_size 30 .* 8 devices; use 24 or 32$"),
        (3, {}, "batch_size 3 .* 8 devices; use 8$"),
        (32, in_parts(3), "batch_size 32 .* 8 devices.* 3 .*parts; use 24 or 48$"),
        (24, MIXED, "batch_size 24 .* pairs .*mixup; use 16 or 32$"),
        (24, MIXED | in_parts(3), "batch_size 24 .*; use 48$"),
        (40, CANONICAL, "batch_size 40 .* 16 virtual shards; use 32 or 48$"),
        (8, CANONICAL, "batch_size 8 .* 16 virtual shards; use 16$"),
        (48, CANONICAL | in_parts(2), "batch_size 48 .* 16 virtual shards.* 2 .*; use 32 or 64$"),
        (48, CANONICAL | MIXED, "batch_size 48 .* pairs .*; use 32 or 64$"),
        (32, CANONICAL | {"virtual_shards": 8}, "virtual_shards is 8, .* 8 devices .*; use 16 "),
        (32, {"eval_batch_size": 12}, "eval_batch_size 12 .* 8 devices; use 8 or 16$"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do(
    batch_size, changes, found
):
    with pytest.raises(ConfigError, match=found):
        check_batches(Config(batch_size=batch_size, **changes), data_mesh())


def in_groups(size):
    return {"model": ModelConfig(batch_norm_group=size)}


def test_groups_of_batch_norm_divide_the_images_that_it_sees_at_once():
    for batch_size, changes in (
        (32, in_groups(32)),
        (32, in_groups(1)),
        (48, in_groups(3) | in_parts(2)),
        (64, in_groups(4) | CANONICAL),
        (128, in_groups(4) | CANONICAL | in_parts(2)),
    ):
        check_batches(Config(batch_size=batch_size, **changes), data_mesh())
    for batch_size, changes, seen in (
        (32, in_groups(64), 32),
        (32, in_groups(5), 32),
        (48, in_groups(16) | in_parts(2), 24),
        (64, in_groups(8) | CANONICAL, 4),
    ):
        with pytest.raises(ConfigError, match=f"batch_norm_group is .* divide the {seen} images"):
            check_batches(Config(batch_size=batch_size, **changes), data_mesh())


def test_canonical_numerics_need_a_power_of_two_of_devices():
    config = Config(batch_size=96, numerics="canonical")
    check_batches(dataclasses.replace(config, numerics="fast"), data_mesh(jax.devices()[:6]))
    with pytest.raises(ConfigError, match="there are 6; make only 4 "):
        check_batches(config, data_mesh(jax.devices()[:6]))


def test_a_run_checks_its_batches_before_it_opens_its_data(tmp_path):
    data = DataConfig(source=f"folder:{tmp_path / 'missing'}")
    with pytest.raises(ConfigError, match="batch_size 30"):
        prepare(Config(batch_size=30, data=data))


def test_a_batch_is_split_over_the_devices_in_order():
    mesh = data_mesh()
    numbers = np.arange(16, dtype=np.int32)
    (batch,) = put_batches([{"label": numbers}], mesh, 16)
    np.testing.assert_array_equal(batch["label"], numbers)
    shards = sorted(batch["label"].addressable_shards, key=lambda shard: shard.index[0].start)
    assert [list(shard.data) for shard in shards] == [[2 * i, 2 * i + 1] for i in range(8)]


def test_a_local_batch_of_the_wrong_size_is_an_error():
    with pytest.raises(ValueError, match="16"):
        list(put_batches([{"label": np.arange(8)}], data_mesh(), 16))


def test_a_cache_that_was_chosen_is_kept():
    chosen = jax.config.jax_compilation_cache_dir
    assert chosen is not None
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == chosen


CACHED = """
import jax
from gnet_jax.training.sharding import use_compilation_cache
use_compilation_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
jax.jit(lambda x: x + 1)(1.0)
"""


def test_a_cache_below_any_name_is_used_again(tmp_path):
    folder = tmp_path / "a[1]\n\udcff"
    folder.mkdir()
    others = {name: each for name, each in os.environ.items() if not name.startswith("JAX_COMP")}
    environment = others | {"XDG_CACHE_HOME": str(folder), "JAX_PLATFORMS": "cpu"}
    kept = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", CACHED], env=environment, check=True)
        kept.append(sorted(folder.rglob("*-cache")))
    assert kept[0]
    assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("line", "wide"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("Features\t: fp asimd", False),
        (None, False),
    ],
)
def test_the_options_for_cpus_fit_the_processor_jaxlib_and_xla_flags(
    monkeypatch, tmp_path, line, wide
):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(sharding, "CPU_INFO", tmp_path / "cpuinfo")
    if line is not None:
        sharding.CPU_INFO.write_text(f"processor\t: 0\n{line}\n")
    monkeypatch.setattr(sharding, "cpu_features", sharding.cpu_features.__wrapped__)
    possible = {sharding.YNN: ""} | ({sharding.VECTORS: 512} if wide else {})
    known = {name: value for name, value in possible.items() if sharding._known(name, value)}
    assert sharding.VECTORS in known or not wide
    assert sharding.xla_options("cpu") == known
    known.pop(sharding.VECTORS, None)
    assert sharding.xla_options("cpu", training=True) == known
    assert sharding.xla_options("tpu") == sharding.xla_options("gpu") == {}
    given = f"--{sharding.YNN}=LIBRARY_FUSION_TYPE_DOT --{sharding.VECTORS}=256"
    monkeypatch.setenv("XLA_FLAGS", given)
    assert sharding.xla_options("cpu") == {}


def test_an_option_that_this_jaxlib_does_not_know_is_left_out():
    assert not sharding._known.__wrapped__("xla_cpu_no_such_option", 1)


def test_no_product_of_a_step_goes_to_ynnpack():
    def product(state, batch):
        return state @ batch["x"], jnp.sum(state)

    batch = {"x": jax.ShapeDtypeStruct((512, 512), jnp.float32)}
    state = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    compiled = sharding.compile_train_step(
        sharding.data_mesh(jax.devices()[:1]), product, state, batch
    )
    assert "__ynn_fusion" not in (compiled.as_text() or "")


@dataclasses.dataclass
class Device:
    """What a mesh is ordered by; the coordinates are in another order, as on a TPU."""

    process_index: int
    id: int


def test_the_devices_of_a_mesh_follow_the_hosts(monkeypatch):
    """Each host's share of a batch is one stretch, whatever the network between the chips is."""
    devices = [Device(host, number) for number in range(4) for host in (1, 0)]
    monkeypatch.setattr(sharding, "Mesh", lambda devices, *_, **__: devices)
    hosts = [device.process_index for device in sharding.data_mesh(devices)]
    assert hosts == [0] * 4 + [1] * 4


def test_the_results_of_an_evaluation_are_whole_on_every_device():
    mesh = data_mesh()
    step = sharding.compile_eval_step(mesh, lambda state, x, y: (state, x * 2, x + y), 2)
    state, double, total = step(jnp.ones(3), jnp.arange(16.0), jnp.arange(16.0))
    assert all(x.sharding.is_fully_replicated for x in (state, double, total))
    np.testing.assert_array_equal(total, double)


@pytest.mark.parametrize(
    ("chosen", "updates"),
    [
        ("", []),
        (
            "gs://bucket/cache",
            [
                ("jax_persistent_cache_enable_xla_caches", "none"),
                ("jax_compilation_cache_dir", "gs://bucket/cache"),
            ],
        ),
        ("/cache", [("jax_compilation_cache_dir", "/cache")]),
        (None, [("jax_compilation_cache_dir", "/own/xla")]),
        (
            "/a[1]",
            [
                ("jax_persistent_cache_enable_xla_caches", "none"),
                ("jax_compilation_cache_dir", "/plain"),
            ],
        ),
    ],
)
def test_the_cache_is_in_the_chosen_folder_or_the_packages_own(monkeypatch, chosen, updates):
    config = mock.Mock(jax_compilation_cache_dir=chosen)
    monkeypatch.setattr(jax, "config", config)
    monkeypatch.setattr(sharding, "cache_folder", lambda: sharding.Path("/own"))
    monkeypatch.setattr(sharding, "plain_path", lambda path: "/plain" if "[" in str(path) else path)
    use_compilation_cache()
    assert config.update.mock_calls == [mock.call(*each) for each in updates]


def test_a_training_step_splits_its_inputs_and_donates_its_state():
    mesh = data_mesh()
    state, x = sharding.put_state(jnp.ones(4), mesh), np.arange(16.0, dtype=np.float32)
    step = sharding.compile_train_step(mesh, lambda s, a, b: (s + 1, jnp.sum(a * b)), state, x, x)
    (own, *inputs), _ = step.input_shardings
    assert own.is_fully_replicated
    assert [each.shard_shape((16,)) for each in inputs] == [(2,), (2,)]
    (batch,) = put_batches([{"x": x}], mesh, 16)
    after, total = step(state, batch["x"], batch["x"])
    assert state.is_deleted()
    assert after.sharding.is_fully_replicated
    assert total.sharding.is_fully_replicated
    assert (float(after[0]), float(total)) == (2, 1240)
