import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import signal
import types
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnet_jax.config import AugmentConfig, Config, ConfigError, OptimConfig
from gnet_jax.data.batches import batch_indices
from gnet_jax.data.sources import DataError, Example
from gnet_jax.training import evaluation, loop
from gnet_jax.training.checkpoints.save import Checkpoints
from gnet_jax.training.checkpoints.verify import digest
from gnet_jax.training.evaluation import evaluation_due, evaluations_left
from gnet_jax.training.loop import CompiledSteps, TrainingError, train
from gnet_jax.training.observe.console import Reporter
from gnet_jax.training.observe.track import TRACKERS, Track
from gnet_jax.training.program import Program, Run
from gnet_jax.training.workdir import MetricsFile
from tests.tiny import failing_late, tiny_run, with_program

SIGINT_BEFORE = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background


def final_digest(run: Run, workdir) -> str:
    with Checkpoints(workdir / "checkpoints", keep_latest=2) as checkpoints:
        step = checkpoints.latest
        assert step is not None
        return digest(checkpoints.restore(step, run.program.abstract_state()))


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
def steps(tmp_path_factory):
    """The compiled steps of `tiny_run`, for all runs that have the same program."""
    return CompiledSteps(tiny_run(tmp_path_factory.mktemp("steps")).program)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, steps):
    """An uninterrupted run of nine steps: (run, workdir, result)."""
    workdir = tmp_path_factory.mktemp("finished")
    run = tiny_run(workdir)
    return run, workdir, train(run, workdir, steps)


def test_a_run_logs_evaluates_and_saves(finished):
    run, workdir, result = finished
    assert result.step == run.program.total_steps == 9
    assert result.signal is None
    assert result.val["val/count"] == 360
    assert result.best == (9, result.val["val/top1"])
    assert (result.checkpoint / "_CHECKPOINT_METADATA").is_file()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 9, 9]
    assert lines[-1]["val/top1"] == result.val["val/top1"]
    assert {"train/loss", "train/aux4a_top1", "perf/images_per_sec"} <= lines[0].keys()


class Watched:
    """A compiled step that notes its calls, and tries an implicit transfer."""

    def __init__(self, step, events):
        self._step, self._events, self.guarded = step, events, 0

    def __getattr__(self, name):
        return getattr(self._step, name)

    def __call__(self, state, batch, stop):
        self._events.append("step")
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"):
            jnp.sin(np.ones(3, np.float32))
        self.guarded += 1
        return self._step(state, batch, stop)


@pytest.mark.parametrize("waits", [False, True])
def test_a_step_is_reported_after_the_next_is_dispatched_unless_that_waits(
    finished, steps, tmp_path, monkeypatch, waits
):
    run, whole_workdir, _ = finished
    monkeypatch.setattr(loop.sharding, "calls_wait", lambda _: waits)
    events, report = [], Reporter.training
    watched = Watched(steps.train, events)

    def note(reporter, step, values, eta, **options):
        events.append(step)
        report(reporter, step, values, eta, **options)

    monkeypatch.setattr(Reporter, "training", note)
    train(run, tmp_path, types.SimpleNamespace(train=watched, evaluate=steps.evaluate))
    first, two = ["step"] * (2 if waits else 3), ["step"] * 2
    last = ["step", 9] if waits else [9]
    assert events == [*first, 2, *two, 4, *two, 6, *two, 8, *last]
    assert watched.guarded == 9
    logged = [
        [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in read_lines(file)]
        for file in (tmp_path / "metrics.jsonl", whole_workdir / "metrics.jsonl")
    ]
    assert logged[0] == logged[1]
    assert final_digest(run, tmp_path) == final_digest(run, whole_workdir)


def test_each_result_of_an_evaluation_is_fetched_after_the_next_is_dispatched(monkeypatch):
    events = []
    monkeypatch.setattr(evaluation.jax, "device_get", lambda x: events.append(f"fetch {x}") or x)
    results = (events.append(f"dispatch {n}") or n for n in range(3))
    assert list(evaluation._fetch_behind(results)) == [0, 1, 2]
    assert events == ["dispatch 0", "dispatch 1", "fetch 0", "dispatch 2", "fetch 1", "fetch 2"]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(9, [9]), (4, [4, 8, 9]), (3, [3, 6, 9]), (2.5, [3, 5, 8, 9]), (100, [9])],
)
def test_evaluations_are_due_at_every_interval_and_after_the_last_step(steps, expected):
    config = Config(eval_every_epochs=steps / 10)
    program = types.SimpleNamespace(config=config, steps_per_epoch=10, total_steps=9)
    assert [step for step in range(1, 10) if evaluation_due(program, step)] == expected
    left = [sum(each >= step for each in expected) for step in range(1, 10)]
    assert [evaluations_left(program, step) for step in range(1, 10)] == left


