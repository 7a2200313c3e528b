"""The memory that a compiled step needs, how much there is, and malloc's settings on CPUs."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from gnet_jax.config import ConfigError

# The memory limit of a container: cgroups of version 2 and 1.
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc
KEEP_FREED = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}  # allocate on the heap, never shrink it
DEFAULTS = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 128 * 1024}
# A step may need its memory twice on a heap that never shrinks: a small block in the place of a
# large one makes the heap longer by all of the large one. So larger steps do without.
LARGEST_KEPT = 1 / 4  # of the machine's memory
MALLOC_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def step_memory(step: jax.stages.Compiled) -> int | None:
    """Returns the bytes that one call of `step` needs on a device; None if XLA does not say."""
    plan: Any = step.memory_analysis()
    if plan is None:
        return None
    operands = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return operands + plan.temp_size_in_bytes


def machine_memory() -> int:
    """Returns the bytes this process may use: the machine's memory or its container's limit."""
    limits = [file.read_text().strip() for file in LIMITS if file.is_file()]
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *(int(limit) for limit in limits if limit.isdigit())])


def check_memory(needed: int | None, batch_size: int, mesh: Mesh) -> None:
    """Raise if the step needs more memory than the device has.

    On a CPU the kernel would kill the process without a message.

    Args:
        needed: bytes on each device, from `step_memory`.
        batch_size: the global one.
        mesh: of the run.

    Raises:
        ConfigError: naming both sizes.
    """
    device = mesh.local_devices[0]  # JAX knows nothing of another host's memory
    available = (device.memory_stats() or {}).get("bytes_limit")
    if device.platform == "cpu":  # virtual devices share the machine's memory
        available = machine_memory() // len(mesh.local_devices)
    if needed is not None and available is not None and needed > available:
        raise ConfigError(
            f"a step of batch_size {batch_size} needs {needed / 2**30:.1f} GiB on each device, "
            f"which has {available / 2**30:.1f}; use a smaller batch_size or --optim.accumulate"
        )


def call_in_this_thread() -> None:
    """Make JAX run CPU programs in the calling thread; call this before anything runs.

    glibc keeps freed memory for the main thread only, see `keep_freed_memory`. A run of several
    processes keeps JAX's own thread, because their programs wait for each other.
    """
    if not jax.distributed.is_initialized():
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def keep_freed_memory(needed: int | None = None) -> bool:
    """Make glibc's malloc keep freed memory on CPUs; returns whether it does.

    Does nothing if the environment already sets malloc's options, and restores the defaults if
    `needed`, the bytes from `step_memory`, is a large part of the machine's memory.
    """
    tuned = any(name in os.environ for name in MALLOC_VARIABLES)
    if tuned or sys.platform != "linux" or jax.default_backend() != "cpu":
        return False
    libc = ctypes.CDLL(None)
    if jax.distributed.is_initialized() or not hasattr(libc, "mallopt"):
        return False
    keeps = needed is None or needed <= LARGEST_KEPT * machine_memory()
    accepted = [libc.mallopt(*option) for option in (KEEP_FREED if keeps else DEFAULTS).items()]
    if not keeps:
        libc.malloc_trim(0)
    return keeps and all(accepted)
