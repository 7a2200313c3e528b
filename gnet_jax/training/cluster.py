"""Whether this process is one of several, as its environment has it; imports no JAX."""

import glob
import importlib.util
import os

from gnet_jax.config.launch import Launch
from gnet_jax.config.suggest import choose


def joins(launch: Launch) -> bool:
    """Whether this process is to join others."""
    said = choose("--distributed", launch.distributed, {"auto": None, "on": True, "off": False})
    if said is not None:
        return said
    given = (launch.coordinator, launch.num_processes, launch.process_id)
    named = any(each is not None for each in given) or "JAX_COORDINATOR_ADDRESS" in os.environ
    return named or cluster() is not None


def cluster() -> str | None:
    """What kind of job of several processes this process is part of; None outside of any.

    Read from the environment alone, and meant to see too much rather than too little: a process
    that overlooks its job would train alone, beside others in the same workdir.
    """
    env = os.environ
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if _number("OMPI_COMM_WORLD_SIZE") > 1:
        return "Open MPI"
    if _number("SLURM_NTASKS") > 1 and all(name in env for name in slurm):
        return "Slurm"
    if _asks_for_tpu():
        workers = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
        if workers is not None:  # one entry on a machine that is whole by itself, as on Colab
            several = len(workers.split(",")) > 1 or _number("MEGASCALE_NUM_SLICES") > 1
            return "GKE with TPUs" if several else None
        if _on_tpu_vm():
            return "TPU VM"
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return "Kubernetes"
    return None


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else 0


def _asks_for_tpu() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return not platforms or "tpu" in platforms.split(",")


def _on_tpu_vm() -> bool:
    """Whether chips are attached, and a metadata server may be asked for the other machines."""
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    found = bool(chips) and importlib.util.find_spec("libtpu") is not None
    return found and "TPU_SKIP_MDS_QUERY" not in os.environ