def test_a_report_has_speeds_and_the_time_left_with_evaluations(finished):
    run, _, _ = finished
    reporter, skipped = mock.Mock(), mock.Mock(count=4)
    told = mock.Mock()
    loop_ = loop._Loop(run, None, None, reporter, None, skipped, None, None, told)
    meter = types.SimpleNamespace(steps=2, read=lambda: ({"loss": 1.5}, 2.0))
    guard = mock.Mock(read=lambda *_: None)
    for seconds, left in ((None, 10), (7.0, 17)):  # five steps of two seconds, one evaluation
        loop_.evaluation_seconds = seconds
        loop_._report(4, 3, None, meter, guard)
        step, values, eta = reporter.training.call_args.args
        assert (step, eta) == (4, left) == told.call_args.args
        assert reporter.training.call_args.kwargs == {"evaluations": seconds is not None}
    assert values == {
        "train/loss": 1.5,
        "train/skipped_steps": 4,
        "data/bad_records": 3,
        "perf/images_per_sec": 16.0,
        "perf/images_per_sec_per_chip": 2.0,
        "perf/step_ms": 2000.0,
    }


def test_a_report_has_the_mfu_and_the_peak_memory_if_the_device_knows_them(finished):
    run, _, _ = finished
    device = mock.Mock(memory_stats=lambda: {"peak_bytes_in_use": 3 * 10**9})
    mesh = types.SimpleNamespace(size=8, local_devices=[device])
    run = with_program(run, mesh=mesh)
    reporter, skipped = mock.Mock(), mock.Mock(count=0)
    meter = types.SimpleNamespace(steps=2, read=lambda: ({"loss": 1.5}, 2.0))
    parts = (run, None, None, reporter, None, skipped, None, None)
    running = loop._Loop(*parts, peak=40.0)  # images/s of a chip
    running._report(4, 0, None, meter, mock.Mock(read=lambda *_: None))
    values = reporter.training.call_args.args[1]
    assert values["perf/mfu"] == 2.0 / 40.0  # 32 images in two seconds on eight chips
    assert values["perf/memory_gb"] == 3.0


def test_a_report_across_the_change_of_the_image_size_has_no_mfu_and_the_right_time_left(tmp_path):
    run = tiny_run(tmp_path, augment=AugmentConfig(early_size=12, early_share=4 / 9))
    reporter, skipped = mock.Mock(), mock.Mock(count=0)
    running = loop._Loop(run, None, None, reporter, None, skipped, None, None, peak=1e6)
    # Steps 3 to 6: two of 9/16 of the time, and two whole ones, of 4 s.
    meter = types.SimpleNamespace(steps=4, read=lambda: ({"loss": 1.5}, 12.5 / 4))
    running._report(6, 0, None, meter, mock.Mock(read=lambda *_: None))
    _, values, eta = reporter.training.call_args.args
    assert eta == pytest.approx(3 * 4.0)
    assert "perf/mfu" not in values


def test_the_memory_of_the_compiled_step_is_checked_and_tells_what_to_keep(finished, monkeypatch):
    run, _, _ = finished
    check, keep = mock.Mock(), mock.Mock()
    monkeypatch.setattr(loop.sharding, "step_memory", len)
    monkeypatch.setattr(loop.sharding, "check_memory", check)
    monkeypatch.setattr(loop.sharding, "keep_freed_memory", keep)
    steps, reporter = mock.Mock(train="step", early="longer"), mock.Mock()
    reporter.watch.spent = lambda _: contextlib.nullcontext()
    monkeypatch.setattr(Program, "early_steps", 4)  # with smaller images
    for start, needed in ((4, 4), (3, 6)):
        loop._Loop(run, steps, None, reporter, *[None] * 4)._compile(start)
        check.assert_called_with(needed, 32, run.program.mesh)
        keep.assert_called_with(needed)


