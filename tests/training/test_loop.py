import dataclasses
import json
import os
import signal

import pytest

from gnet_jax.config import OptimConfig
from gnet_jax.data import DataError, Example
from gnet_jax.training.checkpoint import Checkpoints, digest
from gnet_jax.training.loop import TrainingError, train
from gnet_jax.training.report import Reporter
from gnet_jax.training.run import Run
from tests.tiny import tiny_run


def final_digest(run: Run, workdir) -> str:
    with Checkpoints(workdir / "checkpoints", keep_latest=2) as checkpoints:
        step = checkpoints.latest
        assert step is not None
        return digest(checkpoints.restore(step, run.abstract_state()))


class Interrupting:
    """A source that sends this process a signal when it is read for the n-th time."""

    def __init__(self, source, reads, number):
        self._source, self._left, self._number = source, reads, number
        self.class_names = source.class_names

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self._number)
        return self._source[index]

    def describe(self, index):
        return f"example {index}"

    def fingerprint(self):
        return self._source.fingerprint()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run of nine steps: (run, workdir, result)."""
    workdir = tmp_path_factory.mktemp("finished")
    run = tiny_run(workdir)
    return run, workdir, train(run, workdir)


def test_a_run_logs_evaluates_and_saves(finished):
    run, workdir, result = finished
    assert result.step == run.total_steps == 9
    assert result.signal is None
    assert result.val["val/count"] == 360
    assert result.best == (9, result.val["val/top1"])
    assert (result.checkpoint / "_CHECKPOINT_METADATA").is_file()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 9, 9]
    assert lines[-1]["val/top1"] == result.val["val/top1"]
    assert {"train/loss", "train/aux4a_top1", "perf/images_per_sec"} <= lines[0].keys()


def test_an_interrupted_run_saves_goes_on_and_ends_with_the_same_bits(finished, tmp_path):
    run, whole_workdir, _ = finished
    changed = dataclasses.replace(run, train=Interrupting(run.train, 4 * 32, signal.SIGTERM))
    stopped = train(changed, tmp_path)
    assert stopped.signal == signal.SIGTERM
    assert 0 < stopped.step < 9
    assert stopped.checkpoint.name == str(stopped.step)
    resumed = train(run, tmp_path)
    assert resumed.step == 9
    assert final_digest(run, tmp_path) == final_digest(run, whole_workdir)
    starts = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, stopped.step]
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(steps)


def test_a_finished_run_does_nothing_again(finished, capsys):
    run, workdir, result = finished
    again = train(run, workdir)
    assert (again.step, again.best, again.val) == (9, result.best, {})
    assert capsys.readouterr().out == ""


def test_signal_handlers_are_put_back(finished):
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_loss_that_is_no_number_stops_the_run_and_is_not_saved(finished, tmp_path):
    # a rate so large that the second step overflows
    run = tiny_run(tmp_path, optim=OptimConfig(learning_rate=1e30, averaging="ema"))
    with pytest.raises(TrainingError, match=r"step \d: the loss is .* lower optim.learning_rate"):
        train(run, tmp_path)
    with Checkpoints(tmp_path / "checkpoints", keep_latest=2) as checkpoints:
        assert checkpoints.latest is None


def test_a_damaged_image_is_named_and_what_was_trained_is_saved(finished, tmp_path):
    run, _, _ = finished

    class Damaged(Interrupting):
        def __getitem__(self, index):
            self._left -= 1
            return Example(b"no image", 0) if self._left < 0 else self._source[index]

    damaged = dataclasses.replace(run, train=Damaged(run.train, 3 * 32, signal.SIGTERM))
    with pytest.raises(DataError, match=r"example \d+ is not an image.*; mend it or take it out"):
        train(damaged, tmp_path)
    with Checkpoints(tmp_path / "checkpoints", keep_latest=2) as checkpoints:
        assert checkpoints.latest is not None


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path, monkeypatch):
    reporter = Reporter(tmp_path, start_step=0, total_steps=9)
    kept = os.dup(1)
    try:
        reporter._console.on_broken_pipe()
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    with reporter:
        reporter.say("unheard")
