import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnet_jax.cli.train import run
from gnet_jax.config.command import Launch
from gnet_jax.data.sources import DataError
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.training.hosts import stop
from gnet_jax.training.hosts.stop import FAULT, EvalBatches, StopRequest, TrainBatches, Vote, voting
from gnet_jax.training.loop import Result
from gnet_jax.training.program import prepare
from gnet_jax.training.sharding import data_mesh
from gnet_jax.training.workdir import ACKNOWLEDGE
from tests.tiny import tiny_arch, tiny_config, with_program


class Images:
    """Stands in for `BadImages`."""

    step = 0


def failing(good):
    yield from range(1, good + 1)
    raise DataError("no more")


def test_what_one_device_says_comes_back_to_all():
    mesh = data_mesh()
    step = jax.jit(voting(lambda state, x: (state + 1, {"sum": jnp.sum(x)}), "sum_step"))
    said = np.zeros(8, np.int32)
    said[5] = 15
    assert "@jit_sum_step" in step.lower(0, jnp.ones(3), said).as_text()  # a trace names it so
    (state, metrics), stop = step(0, jnp.ones(3), said)
    vote = Vote(mesh, StopRequest())
    vote.read(7, stop)
    assert (state, metrics) == (1, {"sum": 3.0})
    assert vote.code == 15
    assert [step for step in range(12) if vote.ends(step)] == [8]
    vote.read(8, jnp.int32(FAULT))  # the first one counts
    assert (vote.code, vote.ends(8)) == (15, True)


def test_a_host_says_what_it_has_to_say_on_each_of_its_devices():
    request = StopRequest()
    vote = Vote(data_mesh(), request)
    for fault, number, code in ((None, None, 0), (None, 2, 2), (DataError("x"), 2, FAULT)):
        request.signal = number
        flag = vote.flag(fault)
        assert (flag.shape, flag.dtype) == ((8,), np.int32)
        assert np.asarray(flag).tolist() == [code] * 8


def test_the_host_that_received_the_signal_is_named_on_all_hosts(monkeypatch):
    monkeypatch.setattr(stop, "gather", lambda own: ["node0", "node1", "node2"])
    monkeypatch.setattr(stop.jax, "process_index", lambda: 2)
    request, told, numbers = StopRequest(), [], []
    receiver = Vote(data_mesh(), request)
    monkeypatch.setattr(receiver, "_flag", numbers.append)
    request.signal = signal.SIGTERM
    receiver.flag(None)
    code = jnp.int32(numbers[0])
    for read in (lambda vote: vote.read(7, code), lambda vote: vote.stops_evaluation(code)):
        vote = Vote(data_mesh(), StopRequest(), told.append)
        read(vote)
        assert (vote.signal, vote.reason) == (15, "SIGTERM on host 2 (node2)")
    assert told == ["stopping and saving: SIGTERM on host 2 (node2)"] * 2
    vote = Vote(data_mesh(), StopRequest(), told.append)
    vote.read(7, jnp.int32(FAULT))
    assert (vote.signal, vote.signalled, len(told)) == (None, False, 2)


def test_a_run_of_one_process_names_only_the_signal(capsys):
    vote = Vote(data_mesh(), StopRequest(), print)
    vote.read(7, jnp.int32(signal.SIGINT))
    assert (vote.signal, vote.reason, capsys.readouterr().out) == (2, "SIGINT", "")


def test_a_host_without_a_batch_says_so_two_steps_before():
    images = Images()
    ahead = TrainBatches(
        failing(5), start=10, total=20, bad_images=images
    )  # batches of the steps 11 to 15
    assert images.step == 12
    faults = []
    for step in range(11, 16):
        ahead.take()
        faults.append(ahead.fault is not None)
        assert images.step == min(step + 2, 16)
    assert faults == [False, False, False, True, True]  # steps 14 and 15
    with pytest.raises(DataError, match="no more"):
        ahead.raise_fault()


