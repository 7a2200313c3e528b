"""Start a run: join the other hosts, compare with them, exit if one is lost.

All hosts must call the functions that communicate, in the same order.
"""

import contextlib
import glob
import importlib.util
import inspect
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from gnet_jax.config import Config, ConfigError, UserError, flatten
from gnet_jax.config.bucket import Place, locate
from gnet_jax.config.command import Join
from gnet_jax.errors import choose, first_line
from gnet_jax.training.checkpoints.verify import digest
from gnet_jax.training.hosts.log import LOG, end_log
from gnet_jax.training.hosts.roll_call import RollCall
from gnet_jax.training.workdir import (
    code_version,
    compiler_flags,
    flag_values,
    open_workdir,
    own_versions,
    package_versions,
)

if TYPE_CHECKING:
    from gnet_jax.training.program import Run

Value = TypeVar("Value")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_LOST = 3  # exit code if the processes could not connect, or if one of them was lost

# If one process stops answering, JAX ends all of them after at most twice this time.
HEARTBEAT_SECONDS = 15
SHUTDOWN_SECONDS = 30  # how long a finished process waits for the others to finish

# Hosts may differ in these fields, which are paths and numbers of threads.
PER_HOST_FIELDS = ("workdir", "init", "data.source", "data.threads", "data.workers")
LAST_SECONDS = 5  # that a host has for uploading its log before it exits
TOKEN_SECONDS = 10  # within which the other hosts must see a file that host 0 creates


class TrainingError(RuntimeError):
    """No host can continue: values are not finite, a head does not learn, or a save failed."""


class OneHostError(TrainingError):
    """An error that only this host raises; see `abort_on_unexpected_error`."""


class HostsError(RuntimeError):
    """The processes could not connect; the same command may succeed the next time."""


def should_join(launch: Join) -> bool:
    """Returns whether this process should join other processes."""
    option = choose("--distributed", launch.distributed, {"auto": None, "on": True, "off": False})
    if option is not None:
        return option
    given = (launch.coordinator, launch.num_processes, launch.process_id)
    named = any(each is not None for each in given) or "JAX_COORDINATOR_ADDRESS" in os.environ
    return named or detect_cluster() is not None


