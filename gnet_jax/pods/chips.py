"""What accelerators can do by their makers' figures, each with its source."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

GIB = 2**30
CLOUD = "https://docs.cloud.google.com/tpu/docs"
NVIDIA = "https://resources.nvidia.com/en-us-gpu-resources"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, as JAX counts devices."""

    name: str
    platform: Literal["tpu", "cuda"]
    flops: float  # bfloat16 multiplications and additions a second, dense, at their peak
    hbm_bytes: int
    bandwidth: float  # of that memory, bytes a second
    link_bandwidth: float  # bytes a second that a chip sends to its neighbours, all links together
    per_host: int  # chips of one host in a slice of several
    source: str
    usable: float = 1.0  # share of the memory that a program may have
    example: str = ""  # a shape that it comes in
    description: str = ""  # what XLA's CUDA compiler must know of a GPU (a text proto)


def _tpu(
    name: str, tflops: float, hbm_gib: int, bandwidth: float, links: float, example: str
) -> Chip:
    """A TPU whose page is named as it is; links in GB/s one way, half of what the page calls
    bidirectional.
    """
    return Chip(
        name=name,
        platform="tpu",
        flops=tflops * 1e12,
        hbm_bytes=hbm_gib * GIB,
        bandwidth=bandwidth * 1e9,
        link_bandwidth=links * 1e9,
        per_host=4,  # of the hosts that slices of several hosts are made of
        example=example,
        source=f"{CLOUD}/{name}",
    )


def _gpu(
    name: str, tflops: float, bandwidth: float, links: float, source: str, description: str
) -> Chip:
    return Chip(
        name=name,
        platform="cuda",
        flops=tflops * 1e12,
        hbm_bytes=80 * 10**9,
        bandwidth=bandwidth * 1e9,
        link_bandwidth=links * 1e9,
        per_host=8,
        example="8",
        source=source,
        # What JAX takes of a GPU's memory unless it is told otherwise
        # (https://docs.jax.dev/en/latest/gpu_memory_allocation.html).
        usable=0.75,
        description=description,
    )


def _description(
    major: int,
    *,
    fpus: int,
    cores: int,
    clock_ghz: float,
    bandwidth: float,
    l2_mib: int,
    shared_kib: int,
) -> str:
    """The text proto of a GPU: limits of its compute capability (CUDA C++ programming guide, table
    of technical specifications) and the figures of its data sheet.
    """
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {48 * 1024}
  shared_memory_per_block_optin: {(shared_kib - 1) * 1024}
  shared_memory_per_core: {shared_kib * 1024}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth * 1e9:.0f}
  l2_cache_size: {l2_mib * 2**20}
  clock_rate_ghz: {clock_ghz}
  device_memory_size: {80 * 10**9}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
"""


CHIPS: Mapping[str, Chip] = {
    chip.name: chip
    for chip in (
        _tpu("v4", 275, 32, 1200, 300, "2x2x2"),
        _tpu("v5e", 197, 16, 819, 200, "16x16"),
        _tpu("v5p", 459, 95, 2765, 600, "2x2x2"),
        _tpu("v6e", 918, 32, 1638, 400, "16x16"),
        _gpu(
            "a100",
            312,
            2039,
            300,
            f"{NVIDIA}/nvidia-a100-datasheet-us-nvidia-1758950-r4-web (SXM, 80 GB)",
            _description(
                8, fpus=64, cores=108, clock_ghz=1.41, bandwidth=2039, l2_mib=40, shared_kib=164
            ),
        ),
        _gpu(
            "h100",
            989.4,
            3350,
            450,
            f"{NVIDIA}/nvidia-tensor-core-gpu-datasheet (SXM, without sparsity)",
            _description(
                9, fpus=128, cores=132, clock_ghz=1.98, bandwidth=3350, l2_mib=50, shared_kib=228
            ),
        ),
    )
}