def test_a_step_that_the_compiler_finds_too_large_is_an_error_of_the_config(finished):
    run, _, _ = finished

    class TooLarge:
        @property
        def train(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 20.25G of 15.75G hbm.")

    reporter = mock.Mock()
    reporter.watch.spent = lambda _: contextlib.nullcontext()
    with pytest.raises(ConfigError, match=r"batch_size 32 does not fit .* Used 20\.25G of 15"):
        loop._Loop(run, TooLarge(), None, reporter, *[None] * 4)._compile(0)


def test_an_interrupted_run_saves_goes_on_and_ends_with_the_same_bits(
    finished, steps, tmp_path, capsys
):
    run, whole_workdir, _ = finished
    changed = dataclasses.replace(run, train=Interrupting(run.train, 4 * 32, signal.SIGTERM))
    stopped = train(changed, tmp_path, steps)
    assert stopped.signal == signal.SIGTERM
    assert 0 < stopped.step < 9
    assert (stopped.checkpoint.name, stopped.best) == (str(stopped.step), None)
    assert stopped.heads.keys() >= {"train/loss", "perf/images_per_sec"}
    capsys.readouterr()
    resumed = train(run, tmp_path, steps)
    assert resumed.step == 9
    output = capsys.readouterr().out
    assert f"resuming after step {stopped.step} of 9" in output
    assert "warning" not in output
    assert final_digest(run, tmp_path) == final_digest(run, whole_workdir)
    starts = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, stopped.step]
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(steps)


def test_the_first_steps_use_smaller_images_also_after_a_resume(tmp_path):
    run = tiny_run(tmp_path, augment=AugmentConfig(early_size=12, early_share=4 / 9))
    compiled, used = CompiledSteps(run.program), []

    def noting(name):
        def step(*inputs):
            used.append(name)
            return getattr(compiled, name)(*inputs)

        step.memory_analysis = getattr(compiled, name).memory_analysis
        return step

    steps = types.SimpleNamespace(
        early=noting("early"), train=noting("train"), evaluate=compiled.evaluate
    )
    (tmp_path / "whole").mkdir()
    train(run, tmp_path / "whole", steps, peak=1e6)
    assert used == ["early"] * 4 + ["train"] * 5
    with_mfu = read_lines(tmp_path / "whole" / "metrics.jsonl")
    assert [x["step"] for x in with_mfu if "perf/mfu" in x] == [6, 8, 9]
    for reads in (2 * 32, 7 * 32):
        used.clear()
        (workdir := tmp_path / str(reads)).mkdir()
        changed = dataclasses.replace(run, train=Interrupting(run.train, reads, signal.SIGTERM))
        stopped = train(changed, workdir, steps)
        train(run, workdir, steps)
        assert 0 < stopped.step < 9
        assert used == ["early"] * 4 + ["train"] * 5
        assert final_digest(run, workdir) == final_digest(run, tmp_path / "whole")


def test_a_signal_cuts_an_evaluation_short_which_is_then_done_on_resume(finished, steps, tmp_path):
    run, whole_workdir, result = finished
    changed = dataclasses.replace(run, val=Interrupting(run.val, 150, signal.SIGTERM))
    stopped = train(changed, tmp_path, steps)
    assert (stopped.signal, stopped.step, stopped.val) == (signal.SIGTERM, 9, {})
    resumed = train(run, tmp_path, steps)
    assert (resumed.signal, resumed.step, resumed.val) == (None, 9, result.val)
    assert resumed.best == result.best
    assert final_digest(run, tmp_path) == final_digest(run, whole_workdir)
    again = train(run, tmp_path, steps)
    assert (again.val, again.best) == ({}, result.best)
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")][-3:] == [8, 9, 9]


def test_an_evaluation_does_not_begin_once_a_signal_is_known(
    finished, steps, tmp_path, monkeypatch
):
    run, _, result = finished
    left, check = [7], Checkpoints.check

    def interrupted(checkpoints):
        left[0] -= 1
        if left[0] == 0:  # rides with step 8, so all know of it when step 9 is to be evaluated
            os.kill(os.getpid(), signal.SIGTERM)
        check(checkpoints)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "check", interrupted)
        patch.setattr(loop, "evaluate", mock.Mock(side_effect=AssertionError))
        stopped = train(run, tmp_path, steps)
    assert (stopped.signal, stopped.step, stopped.val) == (signal.SIGTERM, 9, {})
    resumed = train(run, tmp_path, steps)
    assert (resumed.step, resumed.val, resumed.best) == (9, result.val, result.best)