def detect_cluster() -> str | None:
    """Returns the kind of multi-process job that this process belongs to, or None.
    If this is uncertain, it assumes a job. Otherwise all the processes could train separately in
    one workdir.
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
def handle_stop_signals(handler: Callable[[int, Any], None]) -> Iterator[Sequence[int]]:
    """Install `handler` for the stop signals; yield these signals (under nohup, without SIGHUP)."""
    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = [each for each in SIGNALS if not (nohup and each == signal.SIGHUP)]
    before = {each: signal.signal(each, handler) for each in numbers}
    try:
        yield numbers
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)


def start(launch: Join) -> None:
    """Join the other processes of the run, if any. Call this before anything uses a device.
    If they do not all join within `launch.start_timeout` seconds, the process exits with
    `EXIT_LOST`. Raises ConfigError if it cannot determine which processes belong to the run, and
    HostsError if the coordinator's name cannot be resolved or the others cannot be reached.
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
    _check_name(launch.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"), launch)
    roll_call = RollCall()

    def give_up() -> None:
        text = f"error: {this} waited {launch.start_timeout} s for the others"
        fix = "start all of them with the same coordinator, or raise --start-timeout"
        _exit(f"{text}; {roll_call.describe()}; {fix}", EXIT_LOST)

    alarm = threading.Timer(launch.start_timeout, give_up)
    alarm.daemon = True
    alarm.start()
    try:
        with roll_call.running():
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


def _check_name(coordinator: str | None, launch: Join) -> None:
    """Raise a HostsError if the coordinator's name cannot be resolved; JAX would try until the end.
    In Kubernetes, a name exists only once its pod runs, so wait for it there.
    """
    deadline = time.monotonic()
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        deadline += launch.start_timeout
    while coordinator is not None:
        host = (coordinator.rpartition(":")[0] or coordinator).strip("[]")
        try:
            socket.getaddrinfo(host, None)
            return
        except (socket.gaierror, UnicodeError) as error:  # idna refuses some names
            if time.monotonic() >= deadline:
                reason = getattr(error, "strerror", None) or error
                raise HostsError(
                    f"the coordinator's name {host!r} cannot be resolved ({reason}); check "
                    "--coordinator, and this machine's DNS"
                ) from error
        time.sleep(1)


def _describe(launch: Join, cluster: str | None) -> str:
    if launch.process_id is None:
        return f"this process of a {cluster} job" if cluster else "this process"
    total = "" if launch.num_processes is None else f" of {launch.num_processes}"
    address = "" if launch.coordinator is None else f" at {launch.coordinator}"
    return f"process {launch.process_id}{total}{address}"


def gather(text: str) -> list[str]:
    """Returns the `text` of every host, in the order of the hosts."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)
    with jax.transfer_guard("allow"):  # JAX's own code transfers implicitly
        sizes = multihost_utils.process_allgather(np.array([own.size], np.int32)).ravel()
        rows = multihost_utils.process_allgather(np.pad(own, (0, max(sizes.max(), 1) - own.size)))
    texts = (row[:size].tobytes() for row, size in zip(rows, sizes, strict=True))
    return [text.decode("utf-8", "surrogateescape") for text in texts]


def run_on_all_hosts(action: Callable[[], Value]) -> Value:
    """Call `action` on every host; if it succeeds on all of them, return this host's result.
    If `action` raises a UserError on this host, raises that error. If it fails only on other hosts,
    raises a UserError with the message of the first of these hosts.
    """
    try:
        value, own = action(), None
    except UserError as error:
        value, own = None, error
    answers = gather("" if own is None else f"{own.exit_code} {str(own) or type(own).__name__}")
    if own is not None:
        raise own
    for host, answer in enumerate(answers):
        if answer:
            code, _, text = answer.partition(" ")
            error = UserError(f"host {host} stopped: {text}")
            error.exit_code = int(code)
            raise error
    return value  # pyright: ignore[reportReturnType]


def identity(run: "Run", fingerprints: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that must be equal on every host, by name."""
    found = {k: value for k, value in flatten(run.config).items() if k not in PER_HOST_FIELDS}
    if run.program.pretrained is not None:
        found["init"] = digest(run.program.pretrained.variables)
    # The other fingerprints cover the class names.
    found |= {f"data.fingerprint.{k}": v for k, v in fingerprints.items() if k != "classes"}
    found |= {f"version of {name}": value for name, value in package_versions().items()}
    found |= flag_values(compiler_flags())
    found |= own_versions(run.program.model.arch.own_parts)
    return found | {"code": code_version()}


def compare(own: Mapping[str, Any]) -> None:
    """Raise a ConfigError on every host if any host's values differ from those of host 0."""
    first, *others = (json.loads(text) for text in gather(json.dumps(own)))
    for host, values in enumerate(others, 1):
        differing = [
            f"{name} is {values.get(name, 'absent')} there, {first.get(name, 'absent')} on host 0"
            for name in sorted(first.keys() | values.keys())
            if values.get(name) != first.get(name)
        ]
        if differing:
            rest = f" ({len(differing) - 3} more)" if len(differing) > 3 else ""
            raise ConfigError(
                f"host {host} differs: {'; '.join(differing[:3])}{rest}; start every host with the "
                "same command, code, libraries, flags and data"
            )


def open_shared_workdir(config: Config, fingerprints: Mapping[str, Any]) -> Place:
    """Open the workdir on every host, or raise a ConfigError if they see different folders."""
    if jax.process_count() == 1:
        return open_workdir(config, fingerprints)
    first, token = jax.process_index() == 0, ""
    own = locate(config.workdir)
    if run_on_all_hosts(lambda: open_workdir(config, fingerprints) if first else None):
        token = f".shared-{secrets.token_hex(8)}"
        (own / token).touch()
    token = gather(token)[0]
    try:
        run_on_all_hosts(lambda: _wait_for_token(own, token))
        return run_on_all_hosts(lambda: open_workdir(config, fingerprints))
    finally:
        if first:
            (own / token).unlink(missing_ok=True)


def _wait_for_token(workdir: Place, token: str) -> None:
    deadline = time.monotonic() + TOKEN_SECONDS
    while not workdir.is_dir() or token not in [path.name for path in workdir.iterdir()]:
        if time.monotonic() > deadline:
            raise ConfigError(
                f"the workdir {workdir.absolute()} is not the folder that host 0 sees; give a "
                "--workdir on a file system that all hosts share"
            )
        time.sleep(0.2)


@contextlib.contextmanager
def abort_on_unexpected_error(
    *expected: type[Exception], last: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """With several processes, exit at once if the body raises an error on this process only.
    A normal exit would wait for the others, which wait for this process in the current step. An
    error that all processes raise passes through: a `UserError` or a type in `expected`, but not a
    `OneHostError`. Before it exits, `last` has a few seconds, for example to upload the log.
    """
    try:
        yield
    except Exception as error:
        alone = isinstance(error, OneHostError) or not isinstance(error, (UserError, *expected))
        if jax.process_count() == 1 or not alone:
            raise
        _exit(*_explain(error), last)


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


def _exit(message: str, code: int, last: Callable[[], object] = lambda: None) -> NoReturn:
    LOG.error(message)
    end_log(code)
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    thread = threading.Thread(target=last, daemon=True)
    thread.start()
    thread.join(LAST_SECONDS)
    os._exit(code)


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
