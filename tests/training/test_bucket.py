"""A workdir in a bucket does what one on a disk does."""

import contextlib
import json
import os
import signal
import threading
import time
import urllib.request

import jax
import numpy as np
import pytest

from gnet_jax.cli.main import main
from gnet_jax.config import ConfigError, UserError
from gnet_jax.config import bucket as buckets
from gnet_jax.config.bucket import BucketError, BucketPath, check_local, explain, locate
from gnet_jax.convert.read import read
from gnet_jax.model_folder.folder import write_folder
from gnet_jax.training import bucket as runs
from gnet_jax.training.bucket import BucketFiles, BusyError
from gnet_jax.training.checkpoints import verify
from gnet_jax.training.checkpoints.save import Checkpoints
from gnet_jax.training.checkpoints.verify import SavedSteps, digest, read_verified
from gnet_jax.training.hosts.start import open_shared_workdir
from gnet_jax.training.hosts.supervise import newest_step
from gnet_jax.training.loop import train
from gnet_jax.training.sharding import data_mesh, put_state, replicated
from gnet_jax.training.workdir import MetricsFile, open_workdir, read_starts
from tests.tiny import tiny_run
from tests.training.processes import start


@pytest.fixture
def all_fail(gcs):
    """`all_fail(status)`: until the test ends, every request is answered with this status."""

    def set_status(status):
        address = os.environ["STORAGE_EMULATOR_HOST"]
        urllib.request.urlopen(f"{address}/status/{status}").close()

    yield set_status
    set_status(200)


def state(step):
    arrays = {"step": np.int32(step), "kernel": np.arange(6, dtype=np.float32) + step}
    return put_state(arrays, data_mesh())


def abstract(value):
    whole = replicated(data_mesh())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), value)


def save(folder, steps=(1, 2), top1=None, **options):
    with Checkpoints(folder, keep_latest=2, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step), (top1 or {}).get(step))
            checkpoints.wait()
    return checkpoints


def restore(folder, said=None):
    tell = print if said is None else said.append
    with Checkpoints(folder, keep_latest=2, tell=tell) as checkpoints:
        return checkpoints.restore_latest(abstract(state(0)))


def run_in(workdir, epochs):
    run = tiny_run(workdir, epochs=epochs, save_every_steps=2)
    return train(run, open_shared_workdir(run.config, run.fingerprints()))


@pytest.mark.slow
def test_a_resumed_run_in_a_bucket_has_the_bits_and_logs_of_one_on_a_disk(bucket, tmp_path):
    run_in(bucket, 4 / 45)
    (bucket / "checkpoints/4/commit_success.txt").unlink()  # as if killed during the last save
    resumed, whole = run_in(bucket, 4 / 45), run_in(tmp_path, 4 / 45)
    assert digest(resumed.state) == digest(whole.state)
    assert (resumed.step, resumed.best) == (whole.step, whole.best)
    copy = tmp_path / "copy"
    bucket.download(copy, ["run.json", "metrics.jsonl"])
    assert [start["step"] for start in read_starts(copy)] == [0, 2]
    lines = MetricsFile(copy / "metrics.jsonl").read()
    assert [line["train/loss"] for line in lines if "train/loss" in line] == [
        line["train/loss"]
        for line in MetricsFile(tmp_path / "metrics.jsonl").read()
        if "train/loss" in line
    ]
    names = bucket.names()
    assert any(name.startswith("tensorboard/") for name in names)
    assert "lock" not in names
    assert "config.json" in names
    models = [read(place) for place in (str(bucket), tmp_path)]
    assert digest(models[0].variables) == digest(models[1].variables)


@pytest.mark.slow
def test_two_hosts_share_a_bucket_and_a_second_run_is_refused(bucket, tmp_path):
    """The hosts end with the bits of hosts that share a disk."""
    place, folder = ("--workdir", str(bucket)), tmp_path / "runs"
    endless = ("--epochs", "9000", "--save-every-steps", "3", "--eval-every-epochs", "9000")
    one = start(folder / "one", *endless, *place, processes=2)
    one._until(lambda: newest_step(bucket / "checkpoints") >= 3, 600)
    second = start(folder / "second", *endless, *place)
    assert second.wait() == [2]
    assert f"another process is training in {bucket}" in second.text()
    one.processes[1].send_signal(signal.SIGTERM)
    assert one.wait() == [143, 143]
    step = newest_step(bucket / "checkpoints")
    assert "lock" not in bucket.names()
    disk = start(folder / "disk", *endless, "--save-every-steps", str(step), processes=2)
    disk.wait_for_step(step)
    disk.end()
    saved = [
        read_verified(place / "checkpoints" / str(step)) for place in (bucket, folder / "disk")
    ]
    assert digest(saved[0]) == digest(saved[1])


