"""The training loop: step, report, evaluate, save, and stop when asked."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import jax

from gnet_jax.config import UserError
from gnet_jax.training.agreement import together
from gnet_jax.training.checkpoint import Checkpoints
from gnet_jax.training.damage import Damage
from gnet_jax.training.diagnose import Diagnostics
from gnet_jax.training.evaluation import Evaluator
from gnet_jax.training.feed import training_batches
from gnet_jax.training.goodput import Stopwatch
from gnet_jax.training.guard import DeadHeadGuard, TrainingError, patience_of
from gnet_jax.training.hosts import ending_together
from gnet_jax.training.programs import Programs
from gnet_jax.training.record import add_start, locked
from gnet_jax.training.report import Meter, Reporter, duration
from gnet_jax.training.run import Run
from gnet_jax.training.sharding import put_batches
from gnet_jax.training.skipped import SkippedSteps
from gnet_jax.training.step import TrainState, head_names
from gnet_jax.training.stop import Ahead, StopRequest, Vote


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


def train(run: Run, workdir: Path, programs: Programs | None = None) -> Result:
    """Train from the newest checkpoint in `workdir`, or from the start, to the run's last step.

    `programs` may be those of a run that differs in its seed alone; None compiles anew.

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
        together(lambda: held.enter_context(hold))
        checkpoints = held.enter_context(
            Checkpoints(workdir / "checkpoints", config.keep_latest, watch=watch)
        )
        with watch.spent("starting"):
            found = checkpoints.restore_newest(run.abstract_state())
            start, state = (0, run.initial_state()) if found is None else found
        together(lambda: add_start(workdir, start) if main else None)
        reporter = Reporter(
            workdir, start_step=start, total_steps=run.total_steps, enabled=main, watch=watch
        )
        damage = Damage(run, workdir, reporter, start)
        skipped = SkippedSteps(run, workdir, reporter, start)
        with reporter, StopRequest() as request, ending_together(TrainingError):
            checkpoints.tell = reporter.say
            if 0 < start < run.total_steps:
                reporter.say(f"resuming behind step {start} of {run.total_steps}")
            programs, vote = programs or Programs(), Vote(run.mesh, request)
            probe = programs.diagnose_step(run)
            with Diagnostics(workdir, probe, config.diagnose, start, reporter.say) as diagnose:
                state, val, heads = _steps(
                    run,
                    programs,
                    state,
                    start,
                    checkpoints,
                    reporter,
                    damage,
                    skipped,
                    vote,
                    diagnose,
                )
        step = int(state.step)
        checkpoints.save(step, state)
        checkpoints.wait()
        if checkpoints.problem is not None:
            raise TrainingError(
                f"{checkpoints.problem}; once that is mended, the same command goes on from step "
                f"{checkpoints.latest or 0}"
            )
        scores = checkpoints.top1()
        best = checkpoints.best
        return Result(
            step=step,
            signal=vote.code or None,
            val=val,
            heads=heads,
            best=None if best is None else (best, scores[best]),
            checkpoint=checkpoints.folder / str(step if best is None else best),
            seconds=time.perf_counter() - began,
            goodput=reporter.account(step),
        )


