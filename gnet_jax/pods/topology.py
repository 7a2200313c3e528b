"""Topologies: groups of chips, such as `v5e:16x16`, that XLA can compile for without a chip."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import platform
import re
from collections.abc import Sequence
from typing import Any, Literal

import jax
from jax.experimental import topologies

from gnet_jax.config import UserError
from gnet_jax.config.recipes import install

GIB = 2**30
CLOUD = "https://docs.cloud.google.com/tpu/docs"
NVIDIA = "https://resources.nvidia.com/en-us-gpu-resources"
CUDA_PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator; a chip is what JAX counts as one device."""

    name: str
    platform: Literal["tpu", "cuda"]
    flops: float  # peak dense bfloat16 multiplications and additions per second
    hbm_bytes: int
    bandwidth: float  # of the HBM, bytes/s
    # Bytes/s that a chip sends to its neighbours over all links together. This is half of the
    # bidirectional bandwidth that the makers publish.
    link_bandwidth: float
    per_host: int  # chips of each host in a slice of several hosts
    source: str  # the maker's page with these figures
    example: str = ""  # an example of a shape, for error messages
    usable: float = 1.0  # fraction of the memory that a program may use
    description: str = ""  # text proto for XLA's CUDA compiler
    kinds: tuple[str, ...] = ()  # JAX's names for it: `device_kind`

    def peak(self, dtype: str) -> float:
        """Returns the peak FLOP/s of a network that computes in `dtype`.
        By default, JAX rounds the factors of a float32 product to bfloat16 on TPUs, and to TF32,
        which has half the rate of bfloat16, on GPUs.
        """
        return self.flops / 2 if dtype == "float32" and self.platform == "cuda" else self.flops


def _gpu(
    kind: str,
    flops: float,
    memory: int,
    bandwidth: float,
    links: float,
    source: str,
    description: str,
) -> Chip:
    """Returns a GPU. `memory` is in GB; `description` has the fields in which the GPUs differ."""
    name = kind.split()[1][:4].lower()  # "NVIDIA H100 80GB HBM3" is h100
    # These limits apply to compute capabilities 8 and 9 (CUDA C++ programming guide, table of
    # technical specifications).
    proto = f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: {2**31 - 1} block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: {48 * 1024}
  memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory * 10**9}
  {description}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }}
"""
    # 0.75 is JAX's default (https://docs.jax.dev/en/latest/gpu_memory_allocation.html).
    numbers = (flops, memory * 10**9, bandwidth, links, 8)
    return Chip(name, "cuda", *numbers, f"{NVIDIA}/{source}", "8", 0.75, proto, (kind,))


A100 = f"""cuda_compute_capability {{ major: 8 }}
  core_count: 108 fpus_per_core: 64 clock_rate_ghz: 1.41 l2_cache_size: {40 * 2**20}
  shared_memory_per_block_optin: {163 * 1024} shared_memory_per_core: {164 * 1024}"""
A100_SHEET = "nvidia-a100-datasheet-us-nvidia-1758950-r4-web (SXM, 80 GB)"
H100 = f"""cuda_compute_capability {{ major: 9 }}
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 l2_cache_size: {50 * 2**20}
  shared_memory_per_block_optin: {227 * 1024} shared_memory_per_core: {228 * 1024}"""
H100_SHEET = "nvidia-tensor-core-gpu-datasheet (SXM, without sparsity)"
H200_SHEET = "hpc-datasheet-sc23-h200 (SXM, without sparsity)"
# The names of TPUs are those in jax/_src/pallas/mosaic/tpu_info.py.
V4, V5E, V5P = ("TPU v4",), ("TPU v5 lite", "TPU v5e"), ("TPU v5", "TPU v5p")
V6E = ("TPU v6 lite", "TPU v6e")
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "tpu", 275e12, 32 * GIB, 1200e9, 300e9, 4, f"{CLOUD}/v4", "2x2x2", kinds=V4),
        Chip("v5e", "tpu", 197e12, 16 * GIB, 819e9, 200e9, 4, f"{CLOUD}/v5e", "16x16", kinds=V5E),
        Chip("v5p", "tpu", 459e12, 95 * GIB, 2765e9, 600e9, 4, f"{CLOUD}/v5p", "2x2x2", kinds=V5P),
        Chip("v6e", "tpu", 918e12, 32 * GIB, 1638e9, 400e9, 4, f"{CLOUD}/v6e", "16x16", kinds=V6E),
        _gpu("NVIDIA A100-SXM4-80GB", 312e12, 80, 2039e9, 300e9, A100_SHEET, A100),
        _gpu("NVIDIA H100 80GB HBM3", 989.4e12, 80, 3350e9, 450e9, H100_SHEET, H100),
        _gpu("NVIDIA H200", 989.4e12, 141, 4800e9, 450e9, H200_SHEET, H100),
    )
}


def find_chip(device_kind: str) -> Chip | None:
    """Returns the chip that JAX calls `device_kind`; None if its peak rates are not known here."""
    return next((chip for chip in CHIPS.values() if device_kind in chip.kinds), None)


@dataclasses.dataclass(frozen=True)
class Host:
    """A host with `Chip.per_host` chips in Google Cloud."""

    machine: str  # its type
    cpus: int  # vCPUs
    network: float | None  # bytes/s, without the links between chips; None if it is not published


# By chip. Sources: `Chip.source`, and for GPUs https://docs.cloud.google.com/compute/docs/gpus and
# .../gpus/gpu-network-bandwidth. The hosts of v5e and v6e have half of the network of 8 chips.
HOSTS = {
    "v4": Host("ct4p-hightpu-4t", 240, None),
    "v5e": Host("ct5lp-hightpu-4t", 112, 12.5e9),
    "v5p": Host("ct5p-hightpu-4t", 208, None),
    "v6e": Host("ct6e-standard-4t", 180, 50e9),
    "a100": Host("a2-ultragpu-8g", 96, 12.5e9),
    "h100": Host("a3-highgpu-8g", 208, 25e9),
    "h200": Host("a3-ultragpu-8g", 224, 50e9),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Connected chips of one kind. XLA can compile for them, but not run anything on them."""

    name: str
    chip: Chip
    hosts: int
    devices: Sequence[Any]