def test_a_run_saves_diagnoses_and_evaluates_when_due_until_a_signal(
    finished, steps, tmp_path, monkeypatch
):
    """Diagnosed before every step, saved at 2 and 4, evaluated at 3 and 6; a signal at step 5."""
    run, _, _ = finished
    per_epoch = run.program.steps_per_epoch
    changes = {"save_every_steps": 2, "eval_every_epochs": 3 / per_epoch, "diagnose": 1}
    run = with_program(run, config=dataclasses.replace(run.config, **changes))
    diagnosed, evaluated, saved, accounts = [], [], [], []
    save, account, check = Checkpoints.save, Reporter.account, Checkpoints.check

    def diagnose(finished, state, batch):
        diagnosed.append((finished, int(state.step), batch["label"].shape))

    def evaluate(run, step_fn, step, state, **_):
        evaluated.append((step, int(state.step)))
        return {"val/top1": 0.5, "val/top5": 0.9, "val/loss": 1.0, "val/count": 360.0}

    def save_and_note(checkpoints, step, state, top1=None):
        saved.append((step, int(state.step), top1))
        save(checkpoints, step, state, top1)

    def interrupt(checkpoints):
        if len(diagnosed) == 5:  # the code is passed to step 6
            os.kill(os.getpid(), signal.SIGTERM)
        check(checkpoints)

    def note_account(reporter, step):
        accounts.append(step)
        return account(reporter, step)

    monkeypatch.setattr(loop, "Diagnostics", lambda *_: contextlib.nullcontext(diagnose))
    monkeypatch.setattr(loop, "evaluate", evaluate)
    monkeypatch.setattr(Checkpoints, "save", save_and_note)
    monkeypatch.setattr(Checkpoints, "check", interrupt)
    monkeypatch.setattr(Reporter, "account", note_account)
    stopped = train(run, tmp_path, steps)
    assert diagnosed == [(step, step, (32,)) for step in range(6)]
    assert evaluated == [(3, 3)]  # the evaluation after step 6 does not begin
    assert saved == [(2, 2, None), (3, 3, 0.5), (4, 4, None), (6, 6, None)]
    assert accounts == [
        2,
        2,
        3,
        4,
        4,
        6,
        6,
    ]  # with each report, save and evaluation, and at the end
    assert (stopped.step, stopped.best) == (6, (3, 0.5))
    assert stopped.checkpoint == (tmp_path / "checkpoints" / "3").resolve()


def test_a_signal_during_the_last_save_waits_for_it(finished, steps, tmp_path, monkeypatch):
    run, whole_workdir, _ = finished
    unheard, to_send, wait = [], [signal.SIGTERM], Checkpoints.wait

    def interrupted(checkpoints):
        if to_send:
            os.kill(os.getpid(), to_send.pop())
        wait(checkpoints)

    monkeypatch.setattr(Checkpoints, "wait", interrupted)
    before = signal.signal(signal.SIGTERM, lambda *_: unheard.append("by the run"))
    try:
        result = train(run, tmp_path, steps)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert unheard == []
    assert (result.step, result.signal) == (9, None)  # nothing was left to do
    assert final_digest(run, tmp_path) == final_digest(run, whole_workdir)


class BrokenTracker:
    """A tracker that can be opened, and then fails."""

    place = "nowhere"

    def __init__(self, *_):
        pass

    def log(self, *_):
        raise ConnectionError("lost")

    close = log


