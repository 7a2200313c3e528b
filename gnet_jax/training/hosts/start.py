"""Join the other processes of a run, and exit when one of them is lost."""

import contextlib
import glob
import importlib.util
import inspect
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

from gnet_jax.config import ConfigError, UserError
from gnet_jax.config.command import Launch
from gnet_jax.errors import choose
from gnet_jax.training.checkpoints.verify import first_line
from gnet_jax.training.hosts.agree import OneHostError

ACKNOWLEDGE = "GNET_JAX_ACKNOWLEDGE"  # the file descriptor to which a run acknowledges a signal
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_LOST = 3  # exit code if the processes could not connect, or if one of them was lost

# JAX ends all processes if one of them has not answered for this long. It may take up to twice this
# time to notice; the docs promise 35 s.
HEARTBEAT_SECONDS = 15
SHUTDOWN_SECONDS = 30  # how long a finished process waits for the others to finish


class HostsError(RuntimeError):
    """The processes could not connect; the same command may succeed the next time."""


def should_join(launch: Launch) -> bool:
    """Returns whether this process should join other processes."""
    option = choose("--distributed", launch.distributed, {"auto": None, "on": True, "off": False})
    if option is not None:
        return option
    given = (launch.coordinator, launch.num_processes, launch.process_id)
    named = any(each is not None for each in given) or "JAX_COORDINATOR_ADDRESS" in os.environ
    return named or detect_cluster() is not None


def detect_cluster() -> str | None:
    """Returns the kind of multi-process job that this process belongs to, or None.

    If in doubt, it assumes a job. Otherwise each process of a job that was not recognised would
    train alone in the same workdir.
    """
    env = os.environ
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if _number("OMPI_COMM_WORLD_SIZE") > 1:
        return "Open MPI"
    if _number("SLURM_NTASKS") > 1 and all(name in env for name in slurm):
        return "Slurm"
    platforms = env.get("JAX_PLATFORMS", "")
    if not platforms or "tpu" in platforms.split(","):
        workers = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
        if workers is not None:  # a single machine, such as Colab, has one entry
            several = len(workers.split(",")) > 1 or _number("MEGASCALE_NUM_SLICES") > 1
            return "GKE with TPUs" if several else None
        chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
        metadata_server = "TPU_SKIP_MDS_QUERY" not in env  # it names the other machines
        if chips and metadata_server and importlib.util.find_spec("libtpu") is not None:
            return "TPU VM"
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return "Kubernetes"
    return None


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else 0


@contextlib.contextmanager
def handle_stop_signals(handler: Callable[[int, Any], None]) -> Iterator[list[int]]:
    """Install `handler` for the signals that stop a run, and yield the numbers of these signals.

    SIGHUP stays ignored under nohup.
    """
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = [each for each in SIGNALS if each != signal.SIGHUP or not ignored]
    before = {each: signal.signal(each, handler) for each in numbers}
    try:
        yield list(before)
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)


def start(launch: Launch) -> None:
    """Join the other processes of the run, if any. Call this before anything uses a device.

    If they do not all join within `launch.start_timeout`, the process exits with `EXIT_LOST`.
    Raises ConfigError if it cannot determine which processes belong to the run, and HostsError if
    the others cannot be reached.
    """
    if not should_join(launch):
        return
    cluster = detect_cluster()
    this = _describe(launch, cluster)
    given = (launch.coordinator, launch.num_processes, launch.process_id)
    options: dict[str, Any] = {
        "coordinator_address": launch.coordinator,
        "num_processes": launch.num_processes,
        "process_id": launch.process_id,
        # JAX would abort without saying what to do, so the alarm below goes off before that.
        "initialization_timeout": launch.start_timeout + 60,
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
        "shutdown_timeout_seconds": SHUTDOWN_SECONDS,
        "cluster_detection_method": None if None in given else "deactivate",
    }
    known = inspect.signature(jax.distributed.initialize).parameters
    options = {name: value for name, value in options.items() if name in known}  # JAX 0.7 has fewer
    if hasattr(jax.config, "jax_enable_preemption_service"):  # it would replace our handlers
        jax.config.update("jax_enable_preemption_service", False)
    give_up = (
        f"error: {this} waited {launch.start_timeout} s for the others; start all of them with the "
        "same coordinator, or raise --start-timeout"
    )
    alarm = threading.Timer(launch.start_timeout, _exit, (give_up, EXIT_LOST))
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(**options)
    except (ValueError, TypeError, KeyError) as error:
        where = "no cluster was recognised" if cluster is None else f"this looks like {cluster}"
        raise ConfigError(
            f"cannot determine which processes belong to this run ({where}; JAX says: {error}); "
            "give --coordinator, --num-processes and --process-id, or --distributed off to train "
            "alone"
        ) from error
    except Exception as error:  # from the network, a metadata server or a library of the cluster
        raise HostsError(
            f"{this} could not join the others: {_name(error)}; check that every process runs and "
            "that --coordinator can be reached from here"
        ) from error
    finally:
        alarm.cancel()


def _describe(launch: Launch, cluster: str | None) -> str:
    if launch.process_id is None:
        return f"this process of a {cluster} job" if cluster else "this process"
    total = "" if launch.num_processes is None else f" of {launch.num_processes}"
    address = "" if launch.coordinator is None else f" at {launch.coordinator}"
    return f"process {launch.process_id}{total}{address}"


@contextlib.contextmanager
def abort_on_unexpected_error(*expected: type[Exception]) -> Iterator[None]:
    """With several processes, exit at once if the body raises an error on this process only.

    The others wait for this process in the current step, and a normal exit would wait for them, to
    finish a save and to disconnect. Errors that every process raises are raised normally: a
    `UserError` and the types in `expected`, except a `OneHostError`. With one process, all are.
    """
    try:
        yield
    except Exception as error:
        alone = isinstance(error, OneHostError) or not isinstance(error, (UserError, *expected))
        if jax.process_count() == 1 or not alone:
            raise
        _exit(*_explain(error))


def _explain(error: Exception) -> tuple[str, int]:
    """Returns the message and exit code for an error that the other hosts did not raise."""
    if isinstance(error, OneHostError):
        return f"stopped: {error}", 1
    text = f"stopped: process {jax.process_index()} of {jax.process_count()} "
    lost = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)
    if lost:
        text += f"lost contact with the others, most likely because one exited ({_name(error)})"
    else:
        text = "".join(traceback.format_exception(error)) + text
        text += "raised the error above, which also ends the others. Fix it first"
    text += "; the same command on every host resumes from the latest checkpoint"
    return text, EXIT_LOST if lost else 1


def _exit(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