def parse_topology(text: str) -> tuple[Chip, tuple[int, ...]]:
    """Returns the chip and the sides in `text`: "v5e:16x16" gives `CHIPS["v5e"]` and (16, 16)."""
    name, _, shape = text.partition(":")
    if name not in CHIPS:
        raise UserError(f"unknown chip in topology {text!r}; use one of {', '.join(CHIPS)}")
    chip = CHIPS[name]
    axes = chip.example.count("x") + 1
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") + 1 != axes:
        what = f"topology {text!r} does not have the {axes} axes of {name}"
        raise UserError(f"{what}; write it as {name}:{chip.example}")
    sides = tuple(int(side) for side in shape.split("x"))
    if chip.platform == "cuda" and sides[0] > chip.per_host and sides[0] % chip.per_host:
        raise UserError(
            f"topology {text!r} is not a whole number of hosts; use a multiple of {chip.per_host}"
        )
    return chip, sides


def get_topology(text: str) -> Topology:
    """Returns the topology named `text`; raises UserError if it is invalid or has no compiler."""
    chip, sides = parse_topology(text)
    _check_compiler(chip)
    # Keep the compilers from looking for a TPU's metadata server, and JAX from using accelerators.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    jax.config.update("jax_platforms", "cpu")
    hosts = -(-math.prod(sides) // chip.per_host)
    options: dict[str, Any]
    if chip.platform == "tpu":
        # The chips of a host are 2x2 (2x2x1 with a third axis), or fewer in a smaller slice.
        bounds = tuple(min(side, most) for side, most in zip(sides, (2, 2, 1), strict=False))
        name, options = text, {"chips_per_host_bounds": (*bounds, 1)[:3]}
        if chip.name == "v4":  # JAX counts the two cores of a v4 as one device
            options["chip_config_name"] = "megacore"
    else:
        shape = f"1x{hosts}x{math.prod(sides) // hosts}"
        name, options = chip.name, {"target_config": chip.description, "topology": shape}
    try:
        found = topologies.get_topology_desc(name, chip.platform, **options)
    except Exception as error:  # its type depends on the compiler and its version
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the compiler does not support topology {text}: {reason}") from error
    return Topology(text, chip, hosts, found.devices)


def _check_compiler(chip: Chip) -> None:
    tpu = chip.platform == "tpu"
    with contextlib.suppress(ImportError):  # if a parent package is missing
        if any(map(importlib.util.find_spec, ("libtpu",) if tpu else CUDA_PLUGINS)):
            return
    missing = "libtpu" if tpu else "JAX's CUDA plugin"
    machine = f"{platform.system()} {platform.machine()}"
    linux = machine == "Linux x86_64"
    fix = install("plan") if linux else f"run gnet plan on Linux x86_64, not {machine}"
    raise UserError(f"compiling for {chip.name} requires {missing} (no accelerator needed): {fix}")