def test_a_run_is_the_same_with_a_tracker_that_fails(
    finished, steps, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(TRACKERS, "wandb", BrokenTracker)
    run = tiny_run(tmp_path)
    with Track("wandb", tmp_path, {}, print) as track:
        train(run, tmp_path, steps, track=track)
    assert final_digest(run, tmp_path) == final_digest(*finished[:2])
    logs = [MetricsFile(folder / "metrics.jsonl").read() for folder in (tmp_path, finished[1])]
    own, others = ([line["step"] for line in lines] for lines in logs)
    assert own == others
    assert capsys.readouterr().out.count("warning: wandb failed (ConnectionError: lost)") == 1


def test_a_finished_run_does_nothing_again(finished, steps, capsys):
    run, workdir, result = finished
    again = train(run, workdir, steps)
    assert (again.step, again.best, again.val) == (9, result.best, {})
    assert capsys.readouterr().out == ""


def test_steps_to_keep_are_saved_whatever_the_interval_of_saves(tmp_path, steps):
    run = tiny_run(tmp_path, save_every_steps=100, keep_latest=1, keep_every=2)
    train(run, tmp_path, steps)
    with Checkpoints(tmp_path / "checkpoints", keep_latest=1, keep_every=2) as checkpoints:
        assert checkpoints.steps == [2, 4, 6, 8, 9]


def test_the_options_of_the_config_reach_the_checkpoints_and_the_diagnoses(
    finished, tmp_path, monkeypatch
):
    run, workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "run")
    config = dataclasses.replace(run.config, verify_checkpoints=False, keep_latest=3, diagnose=2)
    checkpoints = mock.Mock(wraps=Checkpoints)
    monkeypatch.setattr(loop, "Checkpoints", checkpoints)
    diagnostics = mock.Mock(return_value=contextlib.nullcontext())
    monkeypatch.setattr(loop, "Diagnostics", diagnostics)
    expected = mock.Mock(wraps=loop.abort_on_unexpected_error)
    monkeypatch.setattr(loop, "abort_on_unexpected_error", expected)
    train(with_program(run, config=config), tmp_path / "run", mock.Mock(diagnose="step"))
    (arguments, options), *_ = checkpoints.call_args_list
    assert arguments == (tmp_path / "run" / "checkpoints", 3)
    assert options.pop("watch").committed == 0
    assert options.pop("before_commit")()
    assert options == {"model": run.description(), "verify": False, "keep_every": None}
    assert diagnostics.call_args.args[:4] == (tmp_path / "run", "step", 2, 9)
    expected.assert_called_once_with(TrainingError, last=mock.ANY)
    assert expected.call_args.kwargs["last"]()  # uploads the files of a run in a bucket


def test_a_run_reads_from_its_step_on_and_guards_its_heads_after_the_warm_up(finished, monkeypatch):
    run, _, _ = finished
    optim = dataclasses.replace(run.config.optim, warmup_epochs=0.1)
    run = with_program(run, config=dataclasses.replace(run.config, optim=optim))
    reporter, bad_images, read, ahead = mock.Mock(), mock.Mock(), mock.Mock(), mock.Mock()
    reporter.watch.spent = lambda _: contextlib.nullcontext()
    guard = mock.Mock(side_effect=InterruptedError)
    monkeypatch.setattr(loop, "training_batches", read)
    monkeypatch.setattr(loop, "put_batches", lambda batches, mesh, size: (batches, mesh, size))
    monkeypatch.setattr(loop, "TrainBatches", ahead)
    monkeypatch.setattr(loop, "DeadHeadGuard", guard)
    monkeypatch.setattr(loop._Loop, "_compile", lambda *_: None)
    checkpoints, vote = mock.Mock(top1={}), mock.Mock(code=0)
    running = loop._Loop(run, None, checkpoints, reporter, bad_images, None, vote, None)
    with pytest.raises(InterruptedError):
        running.run_from(3, None)
    place = {"host": 0, "hosts": 1, "start_step": 3}
    read.assert_called_once_with(run.config, run.train, bad=bad_images.train, **place)
    batches = (read.return_value, run.program.mesh, 32)
    ahead.assert_called_once_with(batches, 3, 9, bad_images)
    guard.assert_called_once_with(("main", "aux4a"), 10, warmup=4, patience=200)  # of 44.9 steps


def test_losses_that_are_not_finite_and_heads_to_ignore_are_not_guarded(finished):
    run, _, _ = finished
    for choice, loss, reads in (("warn", 1.5, 1), ("warn", np.nan, 0), ("ignore", 1.5, 0)):
        config, guard = dataclasses.replace(run.config, dead_heads=choice), mock.Mock()
        guard.read.return_value = None
        meter = types.SimpleNamespace(steps=1, read=lambda loss=loss: ({"loss": loss}, 2.0))
        parts = (with_program(run, config=config), None, None, mock.Mock(), None)
        loop._Loop(*parts, mock.Mock(count=0), None, None)._report(4, 0, None, meter, guard)
        assert guard.read.call_args_list == [mock.call(4, {"loss": loss})] * reads


