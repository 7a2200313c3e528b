import contextlib
import dataclasses
import errno
import json
import os
import shutil
import threading
import time
import types
from unittest import mock

import jax
import numpy as np
import pytest

from gnet_jax.config import ConfigError, OptimConfig, UserError
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.training.checkpoints import save as checkpoint
from gnet_jax.training.checkpoints.save import Checkpoints
from gnet_jax.training.checkpoints.storage import PARTIAL
from gnet_jax.training.checkpoints.verify import CorruptError, SavedSteps, digest, read_verified
from gnet_jax.training.hosts import start
from gnet_jax.training.hosts.start import OneHostError, TrainingError
from gnet_jax.training.loop import _Loop
from gnet_jax.training.optimizer import make_optimizer
from gnet_jax.training.sharding import data_mesh, put_state, replicated
from gnet_jax.training.step import create_state
from tests.tiny import failing_late, tiny_arch, tiny_run, tiny_variables


@pytest.fixture(scope="module")
def state():
    optimizer = make_optimizer(OptimConfig(averaging="ema"), 10, 100)
    variables = tiny_variables(GoogLeNet(tiny_arch("batch_norm")))
    return put_state(create_state(variables, optimizer, seed=0), data_mesh())


def abstract(state, devices=8):
    whole = replicated(data_mesh(jax.devices()[:devices]))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), state)


def test_a_state_comes_back_with_the_same_bits_on_any_number_of_devices(state, tmp_path):
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        checkpoints.save(3, state)
    for devices in (1, 8):
        saved = SavedSteps(tmp_path)
        assert saved.latest == 3
        restored = saved.restore(3, abstract(state, devices))
        assert digest(restored) == digest(state)
        assert len(restored.step.sharding.device_set) == devices


def test_the_newest_and_the_best_are_kept(state, tmp_path):
    small = {"step": state.step}
    scores = {1: 0.3, 2: 0.9, 3: None, 4: 0.5, 5: None, 6: 0.6}
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        for step, top1 in scores.items():
            checkpoints.save(step, small, top1)
        checkpoints.save(6, small, 0.1)  # already saved: nothing changes
        checkpoints.wait()
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        assert (checkpoints.latest, checkpoints.best) == (6, 2)
        assert checkpoints.top1 == {2: 0.9, 6: 0.6}
        checkpoints.save(7, small, 0.1)
        checkpoints.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "6", "7"]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_as_many_of_the_newest_are_kept_as_asked_and_the_best_besides(tmp_path, keep):
    with Checkpoints(tmp_path, keep_latest=keep) as checkpoints:
        for step in (10, 20, 30, 40, 50):
            checkpoints.save(step, {"step": np.int32(step)}, 0.5 if step == 10 else None)
        checkpoints.wait()
        assert checkpoints.steps == [10, *(20, 30, 40, 50)[-keep:]]
    assert sorted(map(int, os.listdir(tmp_path))) == checkpoints.steps


def test_every_nth_step_is_kept_for_ever_over_starts(tmp_path):
    def save(steps, **options):
        with Checkpoints(tmp_path, keep_latest=1, **options) as checkpoints:
            for step in steps:
                checkpoints.save(step, {"step": np.int32(step)})
            checkpoints.wait()
            return checkpoints.steps

    assert save((2, 3, 4, 6, 7), keep_every=3) == [3, 6, 7]
    assert save((8, 9, 10), keep_every=3) == [3, 6, 9, 10]
    assert save((11,)) == [11]  # a start without the option keeps the newest alone


def test_a_step_counts_as_committed_once_it_is_on_disk(tmp_path):
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        checkpoints.save(1, {"step": np.int32(1)})
        assert (checkpoints.watch.committed, checkpoints.steps) == (0, [])
        checkpoints.wait()
        assert (checkpoints.watch.committed, checkpoints.steps) == (1, [1])
        record = checkpoints.watch.record(1)
    assert list(record["seconds_at_save"]) == ["1"]
    assert record["seconds"]["saving"] > 0


def test_what_changes_in_a_state_after_save_returns_is_not_saved(tmp_path, monkeypatch):
    changed, write = threading.Event(), checkpoint.write_digests
    monkeypatch.setattr(checkpoint, "write_digests", lambda *a: (changed.wait(10), write(*a)))
    kernel = np.arange(6, dtype=np.float32)
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        checkpoints.save(1, {"kernel": kernel})
        kernel += 1  # as the next step overwrites a donated state
        changed.set()
        checkpoints.wait()
        assert checkpoints.problem is None
    np.testing.assert_array_equal(read_verified(tmp_path / "1")["kernel"], np.arange(6))


