"""Eight virtual CPU devices, and one cache of compiled programs for all workers and sessions."""

import os

os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",  # compile time is test time
    ]
)

import jax
import pytest

# 2 GiB: with a limit, JAX locks the cache, so that no worker reads what another still writes.
CACHE_BYTES = 2 << 30


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(pytestconfig):
    folder = str(pytestconfig.cache.mkdir("xla"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
