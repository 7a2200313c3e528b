import os
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnet_jax.config import ConfigError
from gnet_jax.training import sharding as memory
from gnet_jax.training.sharding import check_memory, data_mesh, machine_memory, step_memory

WHOLE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_program_needs_its_arguments_results_and_temporaries():
    x = jnp.ones((512, 512))
    needed = step_memory(jax.jit(lambda x: jnp.sin(x @ x) @ x).lower(x).compile())
    assert needed is not None
    assert needed >= 3 * x.nbytes


def test_memory_that_is_used_again_counts_once():
    plan = mock.Mock(
        argument_size_in_bytes=1000,
        output_size_in_bytes=200,
        alias_size_in_bytes=50,
        temp_size_in_bytes=7,
    )
    assert step_memory(mock.Mock(memory_analysis=lambda: plan)) == 1157
    assert step_memory(mock.Mock(memory_analysis=lambda: None)) is None


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "LIMITS", (limit, tmp_path / "absent"))
    assert machine_memory() == WHOLE
    for text, expected in (("max\n", WHOLE), ("1000000\n", 10**6), (f"{2**63}\n", WHOLE)):
        limit.write_text(text)
        assert machine_memory() == expected


def test_only_devices_of_this_host_are_asked():
    """JAX knows nothing of the memory of another host's."""
    foreign, own = mock.Mock(), mock.Mock(platform="gpu")
    foreign.memory_stats.side_effect = RuntimeError("only supported for addressable devices")
    own.memory_stats.return_value = {"bytes_limit": 2**30}
    mesh = mock.Mock(devices=np.array([foreign, own]), local_devices=[own])
    check_memory(2**30, 32, mesh)
    with pytest.raises(ConfigError, match=r"batch_size 32 .* 2\.0 GiB .* 1\.0; "):
        check_memory(2**31, 32, mesh)


def test_virtual_devices_share_the_memory_of_the_machine(monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: 8 * 2**30)
    check_memory(2**30, 32, data_mesh())
    with pytest.raises(ConfigError, match=r"has 1\.0; "):
        check_memory(2**30 + 1, 32, data_mesh())


@pytest.mark.parametrize("joined", [False, True])
def test_only_a_process_alone_runs_programs_in_its_own_thread(monkeypatch, joined):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: joined)
    with mock.patch.object(jax.config, "update") as update:
        memory.call_in_this_thread()
    calls = [mock.call("jax_cpu_enable_async_dispatch", False)]
    assert update.mock_calls == ([] if joined else calls)


def test_only_calls_on_cpus_in_the_calling_thread_wait_for_the_program(monkeypatch):
    gpus = mock.Mock(devices=np.array([mock.Mock(platform="gpu")]))
    for asynchronous in (True, False):
        monkeypatch.setattr(jax.config, "read", {"jax_cpu_enable_async_dispatch": asynchronous}.get)
        assert memory.calls_wait(data_mesh()) is not asynchronous
        assert not memory.calls_wait(gpus)


def test_a_step_that_does_not_fit_is_refused_with_both_sizes():
    mesh = data_mesh()
    check_memory(None, 32, mesh)
    check_memory(2**20, 32, mesh)
    with pytest.raises(ConfigError, match=r"batch_size 32 .* 1048576\.0 GiB"):
        check_memory(2**50, 32, mesh)


@pytest.mark.parametrize(("needed", "keeps"), [(None, True), (2 * 2**30, True), (2**31 + 1, False)])
def test_freed_memory_is_kept_for_steps_up_to_a_quarter_of_the_machines(monkeypatch, needed, keeps):
    libc = mock.Mock()
    libc.mallopt.return_value = 1
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: libc)
    monkeypatch.setattr(memory, "machine_memory", lambda: 8 * 2**30)
    for name in memory.MALLOC_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert memory.keep_freed_memory(needed) == keeps
    # glibc: M_MMAP_MAX is -4 and M_TRIM_THRESHOLD is -1; -1 never trims
    options = [(-4, 0), (-1, -1)] if keeps else [(-4, 65_536), (-1, 131_072)]
    assert libc.mallopt.mock_calls == [mock.call(*option) for option in options]
    assert libc.malloc_trim.mock_calls == ([] if keeps else [mock.call(0)])
