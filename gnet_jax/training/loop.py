"""The training loop: step, report, evaluate, save, and stop when asked."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from gnet_jax.config import UserError
from gnet_jax.config.bucket import Place
from gnet_jax.training import sharding
from gnet_jax.training.checkpoints.save import Checkpoints
from gnet_jax.training.evaluation import evaluate, evaluation_due, evaluations_left
from gnet_jax.training.hosts.log import end_log, host_log
from gnet_jax.training.hosts.start import TrainingError, abort_on_unexpected_error, run_on_all_hosts
from gnet_jax.training.hosts.stop import StopRequest, TrainBatches, Vote, voting
from gnet_jax.training.observe.console import Meter, Reporter, Stopwatch, duration
from gnet_jax.training.observe.diagnostics import Diagnostics, diagnose
from gnet_jax.training.observe.faults import (
    BadImages,
    DeadHeadGuard,
    SkippedSteps,
    default_patience,
)
from gnet_jax.training.observe.profile import Profiler
from gnet_jax.training.observe.track import Track
from gnet_jax.training.optimizer import averaging_warning
from gnet_jax.training.program import Program, Run, augmentation, training_batches
from gnet_jax.training.sharding import compile_eval_step, put_batches
from gnet_jax.training.step import TrainState, head_names
from gnet_jax.training.workdir import add_start, check_not_lost, open_files


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a run."""

    step: int
    state: TrainState  # after that step
    signal: int | None  # number of the signal, sent to any host, that stopped the run early
    val: dict[str, float]  # metrics of the last evaluation; empty if there was none
    heads: dict[str, float]  # the last reported training metrics
    best: tuple[int, float] | None  # step and top-1 of the best evaluation whose checkpoint is kept
    checkpoint: Place
    seconds: float
    goodput: dict[str, float]  # seconds by activity, over all starts
    stopped_by: str | None = None  # name of the signal, and which of several hosts received it


class CompiledSteps:
    """Compiles the programs of a run at first use; runs with other seeds can share them."""

    def __init__(self, program: Program) -> None:
        self._program = program

    @cached_property
    def train(self) -> jax.stages.Compiled:
        """The step `(state, batch, stop) -> ((state, metrics), stop)`, which donates the state."""
        return self._compile(None)

    @cached_property
    def early(self) -> jax.stages.Compiled:
        """The same for the first steps, whose images are smaller."""
        return self._compile(self._program.config.augment.early_size)

    def _compile(self, size: int | None) -> jax.stages.Compiled:
        program, manual = self._program, self._program.canonical
        # The scopes of a program in the cache may be those of an earlier version of this package.
        key = "jax_compilation_cache_include_metadata_in_key"
        jax.config.update(key, bool(program.config.profile))
        name = "train_step" if size is None else "early_step"
        step = voting(program.train_step(size), name, manual=manual)
        stop = jax.ShapeDtypeStruct((program.mesh.size,), np.int32)
        inputs = program.abstract_state(), program.abstract_batch(), stop
        return sharding.compile_train_step(program.mesh, step, *inputs, manual=manual)

    @cached_property
    def evaluate(self) -> Callable[..., Any]:
        """A `voting` evaluation step `(state, batch, stop) -> (sums, stop)`."""
        step = voting(self._program.eval_step(), "eval_step")
        return compile_eval_step(self._program.mesh, step, inputs=2)

    @cached_property
    def diagnose(self) -> Callable[..., Any]:
        """The diagnosis `(state, batch) -> diagnostics`."""
        program, config = self._program, self._program.config
        options = {"optimizer": program.optimizer, "loss": config.loss, "model": program.model}

        def compiled(size: int | None) -> Callable[..., Any]:
            augment = augmentation(config, program.model.arch.num_classes, size)
            return compile_eval_step(program.mesh, partial(diagnose, augment=augment, **options))

        full, steps = compiled(None), program.early_steps
        if not steps:
            return full
        early = compiled(config.augment.early_size)
        return lambda state, batch: (early if state.step < steps else full)(state, batch)