def test_each_step_is_compiled_for_its_inputs(finished, monkeypatch):
    run, _, _ = finished
    compiled = mock.Mock()
    monkeypatch.setattr(loop.sharding, "compile_train_step", compiled)
    monkeypatch.setattr(loop, "compile_eval_step", compiled)
    loss = dataclasses.replace(run.config.loss, aux_weight=0.7)
    for numerics in ("fast", "canonical"):
        config = dataclasses.replace(run.config, numerics=numerics, loss=loss)
        program = with_program(run, config=config).program
        steps, canonical = CompiledSteps(program), numerics == "canonical"
        assert steps.train is steps.train is compiled.return_value
        (mesh, _, state, batch, stop), options = compiled.call_args
        assert (mesh, state, batch) == (
            program.mesh,
            program.abstract_state(),
            program.abstract_batch(),
        )
        assert (stop.shape, stop.dtype) == ((8,), np.int32)
        assert options == {"manual": canonical}
    assert steps.evaluate is compiled.return_value
    assert (compiled.call_args.args[0], compiled.call_args.kwargs) == (program.mesh, {"inputs": 2})
    assert steps.diagnose is compiled.return_value
    mesh, diagnosis = compiled.call_args.args
    assert (mesh, diagnosis.func) == (program.mesh, loop.diagnose)
    augment = diagnosis.keywords.pop("augment")
    assert augment.keywords["num_classes"] == 10
    assert diagnosis.keywords == {
        "model": program.model,
        "optimizer": program.optimizer,
        "loss": loss,
    }


def test_a_run_whose_checkpoints_are_missing_does_not_begin_anew(finished, tmp_path):
    run, workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(ConfigError, match=r"step 9, .*/checkpoints "):
        train(run, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == metrics


def test_the_run_returns_its_final_state_which_is_the_one_it_saved(finished):
    run, workdir, result = finished
    assert int(result.state.step) == 9
    assert 0 < result.seconds < 600
    assert digest(result.state) == final_digest(run, workdir)


def test_the_seed_of_the_config_draws_the_weights_and_the_steps(finished):
    run, _, _ = finished
    states = [
        with_program(run, config=dataclasses.replace(run.config, seed=seed)).program.initial_state()
        for seed in (0, 1)
    ]
    for seed, state in enumerate(states):
        np.testing.assert_array_equal(state.rng, jax.random.PRNGKey(seed))
    kernels = [state.params["classifier"]["kernel"] for state in states]
    assert (kernels[0] != kernels[1]).all()


def test_signal_handlers_are_put_back(finished):
    assert signal.getsignal(signal.SIGINT) is SIGINT_BEFORE


def test_numbers_that_stay_infinite_stop_the_run_at_the_limit_with_a_replay_file(
    finished, tmp_path, capsys
):
    # a rate so large that every step would overflow
    changes = {"optim": OptimConfig(learning_rate=1e30, averaging="ema"), "max_bad_steps": 2}
    run = tiny_run(tmp_path, **changes)
    with pytest.raises(TrainingError, match=r"step 2: .* 2 in a row"):
        train(run, tmp_path)
    with Checkpoints(tmp_path / "checkpoints", keep_latest=2) as checkpoints:
        assert checkpoints.latest is None
    assert "step 1: " in capsys.readouterr().out
    lines = read_lines(tmp_path / "skipped_steps.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    with np.load(tmp_path / "replay-2.npz", allow_pickle=False) as replay:
        assert replay["batch/image"].shape == (32, 16, 16, 3)
        assert replay["state/step"] == 1
        counts = [name for name in replay.files if name.startswith("state/opt_state/")]
        assert [int(replay[name]) for name in counts if name.endswith("/count")] == [1]
        assert replay["indices"].tolist() == lines[1]["indices"]
        initial = digest(run.program.initial_state().params)
        names = [name for name in replay.files if name.startswith("state/params/")]
        found = {name.removeprefix("state/params/"): replay[name] for name in sorted(names)}
    assert digest(found) == initial  # nothing has moved


class Poisoned(Program):
    """A program in which images that are all white have no finite pixels."""

    def train_step(self, size=None):
        step = super().train_step(size)

        def augment(images, labels, key):
            inputs, targets = step.keywords["augment"](images, labels, key)
            white = (images == 255).all(axis=(1, 2, 3), keepdims=True)
            return jnp.where(white, jnp.nan, inputs), targets

        return partial(step, augment=augment)


class White(Interrupting):
    """A source with one white image, of the given index."""

    def __getitem__(self, index):
        example = self._source[index]
        if index != self._left:
            return example
        return Example(np.full((16, 16, 3), 255, np.uint8), example.label)


def test_one_bad_step_is_skipped_and_counted_and_the_run_goes_on(finished, tmp_path, capsys):
    run, _, _ = finished
    index = int(batch_indices(len(run.train), run.config, 5)[7])
    fields = {each.name: getattr(run.program, each.name) for each in dataclasses.fields(Program)}
    poisoned = Run(Poisoned(**fields), White(run.train, index, None), run.val)
    result = train(poisoned, tmp_path)
    assert result.step == 9
    assert result.heads["train/skipped_steps"] == 1
    assert np.isfinite(list(result.heads.values())).all()
    output = capsys.readouterr().out
    assert "warning: step 5: the loss is nan" in output
    assert "(1 in a row, " in output
    (line,) = read_lines(tmp_path / "skipped_steps.jsonl")
    assert line["step"] == 5
    assert line["indices"][7] == index
    with Checkpoints(tmp_path / "checkpoints", keep_latest=2) as checkpoints:
        state = checkpoints.restore(9, run.program.abstract_state())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


class Filling(Interrupting):
    """A source whose reading fills a disk, and later frees it again."""

    def __init__(self, source, disk, full, freed):
        super().__init__(source, full, None)
        self._ballast, self._full, self._freed = disk / "ballast", full, freed
        self._reads = itertools.count(1)  # several threads read

    def __getitem__(self, index):
        read = next(self._reads)
        if read == self._full:
            with contextlib.suppress(OSError), self._ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
        elif read == self._freed:
            self._ballast.unlink()
        return self._source[index]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # see below
def test_a_full_disk_does_not_end_training_and_its_steps_are_logged_later(
    finished, new_disk, capsys
):
    disk = new_disk("16m")
    run = tiny_run(disk / "run", epochs=0.6, save_every_steps=2, keep_latest=1)
    (disk / "run").mkdir()
    filling = Filling(run.train, disk, full=8 * 32, freed=18 * 32)
    result = train(dataclasses.replace(run, train=filling), disk / "run")
    assert result.step == 27
    output = capsys.readouterr().out
    assert "could not be saved (" in output
    steps = [line["step"] for line in read_lines(disk / "run" / "metrics.jsonl")]
    assert sorted(set(steps)) == [*range(2, 27, 2), 27]
    with Checkpoints(disk / "run" / "checkpoints", keep_latest=1) as checkpoints:
        assert checkpoints.latest == 27
        checkpoints.restore(27, run.program.abstract_state())


# Orbax lets go of the writes beside one that fails, and closes the loop that they report to.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_last_save_that_fails_ends_the_run_with_one_sentence(
    finished, steps, tmp_path, monkeypatch
):
    run, _, _ = finished
    full = failing_late(OSError("No space left on device"))
    monkeypatch.setattr("gnet_jax.training.checkpoints.save.write_digests", full)
    with pytest.raises(TrainingError, match=r"step 9 .*No space .* step 0"):
        train(run, tmp_path, steps)


def test_a_damaged_image_is_named_and_what_was_trained_is_saved(finished, steps, tmp_path):
    run, _, _ = finished

    class Damaged(Interrupting):
        def __getitem__(self, index):
            self._left -= 1
            return Example(b"no image", 0) if self._left < 0 else self._source[index]

    # One thread reads in order: three batches are whole, and of the fourth nothing is.
    config = dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, threads=1))
    source = Damaged(run.train, 3 * 32, signal.SIGTERM)
    damaged = dataclasses.replace(with_program(run, config=config), train=source)
    with pytest.raises(DataError, match="29 of 1,437 images"):
        train(damaged, tmp_path, steps)
    with Checkpoints(tmp_path / "checkpoints", keep_latest=2) as checkpoints:
        assert checkpoints.latest == 3