def test_no_batch_is_loaded_after_the_last_step():
    ahead = TrainBatches(failing(3), start=0, total=3, bad_images=Images())
    assert [ahead.take() for _ in range(3)] == [1, 2, 3]
    ahead.raise_fault()


def test_a_run_without_its_first_batches_does_not_begin():
    with pytest.raises(DataError, match="no more"):
        TrainBatches(failing(1), start=0, total=3, bad_images=Images())


def test_an_evaluation_goes_on_with_empty_batches_after_one_that_cannot_be_had():
    spared = EvalBatches(failing(2), empty="empty", count=4)
    batches, faults = iter(spared), []
    for expected in (1, 2, "empty", "empty"):
        assert next(batches) == expected
        faults.append(spared.fault is not None)
    assert faults == [False, False, True, True]
    assert next(batches, None) is None
    with pytest.raises(DataError, match="no more"):
        spared.raise_fault()


def test_an_evaluation_ends_at_the_first_code_and_a_fault_is_not_a_signal():
    vote = Vote(data_mesh(), StopRequest())
    assert not vote.stops_evaluation(jnp.int32(0))
    assert (vote.code, vote.signalled) == (0, False)
    assert vote.stops_evaluation(jnp.int32(FAULT))
    assert (vote.code, vote.signalled) == (FAULT, False)
    assert vote.stops_evaluation(jnp.int32(15))
    assert not vote.stops_evaluation(jnp.int32(0))
    assert (vote.code, vote.signalled) == (15, True)


def test_the_largest_code_of_all_devices_comes_back_from_a_canonical_step():
    step = voting(lambda state, x: state, "share", manual=True)
    share = jax.vmap(lambda said: step(0, 0, said[None])[1], axis_name="data")
    assert share(jnp.array([0, 2, 15, 0])).tolist() == [15] * 4


@pytest.fixture
def handlers():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, lambda *_: None)
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_first_signal_is_recorded_and_the_second_would_kill(handlers, monkeypatch, capfd):
    usual = [signal.getsignal(number) for number in handlers]
    reads, writes = os.pipe()
    monkeypatch.setenv(ACKNOWLEDGE, str(writes))
    for number in handlers:
        with StopRequest() as request:
            assert request.signal is None
            os.kill(os.getpid(), number)
            assert request.signal == number
            assert [signal.getsignal(each) for each in handlers] == [signal.SIG_DFL] * 3
        assert [signal.getsignal(each) for each in handlers] == usual
    assert os.read(reads, 10) == b"..."  # the supervisor knows of each
    error = capfd.readouterr().err
    assert error.count("second signal") == 3
    assert all(f"{name} received: saving" in error for name in ("SIGINT", "SIGTERM", "SIGHUP"))


def test_sighup_stays_ignored_under_nohup(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as request:
        os.kill(os.getpid(), signal.SIGHUP)
        assert request.signal is None
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize(
    ("code", "expected"), [(None, 0), (signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_run_that_was_stopped_exits_with_128_and_the_signal(
    tmp_path, monkeypatch, capsys, code, expected
):
    result = Result(5, None, code, {}, {}, None, tmp_path / "5", 1.0, {})
    monkeypatch.setattr("gnet_jax.training.program.prepare", tiny_run_of)
    monkeypatch.setattr("gnet_jax.training.loop.train", lambda *_, **__: result)
    monkeypatch.setattr("gnet_jax.training.sharding.use_compilation_cache", lambda: None)
    monkeypatch.setattr("gnet_jax.training.sharding.call_in_this_thread", lambda: None)
    config = tiny_config(tmp_path)
    assert run(config, Launch(distributed="off"), [], "train.py") == expected
    assert ("SIGTERM" in capsys.readouterr().out) == (code == signal.SIGTERM)


def tiny_run_of(config, _):
    return with_program(prepare(config), model=GoogLeNet(tiny_arch()))
