"""What a compiled step needs of a device's memory, and how much there is."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from gnet_jax.config import ConfigError

# Where Linux tells what a container may use: cgroups of version 2 and 1.
LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def step_memory(step: jax.stages.Compiled) -> int | None:
    """Bytes that a device needs for one call of `step`, by XLA's plan; None where it has none."""
    plan: Any = step.memory_analysis()
    if plan is None:
        return None
    held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return held + plan.temp_size_in_bytes


def machine_memory() -> int:
    """Bytes that this process may use: the machine's, or the limit of its container."""
    limits = [file.read_text().strip() for file in LIMITS if file.is_file()]
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *(int(limit) for limit in limits if limit.isdigit())])


def check_memory(needed: int | None, batch_size: int, mesh: Mesh) -> None:
    """Refuse a step that does not fit: its process would die of it, on a CPU without a word.

    Args:
        needed: by `step_memory`, of each device.
        batch_size: the global one.
        mesh: of the run.

    Raises:
        ConfigError: naming what the step needs and what there is.
    """
    device = mesh.local_devices[0]  # of another host's no figure is to be had
    there = (device.memory_stats() or {}).get("bytes_limit")
    if device.platform == "cpu":  # virtual devices share the machine's memory
        there = machine_memory() // len(mesh.local_devices)
    if needed is not None and there is not None and needed > there:
        raise ConfigError(
            f"a step of batch_size {batch_size} needs {needed / 2**30:.1f} GiB on each "
            f"device, which has {there / 2**30:.1f}; use a smaller batch_size, or "
            "--optim.accumulate to compute it in parts"
        )


# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# No block has a mapping of its own, and the end of the heap is never cut off; and what is usual.
KEEPING = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}
USUAL = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 128 * 1024}
# Of the machine's memory: what a program needs may lie in the heap twice, for a small block that
# comes to lie in the place of a large one makes the heap longer by the whole of it.
LARGEST_KEPT = 1 / 4
# Whoever sets these has settled it for malloc.
SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def call_in_this_thread() -> None:
    """JAX runs programs in the thread that calls them, so that `keep_freed_memory` can be of use.

    glibc keeps large blocks only for the thread that the process began with, and JAX would hand
    programs on CPUs to one of its own. To be called before anything runs on a device. Processes
    that train together are left as they are, for their programs wait for each other.
    """
    if not jax.distributed.is_initialized():
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def keep_freed_memory(needed: int | None = None) -> bool:
    """Whether from now on freed memory stays with this process: on CPUs, where malloc is glibc's.

    Not where a program needs so much that it must not lie there twice, and not where the
    environment has set malloc up.

    Args:
        needed: bytes, by `step_memory`; None where it is little.
    """
    tuned = any(name in os.environ for name in SETTINGS)
    if tuned or sys.platform != "linux" or jax.default_backend() != "cpu":
        return False
    libc = ctypes.CDLL(None)
    if jax.distributed.is_initialized() or not hasattr(libc, "mallopt"):
        return False
    keeps = needed is None or needed <= LARGEST_KEPT * machine_memory()
    set_up = [libc.mallopt(*option) for option in (KEEPING if keeps else USUAL).items()]
    if not keeps:
        libc.malloc_trim(0)
    return keeps and all(set_up)
