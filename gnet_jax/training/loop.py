"""The training loop: step, report, evaluate, save, and stop when asked."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import jax

from gnet_jax.config import UserError, choose
from gnet_jax.training.checkpoints.save import Checkpoints
from gnet_jax.training.compiled_steps import CompiledSteps
from gnet_jax.training.evaluate import Evaluator
from gnet_jax.training.feed import training_batches
from gnet_jax.training.hosts.agree import TrainingError, run_on_all_hosts
from gnet_jax.training.hosts.start import abort_on_unexpected_error
from gnet_jax.training.hosts.stop import StopRequest, TrainBatches, Vote
from gnet_jax.training.memory import check_memory, keep_freed_memory, step_memory
from gnet_jax.training.observe.bad_images import BadImages
from gnet_jax.training.observe.bad_steps import SkippedSteps
from gnet_jax.training.observe.console import Meter, Reporter, duration
from gnet_jax.training.observe.dead_heads import DeadHeadGuard, default_patience
from gnet_jax.training.observe.diagnostics import Diagnostics
from gnet_jax.training.observe.goodput import Stopwatch
from gnet_jax.training.optimizer import averaging_warning
from gnet_jax.training.program import Run
from gnet_jax.training.sharding import put_batches
from gnet_jax.training.step import TrainState, head_names
from gnet_jax.training.workdir import add_start, check_not_lost, locked


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended."""

    step: int
    signal: int | None  # the signal, to this host or another, that stopped it early
    val: dict[str, float]  # of the last evaluation; empty if there was none
    heads: dict[str, float]  # the last reported training metrics
    best: tuple[int, float] | None  # step and top-1 of the best evaluation that is kept
    checkpoint: Path
    seconds: float
    goodput: dict[str, float]  # seconds by what they went into, over all starts


def train(run: Run, workdir: Path, compiled: CompiledSteps | None = None) -> Result:
    """Train from the newest checkpoint in `workdir`, or from the start, to the run's last step.

    `compiled` may be those of a run that differs in its seed alone; None compiles anew.

    Raises:
        TrainingError: when too many steps in a row are not finite; a replay file is left. When
            heads do not learn and the config says to stop; that step is saved. When the last save
            failed.
        DataError: when too many images turn out damaged, or a label out of range; what was trained
            before is saved.
    """
    config, began, watch = run.config, time.perf_counter(), Stopwatch()
    main = jax.process_index() == 0
    hold = locked(workdir) if main else contextlib.nullcontext()
    with contextlib.ExitStack() as held:
        run_on_all_hosts(lambda: held.enter_context(hold))
        checkpoints = held.enter_context(
            Checkpoints(
                workdir / "checkpoints",
                config.keep_latest,
                watch=watch,
                model=run.description(),
                verify=config.verify_checkpoints,
            )
        )
        with watch.spent("starting"):
            found = checkpoints.restore_latest(run.abstract_state())
            start, state = (0, run.initial_state()) if found is None else found
        if found is None:
            run_on_all_hosts(lambda: check_not_lost(workdir) if main else None)
        changed = run_on_all_hosts(lambda: add_start(workdir, start) if main else None)
        reporter = Reporter(
            workdir, start_step=start, total_steps=run.total_steps, enabled=main, watch=watch
        )
        bad_images = BadImages(run, workdir, reporter, start)
        skipped = SkippedSteps(run, workdir, reporter, start)
        with reporter, StopRequest() as request, abort_on_unexpected_error(TrainingError):
            checkpoints.tell = reporter.say
            if 0 < start < run.total_steps:
                reporter.say(f"resuming after step {start} of {run.total_steps}")
                if changed is not None:
                    reporter.say(f"warning: {changed}")
            warning = averaging_warning(config.optim, run.steps_per_epoch, run.total_steps)
            if start < run.total_steps and warning is not None:
                reporter.say(f"warning: {warning}")
            vote, compiled = Vote(run.mesh, request), compiled or CompiledSteps()
            probe = compiled.diagnose_step(run)
            with Diagnostics(workdir, probe, config.diagnose, start, reporter.say) as diagnose:
                loop = _Loop(
                    run, compiled, checkpoints, reporter, bad_images, skipped, vote, diagnose
                )
                state = loop.run_from(start, state)
            step = int(state.step)
            checkpoints.save(step, state)
            checkpoints.wait()
            if checkpoints.problem is not None:
                raise TrainingError(
                    f"{checkpoints.problem}; once that is mended, the same command goes on from "
                    f"step {checkpoints.latest or 0}"
                )
        scores = checkpoints.top1
        best = checkpoints.best
        return Result(
            step=step,
            signal=vote.code or None,
            val=loop.val,
            heads=loop.heads,
            best=None if best is None else (best, scores[best]),
            checkpoint=checkpoints.folder / str(step if best is None else best),
            seconds=time.perf_counter() - began,
            goodput=reporter.account(step),
        )