def test_steps_in_a_bucket_come_back_and_the_newest_and_the_best_are_kept(bucket):
    save(bucket, (1, 2, 3, 4), {1: 0.5, 2: 0.9, 3: 0.1})
    saved = SavedSteps(bucket)
    assert (saved.steps, saved.best, saved.top1) == ([2, 3, 4], 2, {2: 0.9, 3: 0.1})
    assert {name.partition("/")[0] for name in bucket.names()} == {"2", "3", "4"}
    step, found = restore(bucket)
    assert (step, digest(found)) == (4, digest(state(4)))
    assert newest_step(bucket) == 4


def test_top1_can_be_added_to_a_saved_step(bucket):
    with Checkpoints(bucket, keep_latest=2) as checkpoints:
        checkpoints.save(1, state(1))
        checkpoints.save(1, state(1), 0.75)
    assert SavedSteps(bucket).top1 == {1: 0.75}


def test_a_step_without_its_mark_is_deleted_and_never_restored(bucket):
    save(bucket)
    (bucket / "2/commit_success.txt").unlink()  # as if the process was killed during the save
    assert restore(bucket)[0] == 1
    assert not (bucket / "2").names()


@pytest.mark.parametrize("kind", ["missing", "changed"])
def test_a_corrupt_step_is_marked_and_its_number_can_be_saved_again(bucket, kind):
    save(bucket)
    files = [bucket / name for name in bucket.names() if name.startswith("2/state/d/")]
    for file in files:
        file.unlink() if kind == "missing" else file.write_bytes(b"x" + file.read_bytes()[1:])
    said = []
    step, found = restore(bucket, said)
    assert (step, digest(found)) == (1, digest(state(1)))
    assert "checkpoint 2 is corrupt" in said[0]
    assert f"{bucket}/2/damaged.txt" in said[0]
    assert SavedSteps(bucket).steps == [1]
    save(bucket, [2])
    assert digest(restore(bucket)[1]) == digest(state(2))


def test_the_logs_are_saved_before_a_step_counts_as_saved(bucket):
    seen = []
    committed = bucket / "1/commit_success.txt"
    save(bucket, [1], before_commit=lambda: seen.append(committed.is_file()))
    assert seen == [False]
    assert committed.is_file()


def test_a_refused_save_is_a_warning_and_loses_nothing(bucket, all_fail):
    said = []
    with Checkpoints(bucket, keep_latest=2, tell=said.append) as checkpoints:
        checkpoints.save(1, state(1), 0.5)
        checkpoints.wait()
        all_fail(403)
        checkpoints.save(2, state(2), 0.6)
        checkpoints.wait()
        assert "step 2 could not be saved" in said[0]
        assert "no permission" in said[0]
        assert (checkpoints.steps, checkpoints.top1) == ([1], {1: 0.5})
        all_fail(200)
        checkpoints.save(3, state(3))
    assert restore(bucket)[0] == 3


def test_an_unreadable_bucket_is_not_taken_for_corrupt_checkpoints(bucket, all_fail):
    save(bucket)
    all_fail(403)
    for action in (lambda: SavedSteps(bucket), lambda: read_verified(bucket / "2")):
        with pytest.raises(BucketError, match=f"{bucket}.*no permission; log in"):
            action()
    all_fail(200)
    assert restore(bucket)[0] == 2


@pytest.mark.slow
def test_a_server_that_stops_during_a_save_only_delays_it(bucket, gcs):
    save(bucket, [1])
    with Checkpoints(bucket, keep_latest=2) as checkpoints:
        checkpoints.save(2, state(2))
        os.kill(gcs.pid, signal.SIGSTOP)
        threading.Timer(10, os.kill, (gcs.pid, signal.SIGCONT)).start()
        began = time.monotonic()
        checkpoints.wait()
        assert checkpoints.problem is None
        assert time.monotonic() - began > 5
    assert restore(bucket)[0] == 2