def test_of_equal_accuracies_the_newest_is_the_best(tmp_path):
    with Checkpoints(tmp_path, keep_latest=3) as checkpoints:
        for step, top1 in ((1, 0.5), (2, 0.7), (3, 0.7), (4, 0.0)):
            checkpoints.save(step, {"step": np.int32(step)}, top1)
        checkpoints.wait()
        assert checkpoints.best == 3
        assert checkpoints.top1[4] == 0.0  # an accuracy, although it is zero


def test_the_best_step_has_the_highest_top1_whatever_its_loss(tmp_path, monkeypatch):
    run, checkpoints, reporter = tiny_run(tmp_path), mock.Mock(), mock.Mock()
    reporter.watch.spent = lambda _: contextlib.nullcontext()
    loop = _Loop(run, mock.Mock(), checkpoints, reporter, *[mock.Mock()] * 4)
    state = mock.Mock(average=None)
    checkpoints.top1 = {3: 0.45, 5: 0.4}  # from earlier starts
    scores = {9: (0.44, 2.0), 1: (0.5, 2.0), 2: (0.7, 3.0), 3: (0.6, 1.0), 4: (0.7, 4.0)}
    for step, (top1, loss) in scores.items():
        values = {"val/top1": top1, "val/top5": 0.9, "val/loss": loss, "val/count": 10.0}
        monkeypatch.setattr("gnet_jax.training.loop.evaluate", lambda *_, v=values, **__: v)
        if step == 9:
            assert loop.run_from(9, state) is state  # evaluates the last step, after a resume
        else:
            assert loop._evaluate(step, state)
    best = [call.args[2] for call in reporter.evaluation.call_args_list]
    assert best == [False, True, True, False, True]
    assert 0 <= loop.evaluation_seconds < 60
    saved = [call.args for call in checkpoints.save.call_args_list]
    assert saved == [(step, state, top1) for step, (top1, _) in scores.items()]


def test_the_first_evaluation_is_the_best_whatever_it_finds_and_its_time_does_not_count(
    tmp_path, monkeypatch
):
    run, checkpoints, reporter = tiny_run(tmp_path), mock.Mock(top1={}), mock.Mock()
    reporter.watch.spent = lambda _: contextlib.nullcontext()
    loop = _Loop(run, mock.Mock(), checkpoints, reporter, *[mock.Mock()] * 4)
    values = {"val/top1": 0.0, "val/top5": 0.0, "val/loss": 9.0, "val/count": 10.0}
    monkeypatch.setattr("gnet_jax.training.loop.evaluate", lambda *_, **__: values)
    loop.run_from(9, mock.Mock(average=None))
    assert reporter.evaluation.call_args.args == (9, values, True)
    assert loop.evaluation_seconds is None  # it compiles


def test_a_step_that_was_saved_before_it_was_evaluated_may_become_the_best(tmp_path):
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        checkpoints.save(1, small(1), 0.5)
        checkpoints.save(2, small(2))
        checkpoints.save(2, small(2), 0.9)
        checkpoints.save(3, small(3))
        checkpoints.wait()
        assert (checkpoints.steps, checkpoints.best) == ([2, 3], 2)
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        assert checkpoints.top1 == {2: 0.9}


def test_an_accuracy_that_cannot_be_noted_is_told(tmp_path):
    said: list[str] = []
    with Checkpoints(tmp_path, keep_latest=1, tell=said.append) as checkpoints:
        checkpoints.save(1, small(1))
        checkpoints.wait()
        (tmp_path / "1" / "digests" / "digests.json").unlink()
        checkpoints.save(1, small(1), 0.9)
    assert len(said) == 1
    assert "top-1" in said[0]
    assert "digests.json" in said[0]


def test_an_empty_folder_has_no_step(tmp_path):
    with Checkpoints(tmp_path / "new", keep_latest=1) as checkpoints:
        assert checkpoints.latest is None
        assert checkpoints.best is None


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    for function in ("listdir", "scandir"):
        monkeypatch.setattr(os, function, denied)
    with pytest.raises(ConfigError, match=f"{tmp_path}.*{os.strerror(errno.EACCES)}"):
        Checkpoints(tmp_path, keep_latest=1)