@dataclasses.dataclass
class _Loop:
    """A run's steps, from some step on, with all that watches them."""

    run: Run
    compiled: CompiledSteps
    checkpoints: Checkpoints
    reporter: Reporter
    bad_images: BadImages
    skipped: SkippedSteps
    vote: Vote
    diagnose: Diagnostics
    val: dict[str, float] = dataclasses.field(default_factory=dict)  # of the last evaluation
    heads: dict[str, float] = dataclasses.field(default_factory=dict)  # the last that was reported
    evaluating: float | None = None  # seconds of the last evaluation, but for the one that compiles
    best: float = -1.0  # top-1 of the best evaluation, this start's and those that are kept

    def run_from(self, start: int, state: TrainState) -> TrainState:
        """The state after the run's last step, or after that at which it was asked to stop."""
        config, total = self.run.config, self.run.total_steps
        reporter, vote = self.reporter, self.vote
        evaluate = Evaluator(self.run, self.compiled, self.bad_images, vote)
        self.best = max(self.checkpoints.top1.values(), default=-1.0)
        # It was stopped between a step and that step's evaluation.
        if start and self._evaluation_due(start) and start not in self.checkpoints.top1:
            self._evaluated(evaluate, start, state)
        if start >= total or vote.code:
            return state
        # The first batches before the program: data that are unfit are told without a compilation.
        batches = _train_batches(self.run, start, self.bad_images)
        with self._kept(start, state), reporter.watch.spent("waiting for data"):
            ahead = TrainBatches(batches, start, total, self.bad_images)
        step_fn = self._compiled_step()
        meter, pending, guard = Meter(), None, _guard(self.run)
        for step in range(start + 1, total + 1):
            with reporter.watch.spent("waiting for data"):
                batch = ahead.take()
            with meter.paused(), reporter.watch.spent("diagnosing"):
                self.diagnose(step - 1, state, batch)
            state, metrics, stop = step_fn(state, batch, vote.flag(ahead.fault))
            # The metrics of the step before are fetched while the device works on this one.
            if pending is not None:
                meter.add(self._read(*pending, state))
            pending = (step, metrics, stop, batch)
            self.checkpoints.check()

            save_due = step % config.save_every_steps == 0
            stopping = vote.ends(step) and step < total
            due = self._evaluation_due(step)
            log_due = step % config.log_every_steps == 0 or step == total
            if log_due or due or save_due or stopping or self.skipped.near_limit:
                meter.add(self._read(*pending, state))
                pending = None
            if log_due:
                self._report(step, state, *meter.read(), guard)
            if stopping:
                with self._kept(step, state):
                    run_on_all_hosts(ahead.raise_fault)
                break
            # An evaluation would be cut short; a resume begins with it.
            if due and vote.signalled:
                break
            with meter.paused():
                if due and not self._evaluated(evaluate, step, state):
                    break
                if save_due and not due:
                    self.checkpoints.save(step, state)
                if due or save_due:
                    reporter.account(step)
        batches.close()  # on an error the generator goes with this frame
        return state

    def _compiled_step(self) -> jax.stages.Compiled:
        self.reporter.say("compiling the training step, about a minute the first time ...")
        began = time.perf_counter()
        with self.reporter.watch.spent("compiling"):
            step_fn = self.compiled.train_step(self.run)
        needed = step_memory(step_fn)
        run_on_all_hosts(lambda: check_memory(needed, self.run.config.batch_size, self.run.mesh))
        self.reporter.say(f"compiled in {duration(time.perf_counter() - began)}")
        keep_freed_memory(needed)
        return step_fn

    @property
    def _steps_per_evaluation(self) -> float:
        return self.run.config.eval_every_epochs * self.run.steps_per_epoch

    def _evaluation_due(self, step: int) -> bool:
        return step == self.run.total_steps or _crosses(step, self._steps_per_evaluation)

    def _evaluations_left(self, step: int) -> int:
        """Returns the number of evaluations from `step` on, its own and the last one included."""
        before_last, done = (
            math.floor((n - 1) / self._steps_per_evaluation) for n in (self.run.total_steps, step)
        )
        return before_last - done + 1

    def _read(
        self, number: int, metrics: Any, stop: jax.Array, batch: Any, state: TrainState
    ) -> dict[str, float]:
        metrics, stop = jax.device_get((metrics, stop))
        self.vote.read(number, stop)
        return self.skipped.read(number, metrics, batch, state)

    def _report(
        self,
        step: int,
        state: TrainState,
        means: dict[str, float],
        seconds: float,
        guard: DeadHeadGuard,
    ) -> None:
        """Report the means over the last steps, each of which took `seconds`."""
        config = self.run.config
        heads = {f"train/{name}": value for name, value in means.items()}
        heads["train/skipped_steps"] = self.skipped.count
        heads["data/bad_records"] = len(self.bad_images.train)
        heads["perf/images_per_sec"] = config.batch_size / seconds
        heads["perf/images_per_sec_per_chip"] = config.batch_size / seconds / self.run.mesh.size
        self.heads = heads
        eta = (self.run.total_steps - step) * seconds
        if self.evaluating is not None:
            eta += self._evaluations_left(step) * self.evaluating
        self.reporter.training(step, heads, eta, evaluations=self.evaluating is not None)
        reactions = {"ignore": (False, False), "warn": (True, False), "stop": (True, True)}
        watched, stops = choose("dead_heads", config.dead_heads, reactions)
        problem = guard.read(step, means) if watched and math.isfinite(means["loss"]) else None
        if problem is not None:
            self.reporter.say(f"warning: step {step}: {problem}")
            if stops:
                self._save_and_wait(step, state)
                saved = self.checkpoints.problem or "The step is saved"
                raise TrainingError(f"step {step}: {problem}. {saved}")

    def _evaluated(self, evaluate: Evaluator, step: int, state: TrainState) -> bool:
        """Evaluate and save; False, and nothing saved, where all were asked to stop meanwhile."""
        if not self.val:
            what = "averaged parameters, " if state.average else ""
            self.reporter.say(
                f"evaluating ({what}whole images, no dropout, no label smoothing); the first time, "
                "that step is compiled ..."
            )
        began = time.perf_counter()
        with self._kept(step, state), self.reporter.watch.spent("evaluating"):
            val = evaluate(step, state)
        if self.val:
            self.evaluating = time.perf_counter() - began
        self.val = val
        if val:
            self.reporter.evaluation(step, val, val["val/top1"] >= self.best)
            self.best = max(self.best, val["val/top1"])
            self.checkpoints.save(step, state, val["val/top1"])
        return bool(val)

    @contextlib.contextmanager
    def _kept(self, step: int, state: TrainState) -> Iterator[None]:
        """Save `state`, which is that of `step`, where the data turn out unfit: it is good."""
        try:
            yield
        except UserError:
            self._save_and_wait(step, state)
            raise

    def _save_and_wait(self, step: int, state: TrainState) -> None:
        """Save in front of an error: here, where a signal does not yet end the process."""
        self.checkpoints.save(step, state)
        self.checkpoints.wait()


def _train_batches(run: Run, start: int, bad_images: BadImages) -> Generator[Any, None, None]:
    batches = training_batches(
        run.config,
        run.train,
        start_step=start,
        host=jax.process_index(),
        hosts=jax.process_count(),
        bad=bad_images.train,
    )
    return put_batches(batches, run.mesh, run.config.batch_size)


def _guard(run: Run) -> DeadHeadGuard:
    return DeadHeadGuard(
        head_names(run.model),
        len(run.train.class_names),
        warmup=round(run.config.optim.warmup_epochs * run.steps_per_epoch),
        patience=default_patience(run.steps_per_epoch),
    )


def _crosses(step: int, interval: float) -> bool:
    """Whether a multiple of `interval` steps lies in (step - 1, step]."""
    return math.floor(step / interval) > math.floor((step - 1) / interval)
