import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnet_jax.config import ConfigError
from gnet_jax.training import sharding
from gnet_jax.training.sharding import (
    check_batch_size,
    check_pairs,
    data_mesh,
    put_batches,
    use_compilation_cache,
)


def test_a_batch_that_does_not_divide_is_refused_with_what_would():
    mesh = data_mesh()
    check_batch_size("batch_size", 32, mesh)
    check_batch_size("batch_size", 32, mesh, parts=4)
    with pytest.raises(
        ConfigError, match="batch_size 30 does not divide over 8 devices; use 24 or"
    ):
        check_batch_size("batch_size", 30, mesh)
    with pytest.raises(ConfigError, match=r"over 8 devices; use 8$"):
        check_batch_size("batch_size", 3, mesh)
    with pytest.raises(ConfigError, match="8 devices x 3 accumulated parts; use 24 or 48"):
        check_batch_size("batch_size", 32, mesh, parts=3)


def test_mixing_pairs_that_would_lie_on_two_devices_is_refused():
    check_pairs(32, data_mesh())
    check_pairs(48, data_mesh(), parts=3)
    with pytest.raises(ConfigError, match=r"batch_size 24 gives each of 8 devices 3; use 16 or 32"):
        check_pairs(24, data_mesh())
    with pytest.raises(ConfigError, match=r"gives each of 8 devices 3; use 48$"):
        check_pairs(24, data_mesh(), parts=3)


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


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"])
def test_a_cache_below_any_name_is_used_again(tmp_path, variable):
    folder = tmp_path / "a[1]\n\udcff"
    folder.mkdir()
    others = {name: each for name, each in os.environ.items() if not name.startswith("JAX_COMP")}
    environment = others | {variable: str(folder), "JAX_PLATFORMS": "cpu"}
    kept = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", CACHED], env=environment, check=True)
        kept.append(sorted(folder.rglob("*-cache")))
    assert kept[0]
    assert kept[0] == kept[1]


def test_cpus_do_without_ynnpack_where_jaxlib_can_and_xla_flags_do_not_speak_of_it(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    known = sharding._knows_ynn()
    assert sharding.xla_options("cpu") == ({sharding.YNN: ""} if known else {})
    assert sharding.xla_options("tpu") == sharding.xla_options("gpu") == {}
    monkeypatch.setenv("XLA_FLAGS", f"--{sharding.YNN}=LIBRARY_FUSION_TYPE_DOT")
    assert sharding.xla_options("cpu") == {}


def test_an_option_that_this_jaxlib_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(sharding, "YNN", "xla_cpu_no_such_option")
    assert not sharding._knows_ynn.__wrapped__()


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
