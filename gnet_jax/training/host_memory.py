"""Memory on CPUs: what a program frees stays with the process, for its next call.

XLA asks malloc for a program's temporaries at every call and frees them at its end. glibc gives
blocks so large back to the kernel, which has to clear every page anew: 370,000 of them in a
training step of 32 images at 224x224, a quarter of its time.
"""

import ctypes
import os
import sys

import jax

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# Whoever sets these has settled it for malloc.
SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Whether from now on freed memory stays with this process: on CPUs, where malloc is glibc's.

    To be called before anything runs on a device: glibc keeps large blocks only for the thread that
    the process began with, so that programs have to run in the thread that calls them. (JAX would
    otherwise hand them to one of its own.) Processes that train together are left as they are, for
    their programs wait for each other. An environment that sets up malloc has the last word.
    """
    if jax.distributed.is_initialized():
        return False
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    tuned = [name for name in SETTINGS if name in os.environ]
    if sys.platform != "linux" or tuned or jax.default_backend() != "cpu":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # No block has a mapping of its own, and the end of the heap is never cut off.
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
