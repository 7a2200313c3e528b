"""How a process joins the others, and exits when they are lost."""

import signal
import socket
import sys
import threading
from unittest import mock

import jax
import pytest

from gnet_jax.config import ConfigError
from gnet_jax.config.command import Launch
from gnet_jax.training.hosts import start as hosts
from gnet_jax.training.hosts import supervise
from gnet_jax.training.hosts.start import (
    EXIT_LOST,
    HostsError,
    OneHostError,
    TrainingError,
    abort_on_unexpected_error,
    detect_cluster,
    should_join,
    start,
)

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "2",
}
CHIPS = ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "KUBERNETES_SERVICE_HOST", *CHIPS):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        (SLURM, "Slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, None),  # a job of one task
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, None),  # a shell of sbatch, outside of srun
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "GKE with TPUs"),
        ({"TPU_PROCESS_ADDRESSES": "a,b"}, "GKE with TPUs"),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "GKE with TPUs"),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),  # Colab
        ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "tpu,cpu"}, "GKE with TPUs"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_the_environment_names_the_cluster(environment, found, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert detect_cluster() == found
    assert should_join(Launch()) == (found is not None)
    assert not should_join(Launch(distributed="off"))
    assert should_join(Launch(distributed="on"))


def test_a_tpu_vm_has_chips_libtpu_and_a_metadata_server(monkeypatch):
    found = {"/dev/accel[0-9]*": [], "/dev/vfio/[0-9]*": ["/dev/vfio/0"]}
    monkeypatch.setattr(hosts.glob, "glob", found.get)
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: object())
    assert detect_cluster() == "TPU VM"
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: None)
    assert detect_cluster() is None
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    assert detect_cluster() is None


@pytest.mark.parametrize(
    "launch", [{"coordinator": "localhost:1"}, {"num_processes": 2}, {"process_id": 0}]
)
def test_any_option_of_the_coordinator_makes_a_process_join(launch):
    assert should_join(Launch(**launch))


def test_the_coordinator_of_jaxs_own_variable_is_joined(monkeypatch):
    assert not should_join(Launch())
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    assert should_join(Launch())


@pytest.fixture
def initialize(monkeypatch):
    """Records how JAX is asked to join, and answers as it is told."""
    asked = []
    answer = []

    def initialize(
        coordinator_address=None,
        num_processes=None,
        process_id=None,
        cluster_detection_method=None,
        initialization_timeout=300,
        heartbeat_timeout_seconds=100,
        shutdown_timeout_seconds=300,
    ):
        asked.append((coordinator_address, num_processes, process_id, cluster_detection_method))
        assert (heartbeat_timeout_seconds, shutdown_timeout_seconds) == (15, 30)
        assert initialization_timeout == Launch().start_timeout + 60  # our message comes first
        for each in answer:
            raise each

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return asked, answer


def test_a_process_alone_joins_nobody(initialize):
    start(Launch())
    start(Launch(distributed="off"))
    assert initialize[0] == []


def test_the_options_go_to_jax_which_finds_out_the_rest(initialize):
    start(Launch(coordinator="localhost:1", num_processes=2, process_id=1))
    start(Launch(distributed="on"))
    assert initialize[0] == [("localhost:1", 2, 1, "deactivate"), (None, None, None, None)]
    assert not getattr(jax.config, "jax_enable_preemption_service", False)  # JAX 0.7 has none
    alarms = [each for each in threading.enumerate() if isinstance(each, threading.Timer)]
    assert all(alarm.finished.is_set() for alarm in alarms)


def test_a_failure_to_join_is_an_error_with_its_cause(initialize):
    _, answer = initialize
    answer.append(ValueError("coordinator_address should be defined."))
    with pytest.raises(ConfigError, match="coordinator_address should be defined"):
        start(Launch(distributed="on"))
    answer[:] = [RuntimeError("metadata server: 404\nand more")]
    with pytest.raises(
        HostsError, match=r"process 1 of 2 at localhost:1 .*: metadata server: 404;"
    ):
        start(Launch(coordinator="localhost:1", num_processes=2, process_id=1))


