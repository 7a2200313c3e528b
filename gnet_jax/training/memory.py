"""What a compiled step needs of a device's memory, and how much there is."""

import os
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
