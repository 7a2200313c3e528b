import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnet_jax.data import DataError
from gnet_jax.training.hosts.stop import (
    FAULT,
    EvalBatches,
    StopRequest,
    TrainBatches,
    Vote,
    abstract_flag,
    voting_train_step,
)
from gnet_jax.training.sharding import data_mesh


class Told:
    """What `TrainBatches` tells the count of damaged images."""

    step = 0


def failing(good):
    yield from range(1, good + 1)
    raise DataError("no more")


def test_what_one_device_says_comes_back_to_all():
    mesh = data_mesh()
    step = jax.jit(voting_train_step(lambda state, x: (state + 1, {"sum": jnp.sum(x)})))
    said = np.zeros(8, np.int32)
    said[5] = 15
    state, metrics, stop = step(0, jnp.ones(3), said)
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
    expected = abstract_flag(data_mesh())
    for fault, number, code in ((None, None, 0), (None, 2, 2), (DataError("x"), 2, FAULT)):
        request.signal = number
        flag = vote.flag(fault)
        assert (flag.shape, flag.dtype) == (expected.shape, expected.dtype)
        assert np.asarray(flag).tolist() == [code] * 8


def test_a_host_without_a_batch_says_so_two_steps_before():
    told = Told()
    ahead = TrainBatches(
        failing(5), start=10, total=20, bad_images=told
    )  # batches of the steps 11 to 15
    assert told.step == 12
    faults = []
    for step in range(11, 16):
        ahead.take()
        faults.append(ahead.fault is not None)
        assert told.step == min(step + 2, 16)
    assert faults == [False, False, False, True, True]  # steps 14 and 15
    with pytest.raises(DataError, match="no more"):
        ahead.raise_fault()


def test_no_batch_is_loaded_after_the_last_step():
    ahead = TrainBatches(failing(3), start=0, total=3, bad_images=Told())
    assert [ahead.take() for _ in range(3)] == [1, 2, 3]
    ahead.raise_fault()


def test_a_run_without_its_first_batches_does_not_begin():
    with pytest.raises(DataError, match="no more"):
        TrainBatches(failing(1), start=0, total=3, bad_images=Told())


def test_an_evaluation_goes_on_with_an_empty_batch_where_one_cannot_be_had():
    spared = EvalBatches(failing(2), spare="empty")
    assert list(spared) == [1, 2, "empty"]
    with pytest.raises(DataError, match="no more"):
        spared.raise_fault()
