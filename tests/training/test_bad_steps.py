import errno
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from gnet_jax.config import Config, DataConfig
from gnet_jax.data.batches import BadRecord
from gnet_jax.data.sources import DataError
from gnet_jax.training.hosts.start import TrainingError
from gnet_jax.training.observe.console import Reporter
from gnet_jax.training.observe.faults import BadImages, SkippedSteps
from gnet_jax.training.workdir import MetricsFile
from tests.tiny import tiny_batch, tiny_run

GOOD = {"skipped": 0.0, "loss": 2.0, "grad_norm": 1.0}
BAD = {"skipped": 1.0, "loss": np.nan, "grad_norm": np.inf}


def stub_run(**changes):
    """A run of 64 images to train on and 20 to validate, without a network."""
    return types.SimpleNamespace(config=Config(**changes), train=range(64), val=range(20))


@pytest.fixture
def reporter(tmp_path):
    with Reporter(tmp_path, start_step=0, total_steps=99) as reporter:
        yield reporter


def test_bad_steps_are_limited_in_a_row_and_counted_in_total(tmp_path, reporter, monkeypatch):
    monkeypatch.setattr(
        "gnet_jax.training.observe.faults.write_replay", lambda *_: tmp_path / "replay"
    )
    skipped = SkippedSteps(stub_run(max_bad_steps=3, batch_size=4), tmp_path, reporter, 0)
    near = []
    for step, metrics in enumerate([BAD, BAD, GOOD, BAD, BAD, GOOD, BAD, BAD], start=1):
        values = skipped.read(step, metrics, {}, None)
        assert values["loss"] == metrics["loss"] or np.isnan(metrics["loss"])
        near.append(skipped.near_limit)
    assert near == [False, True, False, False, True, False, False, True]
    assert skipped.count == 6
    with pytest.raises(TrainingError, match=r"step 9: .*3 in a row"):
        skipped.read(9, BAD, {}, None)
    lines = MetricsFile(tmp_path / "skipped_steps.jsonl").read()
    assert [line["step"] for line in lines] == [1, 2, 4, 5, 7, 8, 9]
    assert (lines[0]["loss"], lines[0]["grad_norm"]) == ("nan", "inf")
    assert len({tuple(line["indices"]) for line in lines}) == 7  # each step's own images


@pytest.mark.parametrize(
    ("loss", "grad_norm", "finite"), [(2.0, 1.0, True), (np.nan, 1.0, False), (2.0, np.inf, False)]
)
def test_a_bad_step_blames_the_parameters_only_if_loss_and_gradient_are_finite(
    tmp_path, reporter, capsys, loss, grad_norm, finite
):
    skipped = SkippedSteps(stub_run(batch_size=4), tmp_path, reporter, 0)
    skipped.read(1, {"skipped": 1.0, "loss": loss, "grad_norm": grad_norm}, {}, None)
    assert ("parameters" in capsys.readouterr().out) == finite


def test_every_host_lists_its_bad_images_in_a_file_of_its_own(tmp_path, reporter, monkeypatch):
    run = stub_run(data=DataConfig(bad_limit=0.5))
    BadImages(run, tmp_path, reporter, 0).train.add(records(1))
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    BadImages(run, tmp_path, reporter, 0).val.add(records(3))
    counts = {file.name: len(MetricsFile(file).read()) for file in tmp_path.glob("bad_*")}
    assert counts == {"bad_records.jsonl": 1, "bad_records-2.jsonl": 3}


def test_a_limit_of_one_is_near_from_the_start(tmp_path, reporter):
    assert SkippedSteps(stub_run(max_bad_steps=1), tmp_path, reporter, 0).near_limit
    assert not SkippedSteps(stub_run(max_bad_steps=2), tmp_path, reporter, 0).near_limit


def test_a_resumed_run_keeps_the_count_up_to_its_step_but_not_the_row(tmp_path, reporter):
    run = stub_run(max_bad_steps=3, batch_size=4)
    skipped = SkippedSteps(run, tmp_path, reporter, 0)
    for step in (4, 5):
        skipped.read(step, BAD, {}, None)
    for start, count in ((5, 2), (4, 1), (3, 0)):
        resumed = SkippedSteps(run, tmp_path, reporter, start)
        assert (resumed.count, resumed.near_limit) == (count, False)


