"""Absent machines, such as `v5e:16x16` or `h100:8`, as devices that XLA can compile for."""

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
    """Connected chips of one kind; its devices can be compiled for but not computed with."""

    name: str
    chip: Chip
    hosts: int
    devices: Sequence[Any]


def parse_topology(text: str) -> tuple[Chip, tuple[int, ...]]:
    """Returns the chip and the shape in `text`: "v5e:16x16" is 256 chips, "h100:8" eight GPUs.

    Raises:
        TopologyError: for an unknown chip, or a shape in which it does not come.
    """
    name, _, shape = text.partition(":")
    if name not in CHIPS:
        raise TopologyError(f"unknown chip in topology {text!r}; use one of {', '.join(CHIPS)}")
    chip = CHIPS[name]
    axes = chip.example.count("x") + 1
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") + 1 != axes:
        what = f"topology {text!r} is not {name} with {axes} axes"
        raise TopologyError(f"{what}; write it as {name}:{chip.example}")
    sides = tuple(int(side) for side in shape.split("x"))
    if chip.platform == "cuda" and sides[0] > chip.per_host and sides[0] % chip.per_host:
        raise TopologyError(
            f"topology {text!r} is not a whole number of hosts; use a multiple of {chip.per_host}"
        )
    return chip, sides


def get_topology(text: str) -> Topology:
    """Returns the topology named `text`, as its compiler describes it.

    Raises:
        TopologyError: as `parse_topology`; or if its compiler is missing or does not know it.
    """
    chip, sides = parse_topology(text)
    is_tpu = choose("platform", chip.platform, {"tpu": True, "cuda": False})
    _check_compiler(chip)
    # Keep the compilers from looking for a TPU's metadata server or a GPU, and JAX from using one.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    jax.config.update("jax_platforms", "cpu")
    count = math.prod(sides)
    hosts = -(-count // chip.per_host)
    try:
        if is_tpu:
            # A host's chips are 2x2 (2x2x1 if there is a third axis), or fewer in a smaller slice.
            # Both cores of a v4 are one device, as they are for JAX on such a machine.
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
    except Exception as error:  # the type depends on compiler and version
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TopologyError(f"the compiler knows no topology {text}: {reason}") from error
    return Topology(text, chip, hosts, found.devices)


def _check_compiler(chip: Chip) -> None:
    """Raise a TopologyError if a package that compiles for `chip` is not installed."""
    tpu = chip.platform == "tpu"
    if not (_installed("libtpu") if tpu else any(map(_installed, CUDA_PLUGINS))):
        missing = "libtpu" if tpu else "JAX's CUDA plugin"
    elif not tpu and not has_ptxas():
        missing = "ptxas (package nvidia-cuda-nvcc)"
    else:
        return
    machine = f"{platform.system()} {platform.machine()}"
    linux = machine == "Linux x86_64"
    fix = install("plan") if linux else f"run gnet plan on Linux x86_64, not {machine}"
    raise TopologyError(f"compiling for {chip.name} requires {missing}, but no accelerator: {fix}")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # of its parent package
        return False


def has_ptxas() -> bool:
    """Returns whether ptxas is where XLA looks: in PATH, a CUDA toolkit, or NVIDIA's packages."""
    spec = importlib.util.find_spec("nvidia")
    packages = [] if spec is None else spec.submodule_search_locations or []
    roots = [*TOOLKITS, *filter(None, [os.environ.get("CUDA_ROOT")])]
    roots += [root for folder in packages for root in Path(folder).glob("*")]
    return bool(shutil.which("ptxas") or any(Path(root, "bin/ptxas").is_file() for root in roots))