def test_a_state_of_another_shape_dtype_or_tree_is_refused_by_name(state, tmp_path):
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        wanted = abstract(state)

        def but(**changes):
            return dataclasses.replace(wanted, **changes)

        scalar = jax.ShapeDtypeStruct((), np.float32, sharding=replicated(data_mesh()))
        with pytest.raises(ConfigError, match=r": step is .*int32.* there, but .*float32.* in"):
            checkpoints.restore(1, but(step=scalar))
        unbiased = dict(wanted.params, classifier={"kernel": wanted.params["classifier"]["kernel"]})
        with pytest.raises(ConfigError, match=r"classifier/bias is .* there, but absent in"):
            checkpoints.restore(1, but(params=unbiased))
        with pytest.raises(ConfigError, match="params/more is absent there"):
            checkpoints.restore(1, but(params=dict(wanted.params, more=scalar)))


def test_the_digest_tells_bits_dtypes_and_names_apart(state):
    tree = {"a": np.zeros(3, np.float32)}
    flipped = {"a": np.array([0, -0.0, 0], np.float32)}
    assert digest(tree) == digest({"a": np.zeros(3, np.float32)})
    others = [flipped, {"b": tree["a"]}, {"a": np.zeros(3, np.int32)}, {"a": np.zeros((3, 1), "f")}]
    assert len({digest(other) for other in [tree, *others]}) == 5


def test_a_corrupt_checkpoint_is_named(tmp_path):
    save_small(tmp_path, 1, 2)
    (tmp_path / "2" / "state" / "manifest.ocdbt").unlink()
    with pytest.raises(CorruptError, match=str(tmp_path / "2")):
        SavedSteps(tmp_path).restore(2, abstract(small(2)))
    with pytest.raises(CorruptError, match=str(tmp_path / "2")):
        read_verified(tmp_path / "2")
    assert (tmp_path / "2").is_dir()  # reading renames nothing


def test_folders_that_are_no_steps_are_left_alone(tmp_path):
    save_small(tmp_path, 1)
    others = ["07", "\u00b2", "\u0663", "notes"]
    for name in others:
        (tmp_path / name).mkdir()
    assert SavedSteps(tmp_path).steps == [1]
    said = []
    save_small(tmp_path, 8, tell=said.append)
    assert restored(tmp_path, said) == (8, 8)
    assert not said
    assert all((tmp_path / name).is_dir() for name in others)


SMALL = {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4), "zeros": np.zeros(5, np.int32)}


def small(step):
    return {**SMALL, "step": np.int32(step)}


def save_small(folder, *steps, **options):
    with Checkpoints(folder, keep_latest=3, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, small(step))


def restored(folder, said):
    with Checkpoints(folder, keep_latest=3, tell=said.append) as checkpoints:
        found = checkpoints.restore_latest(abstract(small(0)))
        return found and (found[0], int(found[1]["step"]))


