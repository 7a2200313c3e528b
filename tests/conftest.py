"""Eight virtual CPU devices, and one cache of compiled programs for all workers and sessions."""

import errno
import os
import shutil
import uuid
from pathlib import Path

os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",  # compile time is test time
    ]
)

import jax
import pytest

CACHE_BYTES = 2 << 30  # a larger cache is deleted before the tests start


def pytest_configure(config):
    folder = config.cache.mkdir("programs")
    full = sum(file.stat().st_size for file in os.scandir(folder)) > CACHE_BYTES
    if full and not hasattr(config, "workerinput"):
        shutil.rmtree(folder, ignore_errors=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # With a limit, JAX would lock the cache for every access and read all times of access for every
    # write. Without one, a worker can read what another still writes: JAX warns, and compiles.
    jax.config.update("jax_compilation_cache_max_size", -1)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@pytest.fixture(scope="session")
def gcs():
    """The process of an emulator of Cloud Storage."""
    pytest.importorskip("gcsfs", reason="the extra gcs is not installed")
    pytest.importorskip("gcp_storage_emulator")
    from tests.gcs_server import emulator

    with emulator() as process:
        yield process


@pytest.fixture
def bucket(gcs):
    """A new folder in a bucket."""
    from gnet_jax.config.bucket import BucketPath

    return BucketPath("pod", f"test-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def private(monkeypatch):
    """A folder that this user may not enter. (The tests may run as root, who enters every one.)"""
    folder = Path("/home/alice")

    def stat(path, *args, before=os.stat, **options):
        if not isinstance(path, int) and os.fsdecode(path).startswith(str(folder)):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return before(path, *args, **options)

    monkeypatch.setattr(os, "stat", stat)
    return folder