def test_on_a_full_disk_the_error_says_why_there_is_no_replay_file(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, max_bad_steps=1)
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), run.program.abstract_state())

    def full(file, **_):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    after = state.replace(step=state.step + 1)
    with Reporter(tmp_path, start_step=0, total_steps=9) as reporter:
        skipped = SkippedSteps(run, tmp_path, reporter, 0)
        with pytest.raises(TrainingError, match=r"step 1: .*optim\.learning_rate") as raised:
            skipped.read(1, BAD, tiny_batch(32), after)
    assert "No space left on device" in str(raised.value)
    assert "gnet replay" not in str(raised.value)
    assert not list(tmp_path.glob("replay-*"))


def test_messages_name_the_files_of_a_run_in_a_bucket_by_their_place_there(tmp_path, capsys):
    run, place = tiny_run(tmp_path, max_bad_steps=1), Path("bucket/run")
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), run.program.abstract_state())
    after = state.replace(step=state.step + 1)
    with Reporter(tmp_path, start_step=0, total_steps=9, place=place) as reporter:
        skipped = SkippedSteps(run, tmp_path, reporter, 0)
        with pytest.raises(TrainingError, match=r"gnet replay bucket/run/replay-1\.npz"):
            skipped.read(1, BAD, tiny_batch(32), after)
        limited = stub_run(data=DataConfig(bad_limit=0.5))
        BadImages(limited, tmp_path, reporter, 0).report_left_out(1)
    assert (tmp_path / "replay-1.npz").is_file()
    assert "listed in bucket/run/bad_records.jsonl" in capsys.readouterr().out


def records(count):
    return [BadRecord(i, f"{i}.png", "truncated") for i in range(count)]


def test_bad_images_are_listed_by_split_and_step_and_the_first_ten_printed(tmp_path, capsys):
    run = stub_run(data=DataConfig(bad_limit=0.5))
    with Reporter(tmp_path, start_step=0, total_steps=9) as reporter:
        images = BadImages(run, tmp_path, reporter, 0)
        images.step = 3
        images.train.add(records(12))
        images.val.add(records(1))
        images.train.add(records(12))  # known
        images.report_left_out(0)
        images.report_left_out(10)
        with pytest.raises(DataError, match=r"^11 validation images .* allows 10;"):
            images.report_left_out(11)  # of all hosts
    lines = MetricsFile(tmp_path / "bad_records.jsonl").read()
    assert [(line["step"], line["split"], line["index"]) for line in lines] == [
        *((3, "train", i) for i in range(12)),
        (3, "val", 0),
    ]
    printed = capsys.readouterr().out
    assert [printed.count(f"{i}.png") for i in (1, 9, 10, 11)] == [1, 1, 0, 0]
    assert printed.count("bad_records.jsonl") == 3  # further ones, and those left out
    assert (len(images.train), len(images.val)) == (12, 1)


def test_a_resumed_run_keeps_the_bad_images_up_to_its_step(tmp_path):
    run = stub_run(data=DataConfig(bad_limit=3 / 64))
    with Reporter(tmp_path, start_step=0, total_steps=9) as reporter:
        images = BadImages(run, tmp_path, reporter, 0)
        for step in (1, 2, 3):
            images.step = step
            images.train.add(records(step))
        resumed = BadImages(run, tmp_path, reporter, 2)
        assert [record.index for record in resumed.train] == [0, 1]
        assert len(resumed.val) == 0
        resumed.train.add(records(3))
        with pytest.raises(DataError):
            resumed.train.add(records(4))


def test_another_host_counts_skipped_steps_but_writes_no_file(tmp_path, reporter, monkeypatch):
    run = stub_run(max_bad_steps=3, batch_size=4)
    first = SkippedSteps(run, tmp_path, reporter, 0)
    for step in (4, 5):
        first.read(step, BAD, {}, None)
    text = (tmp_path / "skipped_steps.jsonl").read_text()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    other = SkippedSteps(run, tmp_path, reporter, 4)
    assert other.count == 1
    other.read(6, BAD, {}, None)
    assert other.count == 2
    assert (tmp_path / "skipped_steps.jsonl").read_text() == text