def flip_a_bit_of_the_largest_file(folder):
    # Of those that are read: Orbax leaves some beside them that nobody needs any more.
    file = max((folder / "state" / "d").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


def test_damaged_steps_are_put_aside_and_named_and_the_newest_good_one_is_restored(tmp_path):
    save_small(tmp_path, 1, 2, 3)
    (tmp_path / "3" / "digests" / "digests.json").unlink()
    flip_a_bit_of_the_largest_file(tmp_path / "2")
    said = []
    assert restored(tmp_path, said) == (1, 1)
    assert len(said) == 2
    for text, step in zip(said, (3, 2), strict=True):
        assert f"checkpoint {step}" in text
        assert str(tmp_path / f"{step}.damaged") in text
    assert "digests.json" in said[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2.damaged", "3.damaged"]
    save_small(tmp_path, 2)
    flip_a_bit_of_the_largest_file(tmp_path / "2")
    assert restored(tmp_path, []) == (1, 1)
    assert (tmp_path / "2.damaged-2").is_dir()


def test_a_folder_named_over_its_parent_is_restored(tmp_path):
    (tmp_path / "beside").mkdir()
    save_small(tmp_path / "beside" / ".." / "run", 1)
    assert restored(tmp_path / "beside" / ".." / "run", []) == (1, 1)


def test_a_file_that_cannot_be_opened_is_not_taken_for_damage(tmp_path, monkeypatch):
    save_small(tmp_path, 1, 2)
    digests = tmp_path / "2" / "digests" / "digests.json"

    usual = open

    def refusing(path, *arguments, **options):
        if str(path) == str(digests):
            raise OSError(errno.EACCES, "Permission denied", str(path))
        return usual(path, *arguments, **options)

    for name in ("io.open", "builtins.open"):
        monkeypatch.setattr(name, refusing)
    for read in (lambda: restored(tmp_path, []), lambda: read_verified(tmp_path / "2")):
        with pytest.raises(ConfigError, match=r"digests.json .*Permission denied") as raised:
            read()
        assert not isinstance(raised.value, CorruptError)
    monkeypatch.undo()
    assert restored(tmp_path, []) == (2, 2)


def test_nothing_undamaged_is_a_clear_stop_also_the_second_time(tmp_path):
    save_small(tmp_path, 1)
    (tmp_path / "1" / "state" / "manifest.ocdbt").write_bytes(b"\0" * 100)
    for _ in range(2):
        with pytest.raises(ConfigError, match=str(tmp_path)):
            restored(tmp_path, [])
    assert restored(tmp_path / "new", []) is None


def test_missing_data_that_orbax_reads_as_zeros_are_noticed(tmp_path):
    save_small(tmp_path, 1, 2)
    digests = tmp_path / "2" / "digests" / "digests.json"
    digests.write_text((tmp_path / "1" / "digests" / "digests.json").read_text())
    said = []
    assert restored(tmp_path, said) == (1, 1)  # `step` differs, and nothing else
    assert "the bits of step differ" in said[0]


def test_what_keeps_one_host_from_restoring_is_told_to_all(tmp_path, monkeypatch):
    save_small(tmp_path, 1)
    flip_a_bit_of_the_largest_file(tmp_path / "1")
    told, others = [], []
    monkeypatch.setattr(start, "gather", lambda own: [told.append(own) or own, *others])
    refused = mock.Mock(side_effect=OSError(errno.EACCES, "Permission denied"))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Path, "rename", refused)
        with pytest.raises(ConfigError, match="cannot be renamed"):
            restored(tmp_path, [])
    assert "checkpoint 1 is corrupt and cannot be renamed" in told[-1]
    others.append("2 checkpoint 1 is corrupt")
    with pytest.raises(UserError, match="host 1 stopped: checkpoint 1 is corrupt"):
        restored(tmp_path / "new", [])


def test_the_first_host_says_which_steps_there_are(tmp_path, monkeypatch):
    save_small(tmp_path, 1, 2)
    told = json.dumps([2, [2], [[2, 0.5]]])
    monkeypatch.setattr(checkpoint, "gather", lambda own: [told, own])
    with Checkpoints(tmp_path, keep_latest=3) as checkpoints:
        assert checkpoints.steps == [1, 2]
        found = checkpoints.restore_latest(abstract(small(0)))
        assert found is not None
        assert found[0] == 2
        assert (checkpoints.steps, checkpoints.top1) == ([2], {2: 0.5})


def test_what_is_saved_is_remembered_whatever_a_listing_shows(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        monkeypatch.setattr(Checkpoints, "_list", lambda self: None)  # it lags behind
        for step, top1 in {1: 0.5, 2: 0.9, 3: None, 4: 0.7, 5: None}.items():
            checkpoints.save(step, small(step), top1)
        checkpoints.wait()
        assert (checkpoints.steps, checkpoints.top1) == ([2, 4, 5], {2: 0.9, 4: 0.7})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4", "5"]


def test_a_save_that_fails_on_several_hosts_ends_them_alike_or_is_marked_as_lone(
    tmp_path, monkeypatch
):
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints, monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        others = ["2 the disk is full: 2.0 MB are needed, 1.0 free"]
        patch.setattr(start, "gather", lambda own: [own, *others])
        with pytest.raises(TrainingError, match="host 1 stopped: the disk is full") as all_of:
            checkpoints.save(1, small(1))
        assert not isinstance(all_of.value, OneHostError)
        others.clear()
        lost = mock.Mock(side_effect=OSError("lost"))
        patch.setattr(checkpoints._orbax, "save", lost)
        with pytest.raises(OneHostError, match=r"step 2 could not be saved \(lost\)"):
            checkpoints.save(2, small(2))


# Orbax lets go of the writes beside one that fails, and closes the loop that they report to.
orphans = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@orphans
def test_a_failed_save_is_told_and_counted_and_the_next_one_succeeds(tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    said = []
    with Checkpoints(tmp_path, keep_latest=1, tell=said.append) as checkpoints:
        checkpoints.save(1, small(1), 0.5)
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr("gnet_jax.training.checkpoints.save.write_digests", failing_late(full))
            for step in (2, 3):
                checkpoints.save(step, small(step), 0.9)
                checkpoints.wait()
                assert checkpoints.problem is not None
                assert (checkpoints.steps, checkpoints.best) == ([1], 1)
        assert len(said) == 2
        assert "step 2 could not be saved ([Errno 28] No space left on device)" in said[0]
        assert "step 1 is the latest" in said[0]
        checkpoints.save(4, small(4))
        checkpoints.wait()
        assert checkpoints.problem is None
    steps = sorted(path.name for path in tmp_path.iterdir() if path.name.isdecimal())
    assert steps == ["1", "4"]  # the best, the newest
    assert restored(tmp_path, []) == (4, 4)


def test_a_failed_save_deletes_files_until_half_a_second_has_none(tmp_path, monkeypatch):
    found = iter([True, False, True] + 20 * [False])
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    with Checkpoints(tmp_path, keep_latest=1, tell=lambda _: None) as checkpoints:
        monkeypatch.setattr(checkpoints.storage, "delete_partial", lambda: next(found))
        checkpoints._fail(2, OSError("lost"), on_all_hosts=True)
        assert len(list(found)) == 23 - 13  # ten in a row after the last file
    assert sum(slept) >= 0.5


@orphans
def test_a_save_that_fails_at_the_end_is_told_and_no_thread_stays(tmp_path, monkeypatch):
    lost = failing_late(OSError("lost"))
    monkeypatch.setattr("gnet_jax.training.checkpoints.save.write_digests", lost)
    said = []
    with Checkpoints(tmp_path, keep_latest=1, tell=said.append) as checkpoints:
        checkpoints.save(1, small(1))
        close = mock.Mock(wraps=checkpoints._orbax.close)
        monkeypatch.setattr(checkpoints._orbax, "close", close)
    assert len(said) == 1
    close.assert_called_once_with()
    with pytest.raises(RuntimeError, match="shutdown"):
        checkpoints._background.submit(print)


def test_an_older_step_that_a_user_has_deleted_is_no_problem(tmp_path, capsys):
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        checkpoints.save(1, small(1))
        checkpoints.wait()
        shutil.rmtree(tmp_path / "1")
        checkpoints.save(2, small(2))
        checkpoints.wait()
        assert (checkpoints.problem, checkpoints.steps) == (None, [2])
    assert capsys.readouterr().err == ""


def test_a_host_whose_save_failed_does_not_wait_for_the_others(monkeypatch):
    waited, raised = [], []
    monkeypatch.setattr(
        checkpoint.ocp.multihost, "get_barrier_sync_fn", lambda: lambda **k: waited.append(k)
    )
    checkpoint._barrier(key="a", timeout_ms=5)
    assert waited == [{"key": "a", "timeout_ms": 5}]

    def fail():
        try:
            raise OSError("lost")
        except OSError:
            checkpoint._barrier(key="b", timeout_ms=5)

    def fail_in_thread():
        try:
            fail()
        except OSError as error:
            raised.append(str(error))

    fail()  # the main thread waits, because it is about to raise the error itself
    thread = threading.Thread(target=fail_in_thread)
    thread.start()
    thread.join()
    assert (len(waited), raised) == (2, ["lost"])


@orphans
def test_an_error_in_the_background_is_told_by_the_next_check(tmp_path, monkeypatch):
    lost = failing_late(OSError("lost"))
    monkeypatch.setattr("gnet_jax.training.checkpoints.save.write_digests", lost)
    said = []
    with Checkpoints(tmp_path, keep_latest=1, tell=said.append) as checkpoints:
        checkpoints.save(1, small(1))
        deadline = time.monotonic() + 60
        while not said and time.monotonic() < deadline:
            checkpoints.check()
            time.sleep(0.01)
        assert len(said) == 1
        assert "step 1 could not be saved (lost)" in said[0]


def test_a_full_disk_leaves_older_steps_and_saving_goes_on_once_it_has_room(new_disk):
    small_disk = new_disk("1m")
    folder, said = small_disk / "checkpoints", []
    large = {"kernel": np.random.default_rng(0).normal(size=30_000).astype(np.float32)}
    with Checkpoints(folder, keep_latest=2, tell=said.append) as checkpoints:
        checkpoints.save(1, large)
        checkpoints.wait()
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 50_000))
        checkpoints.save(2, large)
        assert checkpoints.steps == [1]
        assert "the disk is full: 0.1 MB are needed, 0.0 free" in said[0]
        ballast.unlink()
        checkpoints.save(3, large)
        checkpoints.wait()
        assert checkpoints.steps == [1, 3]
        kept = checkpoints.restore(1, abstract(large))
    assert digest(kept) == digest(large)


def test_a_disk_that_reports_no_size_is_not_full(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(total=0, free=0))
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        checkpoints.storage.prepare(1, 12 * 4 + 5 * 4 + 4)
        needed = 12 * 4 + 5 * 4 + 4
        disk = types.SimpleNamespace(total=1, free=needed)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
        checkpoints.storage.prepare(1, 12 * 4 + 5 * 4 + 4)
        disk.free -= 1
        with pytest.raises(UserError, match="full"):
            checkpoints.storage.prepare(1, 12 * 4 + 5 * 4 + 4)


def damaging(monkeypatch, damage):
    """Let `damage` at every step between its commit and its verification."""
    usual = checkpoint.read_verified

    def read(folder, *arguments):
        damage(folder)
        return usual(folder, *arguments)

    monkeypatch.setattr(checkpoint, "read_verified", read)


DAMAGES = {
    "a bit": flip_a_bit_of_the_largest_file,
    "the manifest": lambda folder: (folder / "state" / "manifest.ocdbt").unlink(),
    "the digests": lambda folder: (folder / "digests" / "digests.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_step_that_reads_back_damaged_is_put_aside_and_older_steps_stay(
    tmp_path, monkeypatch, damage
):
    said = []
    with Checkpoints(tmp_path, keep_latest=1, tell=said.append) as checkpoints:
        checkpoints.save(1, small(1), 0.5)
        checkpoints.wait()
        with monkeypatch.context() as patch:
            damaging(patch, damage)
            checkpoints.save(2, small(2), 0.9)
            checkpoints.wait()
        assert (checkpoints.steps, checkpoints.best) == ([1], 1)
        assert checkpoints.problem is not None
        assert "step 2 could not be saved" in said[0]
        assert str(tmp_path / "2.damaged") in said[0]
        checkpoints.save(2, small(2))  # the next save tries again
        checkpoints.wait()
        assert (checkpoints.problem, checkpoints.steps) == (None, [1, 2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "2.damaged"]
    assert restored(tmp_path, []) == (2, 2)


def test_without_verification_a_step_is_not_read_back(tmp_path, monkeypatch):
    damaging(monkeypatch, flip_a_bit_of_the_largest_file)
    with Checkpoints(tmp_path, keep_latest=1, verify=False) as checkpoints:
        checkpoints.save(1, small(1))
        checkpoints.wait()
        assert checkpoints.steps == [1]


def test_on_several_hosts_a_step_that_reads_back_damaged_ends_the_one_that_read_it(
    tmp_path, monkeypatch
):
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints, monkeypatch.context() as patch:
        damaging(patch, flip_a_bit_of_the_largest_file)
        checkpoints.save(1, small(1))
        checkpoints._background.submit(lambda: None).result()  # that thread has read step 1 before
        patch.setattr(jax, "process_count", lambda: 2)
        with pytest.raises(OneHostError, match=r"step 1 could not be saved .*1\.damaged"):
            checkpoints.wait()


def test_older_steps_are_deleted_only_once_the_new_one_is_verified(tmp_path, monkeypatch):
    seen = []
    damaging(monkeypatch, lambda folder: seen.append(sorted(os.listdir(folder.parent))))
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, small(step))
    assert seen == [["1"], ["1", "2"], ["2", "3"]]
    assert os.listdir(tmp_path) == ["3"]


def test_what_a_kill_left_of_a_deleted_step_is_removed(tmp_path):
    save_small(tmp_path, 1, 2)
    (tmp_path / "1").rename(tmp_path / f"1{PARTIAL}")
    assert restored(tmp_path, []) == (2, 2)
    assert os.listdir(tmp_path) == ["2"]