def damaged_run(workdir, source, train_bad=(), val_bad=(), **changes):
    """A tiny run on the digits, of which those with the given indices are damaged."""

    class Damaged:
        def __init__(self, whole, bad):
            self._whole, self._bad = whole, set(bad)
            self.class_names = whole.class_names

        def __len__(self):
            return len(self._whole)

        def __getitem__(self, index):
            example = self._whole[index]
            return Example(b"<html>", example.label) if index in self._bad else example

        def describe(self, index):
            return f"digit {index}"

        def fingerprint(self):
            return self._whole.fingerprint()

    run = tiny_run(workdir, **changes)
    return dataclasses.replace(
        run, train=Damaged(source.train, train_bad), val=Damaged(source.val, val_bad)
    )


def read_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_up_to_the_limit_damaged_images_are_replaced_named_once_and_counted(
    finished, steps, tmp_path, capsys
):
    run, _, _ = finished
    bad = range(0, 288, 20)  # 15 of 288: 5 %
    data = dataclasses.replace(run.config.data, source="digits#288", bad_limit=0.06)
    changes = {"epochs": 1.0, "eval_every_epochs": 0.5, "data": data}
    source = tiny_run(tmp_path, **changes)
    damaged = damaged_run(tmp_path, source, bad, [3, 7, 200], **changes)
    result = train(damaged, tmp_path, steps)
    assert result.step == 9
    assert result.val["val/count"] == 285
    listed = read_lines(tmp_path / "bad_records.jsonl")
    found = {
        split: [d["index"] for d in listed if d["split"] == split] for split in ("train", "val")
    }
    assert sorted(found["train"]) == list(bad)
    assert sorted(found["val"]) == [3, 7, 200]
    assert all(1 <= line["step"] <= 9 and "not an image" in line["reason"] for line in listed)
    output = capsys.readouterr().out
    assert output.count("corrupt image, replaced by the next good one: digit ") == 10
    assert output.count("further corrupt images are listed in") == 1
    assert output.count("corrupt image, left out: digit 7: not an image") == 1
    assert output.count("corrupt images left out: 3, listed in") == 2
    counts = [
        line["data/bad_records"]
        for line in read_lines(tmp_path / "metrics.jsonl")
        if "train/loss" in line
    ]
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1] == 15
    assert result.checkpoint.is_dir()