def test_files_are_uploaded_when_the_run_ends_and_read_when_it_starts(bucket):
    with BucketFiles(bucket, lock=True) as files:
        (files.folder / "tensorboard").mkdir()
        (files.folder / "tensorboard" / "events").write_bytes(b"1")
        (files.folder / "run.json").write_text("{}")
        (files.folder / "x.partial").write_text("")
    assert not files.folder.exists()
    assert bucket.names() == ["run.json", "tensorboard/events"]
    with BucketFiles(bucket, lock=True) as files:
        assert os.listdir(files.folder) == ["run.json"]


def test_files_are_kept_and_training_continues_if_uploads_fail(bucket, all_fail, monkeypatch):
    said = []
    with BucketFiles(bucket, lock=False) as files:
        files.tell = said.append
        (files.folder / "run.json").write_text("{}")
        all_fail(403)
        assert not files.upload()
        assert not files.upload()
    assert len(said) == 2  # one warning, and where the files are
    assert str(files.folder) in said[-1]
    assert (files.folder / "run.json").is_file()


def test_two_processes_cannot_train_in_one_bucket(bucket, monkeypatch):
    monkeypatch.setattr(runs, "BEAT_SECONDS", 0.2)
    with BucketFiles(bucket, lock=True), pytest.raises(BusyError, match=f"training in {bucket}"):
        BucketFiles(bucket, lock=True).__enter__()
    with BucketFiles(bucket, lock=True):
        pass  # the lock is free again


@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_the_lock_of_a_dead_process_is_taken_over(bucket, place, monkeypatch):
    """At once if it ran on this machine, otherwise when it has not been renewed for a while."""
    where = runs._place() if place == "here" else "another machine"
    dead = {"token": "x", "place": where, "pid": 2**30}
    (bucket / "lock").write_text(json.dumps(dead))
    if place == "elsewhere":
        monkeypatch.setattr(runs, "LEASE_SECONDS", 1.0)
    with BucketFiles(bucket, lock=True) as files:
        assert json.loads((bucket / "lock").read_text())["token"] != "x"
        assert files._lock.renew()
        (bucket / "lock").write_text(json.dumps(dead))  # as if taken over after a long pause
        assert not files._lock.renew()
        (bucket / "lock").unlink()  # as if that process had ended
        assert not files._lock.renew()
        files._lock = None  # its thread would end this process


def test_a_lock_that_cannot_be_read_is_not_one_of_another_process(bucket, all_fail):
    with BucketFiles(bucket, lock=True) as files:
        all_fail(403)
        assert files._lock is not None
        assert files._lock.renew()
        all_fail(200)
    all_fail(403)
    with pytest.raises(BucketError, match="no permission") as raised:
        BucketFiles(bucket, lock=True).__enter__()
    assert raised.value.exit_code == 1  # --supervise tries again