def train(
    run: Run,
    workdir: Place,
    steps: CompiledSteps | None = None,
    request: StopRequest | None = None,
    on_report: Callable[[int, float], None] = lambda step, eta: None,
    track: Track | None = None,
    peak: float | None = None,
) -> Result:
    """Train from the latest checkpoint in `workdir`, or from scratch, to the run's last step.

    Call `open_workdir` first. Stops if `request`, by default its own, has received a signal.
    Whenever metrics are logged, sends them to `track`, and calls `on_report` with the step and the
    estimated seconds until the end of the run. `peak` is the images/s of a chip whose arithmetic
    units are never idle; with it, the log has the MFU. Raises a TrainingError if the validation
    loss is not finite, if too many steps in a row are not finite, or if the last save failed.
    Raises a UserError, after saving, if the main head does not learn and `dead_heads` is "stop",
    if too many images are corrupt, or if a label is out of range.
    """
    config, program, total = run.config, run.program, run.program.total_steps
    began, watch, main = time.perf_counter(), Stopwatch(), jax.process_index() == 0
    steps = steps or CompiledSteps(program)
    with contextlib.ExitStack() as stack:
        files = run_on_all_hosts(lambda: stack.enter_context(open_files(workdir, lock=main)))
        stack.enter_context(host_log(files.folder, lambda: watch.committed))
        options = {"model": run.description(), "verify": config.verify_checkpoints, "watch": watch}
        options |= {"keep_every": config.keep_every, "before_commit": files.upload}
        folder, keep = workdir / "checkpoints", config.keep_latest
        checkpoints = run_on_all_hosts(lambda: Checkpoints(folder, keep, **options))
        stack.enter_context(checkpoints)
        with watch.spent("starting"):
            found = checkpoints.restore_latest(program.abstract_state())
            start, state = (0, program.initial_state()) if found is None else found
        lost = (files.folder, checkpoints.folder) if main and found is None else None
        run_on_all_hosts(lambda: lost and check_not_lost(*lost))
        own = program.model.arch.own_parts
        changed = run_on_all_hosts(lambda: add_start(files.folder, start, own) if main else None)
        reporter = stack.enter_context(
            Reporter(
                files.folder,
                start_step=start,
                total_steps=total,
                enabled=main,
                watch=watch,
                track=track,
                place=workdir,
            )
        )
        checkpoints.tell = files.tell = reporter.say
        request = request or stack.enter_context(StopRequest())
        stack.enter_context(abort_on_unexpected_error(TrainingError, last=files.upload))
        if start < total:
            if start:
                reporter.say(f"resuming after step {start} of {total}")
            averaging = averaging_warning(config.optim, program.steps_per_epoch, total)
            for warning in filter(None, (start and changed, averaging)):
                reporter.say(f"warning: {warning}")
        bad_images = BadImages(run, files.folder, reporter, start)
        skipped = SkippedSteps(run, files.folder, reporter, start)
        vote = Vote(program.mesh, request, reporter.say)
        profiler = stack.enter_context(Profiler(config, files.folder, start, reporter.say, workdir))
        parts = (checkpoints, reporter, bad_images, skipped, vote, profiler)
        loop = _Loop(run, steps, *parts, on_report, peak)
        if config.diagnose is not None:
            loop.diagnose = stack.enter_context(
                Diagnostics(files.folder, steps.diagnose, config.diagnose, start, reporter.say)
            )
        state = loop.run_from(start, state)
        step = int(state.step)
        loop.save_and_wait(step, state)
        if checkpoints.problem is not None:
            raise TrainingError(
                f"{checkpoints.problem}; fix this problem, and run the same command again to "
                f"resume from step {checkpoints.latest or 0}"
            )
        best = checkpoints.best
        result = Result(
            step=step,
            state=state,
            signal=vote.signal,
            val=loop.val,
            heads=loop.heads,
            best=None if best is None else (best, checkpoints.top1[best]),
            checkpoint=checkpoints.folder / str(step if best is None else best),
            seconds=time.perf_counter() - began,
            goodput=reporter.account(step),
            stopped_by=vote.reason if vote.signalled else None,
        )
        end_log(128 + vote.signal if vote.signal else 0, step, result.stopped_by)
        return result


@contextlib.contextmanager
def _aside(meter: Meter) -> Iterator[None]:
    """Exclude the body, which is no training step, from the time per step.
    It may transfer arrays implicitly, as JAX does when it compiles and Orbax when it saves.
    """
    with meter.paused(), jax.transfer_guard("allow"):
        yield


class _Dispatched(NamedTuple):
    """A step whose metrics are not read yet."""

    step: int
    metrics: Any
    stop: jax.Array
    batch: dict[str, jax.Array]
    bad_records: int  # number of corrupt training images known when the step was dispatched