def test_data_unfit_from_the_first_batch_are_told_before_anything_compiles(
    finished, tmp_path, capsys
):
    run, _, _ = finished
    damaged = damaged_run(tmp_path, run, range(1437))
    with pytest.raises(DataError, match=" of 1,437 images"):
        train(damaged, tmp_path)
    assert "compiling" not in capsys.readouterr().out


def test_above_the_limit_the_run_saves_and_stops_with_the_list_and_can_go_on(
    finished, steps, tmp_path
):
    run, _, _ = finished
    bad = range(0, 1437, 5)  # 288 of 1437: 20 %
    damaged = damaged_run(tmp_path, run, bad)
    with pytest.raises(DataError, match=" of 1,437 images") as caught:
        train(damaged, tmp_path, steps)
    message = str(caught.value).splitlines()
    assert " 28:" in message[0]
    assert int(message[0].split()[0]) > 28
    assert "2.00%" in message[0]
    assert len(message) == 13
    assert all("digit " in line for line in message[1:11])
    listed = read_lines(tmp_path / "bad_records.jsonl")
    assert f"and {len(listed) - 10} more, listed in {tmp_path / 'bad_records.jsonl'}" in message[11]
    with Checkpoints(tmp_path / "checkpoints", keep_latest=2) as checkpoints:
        stopped = checkpoints.latest
    assert stopped == listed[-1]["step"] - 1
    allowed = dataclasses.replace(run.config.data, bad_limit=0.21)
    result = train(damaged_run(tmp_path, run, bad, data=allowed), tmp_path, steps)
    assert result.step == 9
    whole = tmp_path / "whole"
    whole.mkdir()
    train(damaged_run(whole, run, bad, data=allowed), whole, steps)
    assert final_digest(run, tmp_path) == final_digest(run, whole)
    for name in ("bad_records.jsonl", "metrics.jsonl"):  # nor does the log tell of the stop
        keep = ("step", "index", "name", "reason", "data/bad_records", "train/loss")
        lines = [
            [{key: line.get(key) for key in keep} for line in read_lines(folder / name)]
            for folder in (tmp_path, whole)
        ]
        if name == "metrics.jsonl":
            lines = [[line for line in each if line["step"] > stopped + 2] for each in lines]
        assert lines[0] == lines[1]


def test_a_validation_set_above_the_limit_stops_the_run_after_saving(finished, steps, tmp_path):
    run, _, _ = finished
    damaged = damaged_run(tmp_path, run, (), range(8))
    with pytest.raises(DataError, match=r"8 of 360 images .* 7:"):
        train(damaged, tmp_path, steps)
    with Checkpoints(tmp_path / "checkpoints", keep_latest=2) as checkpoints:
        assert checkpoints.latest == 9


def test_a_label_out_of_range_is_an_error_and_not_a_damaged_image(finished, steps, tmp_path):
    run, _, _ = finished
    run.train.class_names, kept = run.train.class_names[:9], run.train.class_names
    try:
        with pytest.raises(DataError, match=r"digit \d+ .* label 9"):
            train(dataclasses.replace(run, val=run.train), tmp_path, steps)
    finally:
        run.train.class_names = kept
    assert not (tmp_path / "bad_records.jsonl").exists()


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
