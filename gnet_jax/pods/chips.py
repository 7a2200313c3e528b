"""Peak figures of accelerators, each with the maker's page as its source."""

import dataclasses
from typing import Literal

GIB = 2**30
CLOUD = "https://docs.cloud.google.com/tpu/docs"
NVIDIA = "https://resources.nvidia.com/en-us-gpu-resources"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, as JAX counts devices."""

    name: str
    platform: Literal["tpu", "cuda"]
    flops: float  # peak dense bfloat16 multiplications and additions per second
    hbm_bytes: int
    bandwidth: float  # of that memory, bytes/s
    # Bytes/s that a chip sends to its neighbours, all links together; half of what the makers call
    # bidirectional.
    link_bandwidth: float
    per_host: int  # chips of one host in a slice of several hosts
    source: str
    example: str = ""  # of a shape
    usable: float = 1.0  # share of the memory that a program may have
    description: str = ""  # text proto for XLA's CUDA compiler


def _gpu(
    name: str, flops: float, bandwidth: float, links: float, source: str, description: str
) -> Chip:
    """Returns a GPU with 80 GB; `description` holds its own fields of XLA's `gpu_device_info`."""
    # The limits hold for compute capabilities 8 and 9 (CUDA C++ programming guide, table of
    # technical specifications).
    proto = f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {48 * 1024}
  threads_per_core_limit: 2048
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f}
  device_memory_size: {80 * 10**9}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  {description}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
"""
    # 0.75 is JAX's default (https://docs.jax.dev/en/latest/gpu_memory_allocation.html).
    return Chip(
        name, "cuda", flops, 80 * 10**9, bandwidth, links, 8, f"{NVIDIA}/{source}", "8", 0.75, proto
    )


A100 = f"""cuda_compute_capability {{ major: 8 }}
  core_count: 108 fpus_per_core: 64 clock_rate_ghz: 1.41 l2_cache_size: {40 * 2**20}
  shared_memory_per_block_optin: {163 * 1024} shared_memory_per_core: {164 * 1024}"""
A100_SHEET = "nvidia-a100-datasheet-us-nvidia-1758950-r4-web (SXM, 80 GB)"
H100 = f"""cuda_compute_capability {{ major: 9 }}
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 l2_cache_size: {50 * 2**20}
  shared_memory_per_block_optin: {227 * 1024} shared_memory_per_core: {228 * 1024}"""
H100_SHEET = "nvidia-tensor-core-gpu-datasheet (SXM, without sparsity)"
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "tpu", 275e12, 32 * GIB, 1200e9, 300e9, 4, f"{CLOUD}/v4", "2x2x2"),
        Chip("v5e", "tpu", 197e12, 16 * GIB, 819e9, 200e9, 4, f"{CLOUD}/v5e", "16x16"),
        Chip("v5p", "tpu", 459e12, 95 * GIB, 2765e9, 600e9, 4, f"{CLOUD}/v5p", "2x2x2"),
        Chip("v6e", "tpu", 918e12, 32 * GIB, 1638e9, 400e9, 4, f"{CLOUD}/v6e", "16x16"),
        _gpu("a100", 312e12, 2039e9, 300e9, A100_SHEET, A100),
        _gpu("h100", 989.4e12, 3350e9, 450e9, H100_SHEET, H100),
    )
}
