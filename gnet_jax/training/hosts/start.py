"""The processes of one run: how they find each other, and what ends them when one is gone."""

import contextlib
import glob
import importlib.util
import inspect
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import jax

from gnet_jax.config import ConfigError, UserError
from gnet_jax.config.command import Launch
from gnet_jax.errors import choose
from gnet_jax.training.observe.dead_heads import LoneError


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


EXIT_LOST = 3  # exit code where the processes could not meet, or lost one of them

# A process that has not been heard of for so long is taken for dead, and JAX ends all others.
# JAX may need up to twice this, and the docs promise 35 s.
HEARTBEAT_SECONDS = 15
# How long a process waits at its end for the others to come to theirs.
SHUTDOWN_SECONDS = 30


class HostsError(RuntimeError):
    """Processes that did not find each other; the same command may work the next time."""


def start(launch: Launch) -> None:
    """Join the other processes of the run, if there are any; before anything touches a device.

    Raises:
        ConfigError: if it cannot be told which processes belong together.
        HostsError: if they cannot be reached. Where they do not all come within the launch's
            `start_timeout`, the process ends here, with a sentence and exit code `EXIT_LOST`.
    """
    given = (launch.coordinator, launch.num_processes, launch.process_id)
    if not joins(launch):
        return
    found = cluster()
    options: dict[str, Any] = {
        "coordinator_address": launch.coordinator,
        "num_processes": launch.num_processes,
        "process_id": launch.process_id,
        # JAX would end the process without a word of what to do; `_give_up` comes before it.
        "initialization_timeout": launch.start_timeout + 60,
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
        "shutdown_timeout_seconds": SHUTDOWN_SECONDS,
        "cluster_detection_method": None if None in given else "deactivate",
    }
    known = inspect.signature(jax.distributed.initialize).parameters
    options = {name: value for name, value in options.items() if name in known}  # JAX 0.7 has fewer
    if hasattr(jax.config, "jax_enable_preemption_service"):
        # It would take SIGTERM for itself, and tell nobody.
        jax.config.update("jax_enable_preemption_service", False)
    alarm = threading.Timer(launch.start_timeout, _give_up, (launch, found))
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(**options)
    except (ValueError, TypeError, KeyError) as error:
        where = "no cluster was recognised" if found is None else f"this looks like {found}"
        raise ConfigError(
            f"cannot tell which processes belong to this run ({where}; JAX says: {error}); give "
            "--coordinator, --num-processes and --process-id, or --distributed off to train alone"
        ) from error
    except Exception as error:  # the network, a metadata server, a library of the cluster's
        raise HostsError(
            f"{_who(launch, found)} could not join the others: {_first_line(error)}; check that "
            "every process runs and that --coordinator can be reached from here"
        ) from error
    finally:
        alarm.cancel()


def _give_up(launch: Launch, found: str | None) -> NoReturn:
    _end(
        f"error: {_who(launch, found)} waited {launch.start_timeout} s for the others; "
        "start all of them, with the same coordinator, or raise --start-timeout",
        EXIT_LOST,
    )


def _who(launch: Launch, found: str | None) -> str:
    if launch.process_id is None:
        return f"this process of a {found} job" if found else "this process"
    of = "" if launch.num_processes is None else f" of {launch.num_processes}"
    at = "" if launch.coordinator is None else f" at {launch.coordinator}"
    return f"process {launch.process_id}{of}{at}"


@contextlib.contextmanager
def ending_together(*alike: type[Exception]) -> Iterator[None]:
    """Over several processes, end this one at once where what is inside fails unforeseen.

    The others wait for it in the step that is under way. To leave in the ordinary way would wait
    for them in turn: to finish a save, and to say goodbye. What every process raises alike passes:
    a `UserError`, and those of `alike` but `LoneError`. Alone, everything does.
    """
    try:
        yield
    except LoneError as error:
        if jax.process_count() == 1:
            raise
        _end(f"stopped: {error}", 1)
    except (UserError, *alike):
        raise
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        if "RESOURCE_EXHAUSTED" in str(error):
            _end(_unforeseen(), 1)
        _end(
            f"stopped: process {jax.process_index()} of {jax.process_count()} can no "
            f"longer work with the others, most likely as one of them has ended "
            f"({_first_line(error)}). The same command on every host goes on from the newest "
            "checkpoint",
            EXIT_LOST,
        )
    except Exception:  # whatever it is: to leave in the ordinary way would hang
        if jax.process_count() == 1:
            raise
        _end(_unforeseen(), 1)


def _unforeseen() -> str:
    """The traceback of the error that is handled, and what becomes of the run."""
    return (
        f"{traceback.format_exc()}stopped: process {jax.process_index()} of "
        f"{jax.process_count()} met the error above, and the others end when they notice. Once it "
        "is mended, the same command on every host goes on from the newest checkpoint"
    )


def _end(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