def test_a_process_waits_for_the_others_no_longer_than_it_is_told(initialize, monkeypatch):
    ended = threading.Event()
    told = []

    def end(*arguments):
        told.append(arguments)
        ended.set()

    monkeypatch.setattr(hosts, "_exit", end)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: ended.wait(20))
    start(Launch(coordinator="localhost:1", num_processes=2, process_id=1, start_timeout=0.2))
    (message, code), *_ = told
    assert "process 1 of 2 at localhost:1 waited 0.2 s" in message
    assert code == EXIT_LOST == 3


def test_a_coordinator_whose_name_cannot_be_resolved_is_told_at_once(initialize, monkeypatch):
    launch = Launch(coordinator="no.such.invalid:1", num_processes=2, process_id=1)
    with pytest.raises(HostsError, match=r"'no\.such\.invalid' cannot be resolved"):
        start(launch)
    assert initialize[0] == []
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "other.invalid:1")
    with pytest.raises(HostsError, match=r"'other\.invalid' cannot be resolved"):
        start(Launch(num_processes=2, process_id=1))


def test_in_kubernetes_the_name_of_a_pod_that_starts_later_is_waited_for(initialize, monkeypatch):
    answers = [socket.gaierror(-2, "Name or service not known"), []]

    def resolve(*_):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr(hosts.socket, "getaddrinfo", resolve)
    start(Launch(coordinator="pod-0.job:1", num_processes=2, process_id=1))
    assert len(initialize[0]) == 1


def test_an_unexpected_error_exits_at_once_on_several_hosts_alone(monkeypatch):
    ended = []
    monkeypatch.setattr(hosts, "_exit", lambda message, code, _: ended.append((code, message)))

    def fails(error):
        with abort_on_unexpected_error(ZeroDivisionError):
            raise error

    lost = jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer")
    for error in (lost, KeyError("bug"), ConfigError("mistake")):
        with pytest.raises(type(error)):
            fails(error)
    assert ended == []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for error in (ConfigError("mistake"), ZeroDivisionError()):  # every host raises these
        with pytest.raises(type(error)):
            fails(error)
    fails(lost)
    fails(KeyError("bug"))
    fails(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"))
    with abort_on_unexpected_error(TrainingError):
        raise OneHostError("step 3 could not be saved")
    assert [code for code, _ in ended] == [EXIT_LOST, 1, 1, 1]
    assert "process 0 of 2 lost contact with the others" in ended[0][1]
    assert "Connection reset by peer" in ended[0][1]
    assert "KeyError: 'bug'" in ended[1][1]
    assert ended[3][1] == "stopped: step 3 could not be saved"


def test_an_exit_prints_its_message_and_flushes_what_was_printed_before(monkeypatch, capsys):
    end, out = mock.Mock(), mock.Mock()
    monkeypatch.setattr(hosts.os, "_exit", end)
    monkeypatch.setattr(sys, "stdout", out)
    hosts._exit("stopped", 3)
    assert capsys.readouterr().err == "stopped\n"
    assert out.mock_calls == [mock.call.flush()]
    end.assert_called_once_with(3)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has prctl")
def test_only_a_supervised_run_asks_to_end_with_its_parent(monkeypatch):
    library = mock.Mock()
    monkeypatch.setattr(supervise.ctypes, "CDLL", lambda _: library)
    monkeypatch.delenv(supervise.ACKNOWLEDGE, raising=False)
    supervise.end_with_supervisor()
    assert library.mock_calls == []
    monkeypatch.setenv(supervise.ACKNOWLEDGE, "5")
    supervise.end_with_supervisor()
    assert library.mock_calls == [mock.call.prctl(1, signal.SIGTERM)]