def test_one_of_several_processes_takes_over_the_lock_of_a_dead_one(bucket, monkeypatch):
    monkeypatch.setattr(runs, "LEASE_SECONDS", 1.0)
    (bucket / "lock").write_text(json.dumps({"token": "x", "place": "elsewhere", "pid": 1}))
    locks, taken = [runs._Lock(bucket / "lock") for _ in range(3)], []

    def take(lock):
        with contextlib.suppress(BusyError):
            lock.take(lambda _: None)
            taken.append(lock)

    threads = [threading.Thread(target=take, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    assert taken[0].renew()


def test_a_step_that_cannot_be_read_for_a_moment_is_not_corrupt(bucket, monkeypatch):
    save(bucket, top1={1: 0.9})
    read, fails = BucketPath.read_bytes, [True]

    def failing(path):
        if fails and path.name == "digests.json":
            fails.pop()
            raise BucketError("cannot read it: no permission")
        return read(path)

    monkeypatch.setattr(BucketPath, "read_bytes", failing)
    with pytest.raises(BucketError, match="no permission"):
        restore(bucket)
    assert restore(bucket)[0] == 2
    # The same for an error of TensorStore, which says nothing about the cause.
    usual, errors = verify._read_arrays, [OSError("lost")]

    def reading(*arguments):
        if errors:
            raise errors.pop()
        return usual(*arguments)

    monkeypatch.setattr(verify, "_read_arrays", reading)
    assert sorted(read_verified(bucket / "1")) == ["kernel", "step"]
    assert SavedSteps(bucket).top1 == {1: 0.9}


def test_another_config_is_refused(bucket):
    run = tiny_run(bucket)
    open_workdir(run.config, {"train": "a"})
    with pytest.raises(ConfigError, match=f"cannot resume {bucket}: its data have changed"):
        open_workdir(run.config, {"train": "b"})


def test_a_model_folder_in_a_bucket_is_read(bucket, tmp_path):
    from tests.convert.conftest import small_folder

    model = small_folder()
    write_folder(tmp_path / "model", model)
    for file in (tmp_path / "model").iterdir():
        (bucket / "model" / file.name).write_bytes(file.read_bytes())
    found = read(f"{bucket}/model")
    assert digest(found.variables) == digest(model.variables)
    with pytest.raises(UserError, match=f"{bucket}/none does not exist"):
        read(f"{bucket}/none")


def test_the_marker_of_a_folder_is_not_an_object_in_it(bucket, tmp_path):
    for name in ("config.json", "/", "sub//"):  # as "Create folder" of the console makes them
        (bucket / name).write_text("{}")
    assert bucket.names() == ["config.json"]


def test_a_missing_bucket_is_named(gcs):
    missing = BucketPath("no-such-bucket", "run")
    for action in (missing.names, lambda: missing.write_text("")):
        with pytest.raises(BucketError, match="there is no bucket no-such-bucket"):
            action()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Anonymous caller does not have storage.objects.list access", "log in"),
        ("HttpError: The project exceeded the rate limit, 429", "quota"),
        ("Cannot connect to host storage.googleapis.com:443", "network"),
        ("HttpError, 403", "log in"),
        ("timed out: gs://pod/run/checkpoints/40300/state", "timed out"),
        ("Timeout of gs://pod/run/checkpoints/401/state", "network"),
        ("something else", "something else"),
    ],
)
def test_errors_are_explained_in_one_line(text, reason):
    assert reason in explain(OSError(text))


@pytest.mark.parametrize("path", ["s3://bucket/run", "gs://bucket", "gs:///run", "hdfs://a/b"])
def test_other_urls_are_refused(path):
    with pytest.raises(UserError, match="is not gs://BUCKET/NAME"):
        locate(path)


def test_a_path_keeps_its_meaning_after_pathlib_has_merged_its_slashes():
    assert str(locate(buckets.Path("gs://bucket/a/b"))) == "gs://bucket/a/b"
    assert locate("runs/a") == buckets.Path("runs/a")
    with pytest.raises(UserError, match=r"--out is gs://bucket/a\.png.*local"):
        check_local("--out", buckets.Path("gs://bucket/a.png"))


def test_runs_in_a_bucket_are_listed_and_a_missing_sweep_is_named_by_its_url(bucket, capsys):
    (bucket / "run.json").write_text('{"starts": []}')
    (bucket / "checkpoints/1/digests/digests.json").write_text("not downloaded")
    (bucket / "old_checkpoints/run.json").write_text('{"starts": []}')
    assert main(["runs", str(bucket)]) == 0
    out = capsys.readouterr().out
    assert bucket.key in out
    assert "old_checkpoints" in out
    assert main(["report", str(bucket)]) == 2
    assert f"{bucket} has no sweep" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["curves", "runs/a", "--out", "gs://bucket/a"],
        ["convert", "caffe", "gs://bucket/a"],
        ["prepare", "tfds:mnist", "--data-dir", "gs://bucket/a"],
        ["check-data", "folder:gs://bucket/a"],
        ["check-data", "gs://bucket/a"],
        ["ablate", "ablate_block", "--workdir", "gs://bucket/a"],
    ],
    ids=lambda command: " ".join(command),
)
def test_paths_that_must_be_local_are_refused_in_one_sentence(command, capsys):
    assert main(command) == 2
    assert "gs://bucket/a, but it must be on a local disk; mount" in capsys.readouterr().err