def _steps(
    run: Run,
    programs: Programs,
    state: TrainState,
    start: int,
    checkpoints: Checkpoints,
    reporter: Reporter,
    damage: Damage,
    skipped: SkippedSteps,
    vote: Vote,
    diagnose: Diagnostics,
) -> tuple[TrainState, dict[str, float], dict[str, float]]:
    """Every step from `start` on: the final state, its evaluation, the last training metrics."""
    config, total = run.config, run.total_steps
    val: dict[str, float] = {}
    heads: dict[str, float] = {}
    evaluate = Evaluator(run, programs, damage, vote)

    def evaluation_due(step: int) -> bool:
        return step == total or _crosses(step, config.eval_every_epochs * run.steps_per_epoch)

    def read(number: int, metrics: Any, batch: Any, state: TrainState) -> dict[str, float]:
        return skipped.read(number, vote.read(number, metrics), batch, state)

    # It was stopped between a step and that step's evaluation.
    if start and evaluation_due(start) and start not in checkpoints.top1():
        with reporter.watch.spent("evaluating"):
            val = evaluate(start, state)
        if val:
            reporter.evaluation(start, val, best=False)
    if start >= total or vote.code:
        return state, val, heads
    best = max(checkpoints.top1().values(), default=-1.0)
    reporter.say("compiling the training step, about a minute the first time ...")
    compiling = time.perf_counter()
    with reporter.watch.spent("compiling"):
        step_fn = programs.train_step(run)
    reporter.say(f"compiled in {duration(time.perf_counter() - compiling)}")

    batches = _train_batches(run, start, damage)
    with _kept(checkpoints, start, state), reporter.watch.spent("waiting for data"):
        ahead = Ahead(batches, start, total, damage)
    meter, pending, guard = Meter(), None, _guard(run)
    for step in range(start + 1, total + 1):
        with reporter.watch.spent("waiting for data"):
            batch = ahead.take()
        paused = time.perf_counter()
        diagnose(step - 1, state, batch)
        meter.pause(time.perf_counter() - paused)
        state, metrics = step_fn(state, batch | vote.flag(ahead.fault))
        # The metrics of the step before are fetched while the device works on this one.
        if pending is not None:
            meter.add(read(*pending, state))
        pending = (step, metrics, batch)
        checkpoints.check()

        save_due = step % config.save_every_steps == 0
        stopping = vote.ends(step) and step < total
        due = evaluation_due(step)
        log_due = step % config.log_every_steps == 0 or step == total
        if log_due or due or save_due or stopping or skipped.on_the_brink:
            meter.add(read(*pending, state))
            pending = None
        if log_due:
            means, seconds = meter.read()
            heads = {f"train/{name}": value for name, value in means.items()}
            heads["train/skipped_steps"] = skipped.count
            heads["data/bad_records"] = len(damage.train)
            heads["perf/images_per_sec"] = config.batch_size / seconds
            heads["perf/images_per_sec_per_chip"] = config.batch_size / seconds / run.mesh.size
            reporter.training(step, heads, (total - step) * seconds)
            watched = config.dead_heads != "ignore" and math.isfinite(means["loss"])
            problem = guard.read(step, means) if watched else None
            if problem is not None:
                reporter.say(f"warning: step {step}: {problem}")
                if config.dead_heads == "stop":
                    checkpoints.save(step, state)
                    raise TrainingError(f"step {step}: {problem}. The step is saved")
        if stopping:
            with _kept(checkpoints, step, state):
                together(ahead.check)
            break
        paused = time.perf_counter()
        if due:
            with _kept(checkpoints, step, state), reporter.watch.spent("evaluating"):
                val = evaluate(step, state)
            if not val:
                break
            reporter.evaluation(step, val, val["val/top1"] >= best)
            best = max(best, val["val/top1"])
            checkpoints.save(step, state, val["val/top1"])
        elif save_due:
            checkpoints.save(step, state)
        if due or save_due:
            reporter.account(step)
        meter.pause(time.perf_counter() - paused)
    batches.close()  # on an error the generator goes with this frame
    return state, val, heads


def _train_batches(run: Run, start: int, damage: Damage) -> Generator[Any, None, None]:
    batches = training_batches(
        run.config,
        run.train,
        start_step=start,
        host=jax.process_index(),
        hosts=jax.process_count(),
        bad=damage.train,
    )
    return put_batches(batches, run.mesh, run.config.batch_size)


def _guard(run: Run) -> DeadHeadGuard:
    return DeadHeadGuard(
        head_names(run.model),
        len(run.train.class_names),
        warmup=round(run.config.optim.warmup_epochs * run.steps_per_epoch),
        patience=patience_of(run.steps_per_epoch),
    )


@contextlib.contextmanager
def _kept(checkpoints: Checkpoints, step: int, state: TrainState) -> Iterator[None]:
    """Save `state`, which is that of `step`, where the data turn out unfit: it is good."""
    try:
        yield
    except UserError:
        checkpoints.save(step, state)
        raise


def _crosses(step: int, interval: float) -> bool:
    """Whether a multiple of `interval` steps lies in (step - 1, step]."""
    return math.floor(step / interval) > math.floor((step - 1) / interval)
