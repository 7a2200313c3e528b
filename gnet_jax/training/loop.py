"""The training loop: step, report, evaluate, save, and stop when asked."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gnet_jax.config import UserError
from gnet_jax.data import eval_batches
from gnet_jax.training.agreement import together
from gnet_jax.training.checkpoint import Checkpoints
from gnet_jax.training.damage import Damage
from gnet_jax.training.feed import training_batches
from gnet_jax.training.guard import DeadHeadGuard, patience_of
from gnet_jax.training.hosts import ending_together
from gnet_jax.training.record import add_start, locked
from gnet_jax.training.report import Meter, Reporter, duration
from gnet_jax.training.run import Run
from gnet_jax.training.sharding import compile_eval_step, compile_train_step, put_batches
from gnet_jax.training.step import TrainState, head_names
from gnet_jax.training.stop import (
    Ahead,
    Spared,
    StopRequest,
    Vote,
    abstract_flag,
    voting_eval_step,
    voting_train_step,
)


class TrainingError(RuntimeError):
    """A run that cannot go on: its numbers are no longer numbers, or it does not learn."""


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


def train(run: Run, workdir: Path) -> Result:
    """Train from the newest checkpoint in `workdir`, or from the start, to the run's last step.

    Raises:
        TrainingError: when the loss is no longer finite; nothing is saved of that step. Or when
            heads do not learn and the config says to stop; that step is saved.
        DataError: when too many images turn out damaged, or a label out of range; what was trained
            before is saved.
    """
    config, began = run.config, time.perf_counter()
    main = jax.process_index() == 0
    hold = locked(workdir) if main else contextlib.nullcontext()
    with contextlib.ExitStack() as held:
        together(lambda: held.enter_context(hold))
        checkpoints = held.enter_context(Checkpoints(workdir / "checkpoints", config.keep_latest))
        start = checkpoints.latest
        if start is None:
            start, state = 0, run.initial_state()
        else:
            state = checkpoints.restore(start, run.abstract_state())
        if main:
            add_start(workdir, start)
        reporter = Reporter(workdir, start_step=start, total_steps=run.total_steps, enabled=main)
        damage = Damage(run, workdir, reporter, start)
        with reporter, StopRequest() as request, ending_together(TrainingError):
            if 0 < start < run.total_steps:
                reporter.say(f"resuming behind step {start} of {run.total_steps}")
            vote = Vote(run.mesh, request)
            state, val, heads = _steps(run, state, start, checkpoints, reporter, damage, vote)
        step = int(state.step)
        checkpoints.save(step, state)
        checkpoints.wait()
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
        )


def _steps(
    run: Run,
    state: TrainState,
    start: int,
    checkpoints: Checkpoints,
    reporter: Reporter,
    damage: Damage,
    vote: Vote,
) -> tuple[TrainState, dict[str, float], dict[str, float]]:
    """Every step from `start` on: the final state, its evaluation, the last training metrics."""
    config, total = run.config, run.total_steps
    val: dict[str, float] = {}
    heads: dict[str, float] = {}
    evaluate = Evaluator(run, damage, vote)

    def evaluation_due(step: int) -> bool:
        return step == total or _crosses(step, config.eval_every_epochs * run.steps_per_epoch)

    # It was stopped between a step and that step's evaluation.
    if start and evaluation_due(start) and start not in checkpoints.top1():
        val = evaluate(start, state)
        if val:
            reporter.evaluation(start, val, best=False)
    if start >= total or vote.code:
        return state, val, heads
    best = max(checkpoints.top1().values(), default=-1.0)
    reporter.say("compiling the training step, about a minute the first time ...")
    compiling = time.perf_counter()
    batch = run.abstract_batch() | abstract_flag(run.mesh)
    step_fn = compile_train_step(run.mesh, voting_train_step(run.train_step()), state, batch)
    reporter.say(f"compiled in {duration(time.perf_counter() - compiling)}")

    batches = _train_batches(run, start, damage)
    with _kept(checkpoints, start, state):
        ahead = Ahead(batches, start, total, damage)
    meter, pending, guard = Meter(), None, _guard(run)
    for step in range(start + 1, total + 1):
        batch = ahead.take()
        state, metrics = step_fn(state, batch | vote.flag(ahead.fault))
        # The metrics of the step before are fetched while the device works on this one.
        if pending is not None:
            meter.add(_finite(step - 1, vote.read(step - 1, pending)))
        pending = metrics
        checkpoints.check()

        save_due = step % config.save_every_steps == 0
        stopping = vote.ends(step) and step < total
        due = evaluation_due(step)
        if step % config.log_every_steps == 0 or due or save_due or stopping:
            meter.add(_finite(step, vote.read(step, pending)))
            pending = None
        if step % config.log_every_steps == 0 or step == total:
            means, seconds = meter.read()
            heads = {f"train/{name}": value for name, value in means.items()}
            heads["data/bad_records"] = len(damage.train)
            heads["perf/images_per_sec"] = config.batch_size / seconds
            heads["perf/images_per_sec_per_chip"] = config.batch_size / seconds / run.mesh.size
            reporter.training(step, heads, (total - step) * seconds)
            problem = guard.read(step, means) if config.dead_heads != "ignore" else None
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
            with _kept(checkpoints, step, state):
                val = evaluate(step, state)
            if not val:
                break
            reporter.evaluation(step, val, val["val/top1"] >= best)
            best = max(best, val["val/top1"])
            checkpoints.save(step, state, val["val/top1"])
        elif save_due:
            checkpoints.save(step, state)
        meter.pause(time.perf_counter() - paused)
    batches.close()  # on an error the generator goes with this frame
    return state, val, heads


class Evaluator:
    """Counts the whole validation set, every example once; compiles at its first call."""

    def __init__(self, run: Run, damage: Damage, vote: Vote) -> None:
        self._run, self._damage, self._vote = run, damage, vote
        self._step: Callable[..., Any] = compile_eval_step(
            run.mesh, voting_eval_step(run.eval_step())
        )

    def __call__(self, step: int, state: TrainState) -> dict[str, float]:
        """`val/count`, `val/top1`, `val/top5` (shares of 1) and `val/loss` for `state`.

        Damaged images are left out of all of them. Empty where a signal to any host cut it short.
        """
        run, d, vote = self._run, self._run.config.data, self._vote
        self._damage.step = step
        share = run.eval_batch_size // jax.process_count()
        empty = {
            name: np.zeros((share, *x.shape[1:]), x.dtype)
            for name, x in run.abstract_batch().items()
        }
        batches = eval_batches(
            run.val,
            batch_size=run.eval_batch_size,
            preprocessing=d.preprocessing,
            threads=d.threads,
            host=jax.process_index(),
            hosts=jax.process_count(),
            bad=self._damage.val,
        )
        spared = Spared(batches, empty)
        sums: dict[str, float] = {}
        for batch in put_batches(spared, run.mesh, run.eval_batch_size):
            found = jax.device_get(self._step(state, batch | vote.flag(spared.fault)))
            if vote.cut_short(found):
                together(spared.check)
                return {}
            for name, value in found.items():
                sums[name] = sums.get(name, 0) + value.item()
        count = sums.pop("count")
        self._damage.say_left_out(len(run.val) - int(count))
        values = {f"val/{name}": total / count for name, total in sums.items()}
        if not math.isfinite(values["val/loss"]):
            raise TrainingError(f"the validation loss is {values['val/loss']}")
        return values | {"val/count": count}


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


def _finite(step: int, metrics: Any) -> dict[str, float]:
    """The metrics on the host.

    Raises:
        TrainingError: if loss or gradient is not finite.
    """
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
        raise TrainingError(
            f"step {step}: the loss is {values['loss']} and the gradient's norm "
            f"{values['grad_norm']}; lower optim.learning_rate, lengthen optim.warmup_epochs or "
            "set optim.clip_norm, in another workdir. Nothing of this step was saved"
        )
    return values
