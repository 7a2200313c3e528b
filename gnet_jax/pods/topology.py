"""Machines that are not there: `v5e:16x16` or `h100:8`, and the devices a program compiles for."""

import dataclasses
import importlib.util
import math
import os
import platform
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from gnet_jax.config import UserError, choose
from gnet_jax.config.recipes import install
from gnet_jax.pods.chips import CHIPS, Chip

CUDA_PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
TOOLKITS = ("/usr/local/cuda", "/opt/cuda")


class TopologyError(UserError):
    """A topology that cannot be compiled for."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind and how they are wired; no device of it can be computed with."""

    name: str
    chip: Chip
    hosts: int
    devices: Sequence[Any]


def parse_topology(text: str) -> tuple[Chip, tuple[int, ...]]:
    """The chip and the shape that `text` names: "v5e:16x16" is 256 chips, "h100:8" eight GPUs.

    Raises:
        TopologyError: for an unknown chip, or a shape that such chips do not come in.
    """
    name, _, shape = text.partition(":")
    if name not in CHIPS:
        raise TopologyError(f"{text!r} names no chip that is known; they are: {', '.join(CHIPS)}")
    chip = CHIPS[name]
    example = f"{name}:{chip.example}"
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise TopologyError(f"topology {text!r} has no shape; write it as {example}")
    sides = tuple(int(side) for side in shape.split("x"))
    axes = example.count("x") + 1
    if len(sides) != axes:
        raise TopologyError(
            f"topology {text!r} has {len(sides)} axes, and {name} comes in {axes}; write it as "
            f"{example}"
        )
    if chip.platform == "cuda" and sides[0] > chip.per_host and sides[0] % chip.per_host:
        raise TopologyError(
            f"topology {text!r} is more than one host of {chip.per_host} {name}, but no whole "
            f"number of them; use a multiple of {chip.per_host}"
        )
    return chip, sides


def get_topology(text: str) -> Topology:
    """The topology that `text` names, from the compiler that knows it.

    Raises:
        TopologyError: as `parse_topology`, and where the compiler is not installed or knows no such
            machine.
    """
    chip, sides = parse_topology(text)
    is_tpu = choose("platform", chip.platform, {"tpu": True, "cuda": False})
    _check_compiler(chip)
    # The compilers ask neither for a TPU's metadata server nor for a GPU, and a computation of our
    # own goes to the CPU.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    jax.config.update("jax_platforms", "cpu")
    count = math.prod(sides)
    hosts = -(-count // chip.per_host)
    try:
        if is_tpu:
            # A host's chips are 2x2 (2x2x1 where there is a third axis), or fewer in a smaller
            # slice. Both cores of a v4 are one device, as they are for JAX on such a machine.
            bounds = tuple(min(side, most) for side, most in zip(sides, (2, 2, 1), strict=False))
            options = {"chip_config_name": "megacore"} if chip.name == "v4" else {}
            found = topologies.get_topology_desc(
                text, platform="tpu", chips_per_host_bounds=(*bounds, 1)[:3], **options
            )
        else:
            shape = f"1x{hosts}x{count // hosts}"
            found = topologies.get_topology_desc(
                chip.name, "cuda", target_config=chip.description, topology=shape
            )
    except (
        Exception
    ) as error:  # of many kinds, by compiler and version; the reason is its first line
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TopologyError(f"the compiler knows no topology {text}: {reason}") from error
    return Topology(text, chip, hosts, found.devices)


def _check_compiler(chip: Chip) -> None:
    missing = None
    if chip.platform == "tpu":
        if not _installed("libtpu"):
            missing = "libtpu"
    elif not any(map(_installed, CUDA_PLUGINS)):
        missing = "JAX's CUDA plugin"
    elif not _has_ptxas():
        missing = "ptxas, NVIDIA's assembler (of the package nvidia-cuda-nvcc)"
    if missing is None:
        return
    machine = (platform.system(), platform.machine())
    if machine != ("Linux", "x86_64"):
        raise TopologyError(
            f"compiling for {chip.name} needs {missing} on Linux x86_64, and this machine is "
            f"{' '.join(machine)}; run gnet plan on another one, which needs no accelerator"
        )
    raise TopologyError(
        f"compiling for {chip.name} needs {missing}, which is not installed (it runs without "
        f"an accelerator): {install('plan')}"
    )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # of the package around it
        return False


def _has_ptxas() -> bool:
    """Whether it is where XLA looks for it: in PATH, a CUDA toolkit, or NVIDIA's packages."""
    spec = importlib.util.find_spec("nvidia")
    packages = [] if spec is None else spec.submodule_search_locations or []
    roots = [*TOOLKITS, *filter(None, [os.environ.get("CUDA_ROOT")])]
    roots += [root for folder in packages for root in Path(folder).glob("*")]
    return bool(shutil.which("ptxas") or any(Path(root, "bin/ptxas").is_file() for root in roots))