@dataclasses.dataclass
class _Loop:
    """The training loop of a run, with the objects that save, report and stop it."""

    run: Run
    steps: CompiledSteps
    checkpoints: Checkpoints
    reporter: Reporter
    bad_images: BadImages
    skipped: SkippedSteps
    vote: Vote
    profiler: Profiler
    on_report: Callable[[int, float], None] = lambda step, eta: None
    peak: float | None = None  # images/s of a chip at its peak rate
    diagnose: Callable[..., None] | None = None
    val: dict[str, float] = dataclasses.field(default_factory=dict)  # of the last evaluation
    heads: dict[str, float] = dataclasses.field(default_factory=dict)  # last reported
    evaluation_seconds: float | None = None  # of the last evaluation, without compilation
    best: float = -1.0  # top-1 of the best evaluation

    def run_from(self, start: int, state: TrainState) -> TrainState:
        """Train from step `start`; returns the state after the last step, or after a signal."""
        run, program, config = self.run, self.run.program, self.run.config
        reporter, vote, total = self.reporter, self.vote, program.total_steps
        self.best = max(self.checkpoints.top1.values(), default=-1.0)
        # The previous start was stopped after this step, before its evaluation.
        if start and evaluation_due(program, start) and start not in self.checkpoints.top1:
            self._evaluate(start, state)
        if start >= total or vote.code:
            return state
        # Load the first batches before compiling, so that unusable data end the run at once.
        place = {"host": jax.process_index(), "hosts": jax.process_count(), "start_step": start}
        local = training_batches(config, run.train, bad=self.bad_images.train, **place)
        batches = put_batches(local, program.mesh, config.batch_size)
        with self._save_on_error(start, state), reporter.watch.spent("waiting for data"):
            ahead = TrainBatches(batches, start, total, self.bad_images)
        self._compile(start)
        warmup = round(config.optim.warmup_epochs * program.steps_per_epoch)
        limits = {"warmup": warmup, "patience": default_patience(program.steps_per_epoch)}
        classes = len(run.train.class_names)
        dead_heads = DeadHeadGuard(head_names(program.model), classes, **limits)
        # An implicit transfer in the loop would wait for the device, so it is an error.
        with jax.transfer_guard("disallow"):
            state = self._run_steps(start, state, ahead, dead_heads)
        batches.close()
        return state

    def _run_steps(
        self, start: int, state: TrainState, ahead: TrainBatches, dead_heads: DeadHeadGuard
    ) -> TrainState:
        """Each iteration waits for its batch, diagnoses, dispatches the step, reads and reports the
        metrics of the previous step, stops if asked, evaluates, and saves.
        """
        program, config = self.run.program, self.run.config
        watch, vote, total = self.reporter.watch, self.vote, program.total_steps
        meter, unread, waits = Meter(), None, sharding.calls_wait(program.mesh)
        for step in range(start + 1, total + 1):
            step_fn = self.steps.early if step <= program.early_steps else self.steps.train
            with _aside(meter):
                self.profiler.begin(step, state)
            with watch.spent("waiting for data"):
                batch = ahead.take()
            if self.diagnose is not None:
                with _aside(meter), watch.spent("diagnosing"):
                    self.diagnose(step - 1, state, batch)
            (state, metrics), stop = step_fn(state, batch, vote.flag(ahead.fault))
            with _aside(meter):
                self.profiler.end(step, (state, metrics), step_fn)
            newest = _Dispatched(step, metrics, stop, batch, len(self.bad_images.train))
            # Read and report the previous step while the device computes this one. If the call has
            # waited, this step is read below, or its time would count for the previous one.
            if unread is not None:
                self._finish(unread, state, meter, dead_heads)
            unread = newest
            self.checkpoints.check()

            intervals = (config.save_every_steps, config.keep_every)
            save_due = any(step % each == 0 for each in intervals if each)
            ending = vote.ends(step) and step < total
            due = evaluation_due(program, step)
            # A report that may stop the run saves the state of its step, as the others here do,
            # and the next step would overwrite this state.
            may_stop = self._log_due(step) and config.dead_heads == "stop"
            if waits or due or save_due or ending or may_stop or self.skipped.near_limit:
                self._finish(unread, state, meter, dead_heads)
                unread = None
            if ending:
                with self._save_on_error(step, state):
                    run_on_all_hosts(ahead.raise_fault)
                break
            # The signal would end the evaluation early, so the next start evaluates first.
            if due and vote.signalled:
                break
            with _aside(meter):
                if due and not self._evaluate(step, state):
                    break
                if save_due and not due:
                    self.checkpoints.save(step, state)
                if due or save_due:
                    self.reporter.account(step)
        return state

    def _compile(self, start: int) -> None:
        """Compile the programs of all steps after `start`, and check that the devices can run them.
        With smaller images at first, the program of the last steps needs more memory. Finding that
        out only when it is due would lose the run, whose batch size cannot change any more.
        """
        program, batch_size = self.run.program, self.run.config.batch_size
        self.reporter.say("compiling the training step (about a minute the first time) ...")
        began = time.perf_counter()

        def compiled() -> int:
            with sharding.memory_errors(batch_size):
                early = [self.steps.early] if start < program.early_steps else []
                steps = [self.steps.train, *early]
            needed = max(sharding.step_memory(step) or 0 for step in steps)
            sharding.check_memory(needed, batch_size, program.mesh)
            return needed

        with self.reporter.watch.spent("compiling"):
            needed = run_on_all_hosts(compiled)
        self.reporter.say(f"compiled in {duration(time.perf_counter() - began)}")
        sharding.keep_freed_memory(needed)

    def _log_due(self, step: int) -> bool:
        return step % self.run.config.log_every_steps == 0 or step == self.run.program.total_steps

    def _finish(
        self, done: _Dispatched, state: TrainState, meter: Meter, guard: DeadHeadGuard
    ) -> None:
        """Wait for a step, and report if due; `state` is the state after the newest step."""
        metrics, stop = jax.device_get((done.metrics, done.stop))
        self.vote.read(done.step, stop)
        meter.add(self.skipped.read(done.step, metrics, done.batch, state))
        if self._log_due(done.step):
            self._report(done.step, done.bad_records, state, meter, guard)

    def _report(
        self, step: int, bad_records: int, state: TrainState, meter: Meter, guard: DeadHeadGuard
    ) -> None:
        before = step - meter.steps
        means, seconds = meter.read()
        config, program = self.run.config, self.run.program
        speed = config.batch_size / seconds
        speed_per_chip = speed / program.mesh.size
        devices = program.mesh.local_devices
        memory = max((each.memory_stats() or {}).get("peak_bytes_in_use", 0) for each in devices)
        self.heads = {f"train/{name}": value for name, value in means.items()} | {
            "train/skipped_steps": self.skipped.count,
            "data/bad_records": bad_records,
            "perf/images_per_sec": speed,
            "perf/images_per_sec_per_chip": speed_per_chip,
            "perf/step_ms": 1000 * seconds,
        }
        if memory:  # CPUs do not report it
            self.heads["perf/memory_gb"] = memory / 1e9
        if self.peak is not None and before >= program.early_steps:
            self.heads["perf/mfu"] = speed_per_chip / self.peak
        left = program.steps_left(step)
        eta = left * seconds * (step - before) / (program.steps_left(before) - left)
        eta += evaluations_left(program, step) * (self.evaluation_seconds or 0.0)
        timed = self.evaluation_seconds is not None
        self.reporter.training(step, self.heads, eta, evaluations=timed)
        self.on_report(step, eta)
        if config.dead_heads == "ignore" or not math.isfinite(means["loss"]):
            return
        problem = guard.read(step, means)
        if problem is not None:
            self.reporter.say(f"warning: step {step}: {problem}")
            if config.dead_heads == "stop":
                self.save_and_wait(step, state)
                saved = self.checkpoints.problem or "The step is saved"
                raise UserError(f"step {step}: {problem}. {saved}")

    def _evaluate(self, step: int, state: TrainState) -> bool:
        """Evaluate, report and save; if a signal ends the evaluation, only return False."""
        first = not self.val
        if first:
            parameters = "averaged parameters, " if state.average else ""
            self.reporter.say(
                f"evaluating ({parameters}whole images, no dropout, no label smoothing); the first "
                "evaluation compiles its step ..."
            )
        began, options = time.perf_counter(), {"bad_images": self.bad_images, "vote": self.vote}
        with self._save_on_error(step, state), self.reporter.watch.spent("evaluating"):
            self.val = evaluate(self.run, self.steps.evaluate, step, state, **options)
        if not first:
            self.evaluation_seconds = time.perf_counter() - began
        if self.val:
            top1 = self.val["val/top1"]
            self.reporter.evaluation(step, self.val, top1 >= self.best)
            self.best = max(self.best, top1)
            self.checkpoints.save(step, state, top1)
        return bool(self.val)

    @contextlib.contextmanager
    def _save_on_error(self, step: int, state: TrainState) -> Iterator[None]:
        """Save `state` if the body raises a UserError, which means that the data are unusable."""
        try:
            yield
        except UserError:
            self.save_and_wait(step, state)
            raise

    def save_and_wait(self, step: int, state: TrainState) -> None:
        """Save `state` before the run ends, and wait; a signal does not interrupt this."""
        self.checkpoints.save(step, state)
        self.checkpoints.wait()
