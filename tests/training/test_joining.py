"""How a process joins the others, without any others."""

import threading

import jax
import pytest

from gnet_jax.config import ConfigError
from gnet_jax.config.command import Launch
from gnet_jax.training.hosts import start as hosts
from gnet_jax.training.hosts.agree import OneHostError, TrainingError
from gnet_jax.training.hosts.start import EXIT_LOST, HostsError, abort_on_unexpected_error, start


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
    ):
        asked.append((coordinator_address, num_processes, process_id, cluster_detection_method))
        assert heartbeat_timeout_seconds <= 20
        for each in answer:
            raise each

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    return asked, answer


def test_a_process_alone_joins_nobody(initialize):
    start(Launch())
    start(Launch(distributed="off"))
    assert initialize[0] == []


def test_the_options_go_to_jax_which_finds_out_the_rest(initialize):
    start(Launch(coordinator="a:1", num_processes=2, process_id=1))
    start(Launch(distributed="on"))
    assert initialize[0] == [("a:1", 2, 1, "deactivate"), (None, None, None, None)]
    assert not getattr(jax.config, "jax_enable_preemption_service", False)  # JAX 0.7 has none
    alarms = [each for each in threading.enumerate() if isinstance(each, threading.Timer)]
    assert all(alarm.finished.is_set() for alarm in alarms)


def test_a_failure_to_join_is_one_sentence(initialize):
    _, answer = initialize
    answer.append(ValueError("coordinator_address should be defined."))
    with pytest.raises(ConfigError, match="cannot tell which processes belong to this run"):
        start(Launch(distributed="on"))
    answer[:] = [RuntimeError("metadata server: 404\nand more")]
    with pytest.raises(
        HostsError, match="process 1 of 2 at a:1 could not join the others: Runtime"
    ):
        start(Launch(coordinator="a:1", num_processes=2, process_id=1))


def test_a_process_waits_for_the_others_no_longer_than_it_is_told(initialize, monkeypatch):
    ended = threading.Event()
    told = []

    def end(*arguments):
        told.append(arguments)
        ended.set()

    monkeypatch.setattr(hosts, "_end", end)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: ended.wait(20))
    start(Launch(coordinator="a:1", num_processes=2, process_id=1, start_timeout=1))
    (message, code), *_ = told
    assert message.startswith("error: process 1 of 2 at a:1 waited 1 s for the others; ")
    assert code == EXIT_LOST


def test_what_fails_unforeseen_ends_a_host_at_once_but_not_a_run_of_one(monkeypatch):
    ended = []
    monkeypatch.setattr(hosts, "_end", lambda message, code: ended.append((code, message)))

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
    with abort_on_unexpected_error(TrainingError):
        raise OneHostError("step 3 could not be saved")
    assert [code for code, _ in ended] == [EXIT_LOST, 1, 1]
    assert "process 0 of 2 can no longer work with the others" in ended[0][1]
    assert "Connection reset by peer" in ended[0][1]
    assert "KeyError: 'bug'" in ended[1][1]
    assert ended[2][1] == "stopped: step 3 could not be saved"
