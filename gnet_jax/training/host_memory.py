"""Memory on CPUs: what a program frees stays with the process, for its next call.

XLA asks malloc for a program's temporaries at every call and frees them at its end. glibc gives
blocks so large back to the kernel, which has to clear every page anew: 370,000 of them in a
training step of 32 images at 224x224, a quarter of its time.
"""

import ctypes
import os
import sys

import jax

from gnet_jax.training.memory import machine_memory

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
