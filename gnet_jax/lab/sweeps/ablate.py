"""Train the runs of a sweep one after another; skip finished ones, and continue after failures."""

import contextlib
import dataclasses
import functools
import math
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gnet_jax.config import Config, ConfigError, Preprocessing, Sweep, UserError
from gnet_jax.config.paths import typed_path
from gnet_jax.convert.start import with_start
from gnet_jax.data.augment import preprocess
from gnet_jax.data.batches import BadRecords, eval_batches
from gnet_jax.lab.cost.ledger import network_ledger
from gnet_jax.lab.sweeps.sweep import (
    RESULT_FILE,
    Cell,
    config_of,
    read_json,
    read_tuning,
    tuning_cells,
    was_trained,
)
from gnet_jax.model.googlenet import GoogLeNet, every_head
from gnet_jax.training.hosts.stop import StopRequest
from gnet_jax.training.loop import CompiledSteps, train
from gnet_jax.training.observe.console import SafeConsole, duration
from gnet_jax.training.program import Run, model_of, prepare
from gnet_jax.training.sharding import compile_eval_step, put_batches, step_memory
from gnet_jax.training.step import TrainState, head_names, sum_metrics
from gnet_jax.training.workdir import CONFIG_FILE, BusyError, MetricsFile, open_workdir, write_json

LOG_FILE = "log.txt"
QUIET_SECONDS = 60.0  # between two progress lines on an output that is not a terminal


class StoppedError(Exception):
    """A signal (the argument) stopped the sweep; the state of the current run is saved."""


class Progress(SafeConsole):
    """Prints the progress of a sweep: a live line on a terminal, otherwise a line every minute."""

    def __init__(self) -> None:
        # While a run trains, sys.stdout is its log.
        super().__init__(file=sys.stdout)
        self._printed = time.monotonic()

    def step(self, what: str, later: float, step: int, total: int, eta: float) -> None:
        """Show a step of the run `what`, with the time left for the run and for the sweep.

        `eta` is in seconds. `later` is the cost of the runs that follow, in units of this run's.
        """
        whole = eta * total / max(total - step, 1)
        left = f"ETA {duration(eta)}, of the sweep {duration(eta + later * whole)}"
        text = f"{what}: step {step}/{total}, {left}"
        if self.is_terminal:
            self.show(text)
        elif time.monotonic() - self._printed >= QUIET_SECONDS:
            self._printed = time.monotonic()
            self.say(text)


class Bench:
    """A config that is prepared and compiled once for the runs of all its seeds."""

    def __init__(self, config: Config) -> None:
        self._run = run = prepare(*with_start(config))
        self._steps = CompiledSteps(run.program)
        pixels = run.config.data.preprocessing
        step = functools.partial(head_sums, model=run.program.model, preprocessing=pixels)
        self._head_step = compile_eval_step(run.program.mesh, step)

    def run(
        self, cell: Cell, request: StopRequest, on_report: Callable[[int, int, float], None]
    ) -> dict[str, Any]:
        """Train or resume `cell` to its end and return its result; raises StoppedError.

        Calls `on_report` with the step, the number of steps, and the seconds left, as it trains.
        """
        own = dataclasses.replace(self._run.config, seed=cell.seed, workdir=str(cell.workdir))
        program = dataclasses.replace(self._run.program, config=own)
        run = dataclasses.replace(self._run, program=program)
        open_workdir(own, run.fingerprints())
        workdir = cell.workdir
        with (workdir / LOG_FILE).open("a") as log, contextlib.redirect_stdout(log):
            total = program.total_steps
            ended = train(
                run, workdir, self._steps, request, lambda step, eta: on_report(step, total, eta)
            )
        if ended.signal is not None:
            raise StoppedError(ended.signal)
        count, heads = self._evaluate_heads(run, ended.state)
        cost = network_ledger(program.model, own.data.image_size)
        return {
            "status": "done",
            "step": ended.step,
            "val_images": count,
            "chance": 1 / len(run.train.class_names),
            "top1": heads["main"]["top1"],
            "heads": heads,
            "params": cost.params,
            "params_with_aux": cost.params_with_aux,
            "macs": cost.macs,
            "memory_bytes": step_memory(self._steps.train),
            "images_per_sec": images_per_sec(workdir),
        }

    def _evaluate_heads(
        self, run: Run, state: TrainState
    ) -> tuple[int, dict[str, dict[str, float]]]:
        """Returns the number of validation images, and each head's `loss`, `top1` and `top5`. With
        at most five classes, there is no `top5`.
        """
        d, program = run.config.data, run.program
        batches = eval_batches(
            run.val,
            batch_size=program.eval_batch_size,
            preprocessing=d.preprocessing,
            threads=d.threads,
            bad=BadRecords(run.val, d.bad_limit),
        )
        names = head_names(program.model)
        metrics = ("loss", "top1", "top5")[: 3 if program.model.arch.num_classes > 5 else 2]
        count, totals = 0, {name: np.zeros(len(names)) for name in metrics}
        for batch in put_batches(batches, program.mesh, program.eval_batch_size):
            sums = jax.device_get(self._head_step(state, batch))
            count += int(sums["count"][0])
            for name, total_H in totals.items():
                total_H += sums[name]
        return count, {
            head: {name: float(total_H[place]) / count for name, total_H in totals.items()}
            for place, head in enumerate(names)
        }


def head_sums(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    *,
    model: GoogLeNet,
    preprocessing: Preprocessing,
) -> dict[str, jax.Array]:
    """Returns the sums of `eval_step` for every head, (H,), in the order of `head_names`.

    The heads run without dropout, so their losses can be compared.
    """
    variables = state.average or {"params": state.params, "batch_stats": state.batch_stats}
    outputs = every_head(model, variables, preprocess(batch["image"], preprocessing=preprocessing))
    heads = (outputs.logits, *outputs.aux_logits)
    sums = [sum_metrics(logits_BK, batch["label"], batch["mask"]) for logits_BK in heads]
    return jax.tree.map(lambda *each: jnp.stack(each), *sums)


def check_configs(sweep: Sweep) -> None:
    """Raise a ConfigError that names each config with a mistake, and the mistake.

    Prepares every config, which opens its data and checks its network, but compiles nothing. It is
    a mistake if the data differ from those with which a run of the config was trained.
    """
    problems = []
    for name, config in sweep.configs.items():
        folder = typed_path(config.workdir) / name
        cells = tuning_cells(folder.parent, name, config.seed, sweep.learning_rates[:1])
        tuned = [("tune-*", config_of(cell, config, None)) for cell in cells]
        for runs, each in (("seed-*", config), *tuned):
            try:
                run, trained = prepare(*with_start(each)), filter(was_trained, folder.glob(runs))
                _check_data(run, sorted(trained))
            except UserError as error:
                problems.append(f"config {name!r}: {error}")
                break
    if problems:
        raise ConfigError("; ".join(problems))


def _check_data(run: Run, workdirs: Sequence[Path]) -> None:
    """Raise a ConfigError if the data in one of `workdirs` are not those of `run`."""
    now = run.fingerprints() if workdirs else {}
    for workdir in workdirs:
        config = read_json(workdir / CONFIG_FILE) or {}
        for part in ("train", "val", "classes"):  # the order depends on the seed
            if config.get(f"data.fingerprint.{part}", now[part]) != now[part]:
                what = "classes" if part == "classes" else f"{part} split"
                raise ConfigError(
                    f"data.source is {run.config.data.source!r}, but {workdir} was trained with "
                    f"other data ({what}); use the same data, or another --workdir"
                )


def run_cells(
    cells: Sequence[Cell], sweep: Sweep, progress: Progress, *, retry_failed: bool = False
) -> None:
    """Train every run of `cells` that has not ended, and save its result.

    With `retry_failed`, failed runs are tried again. Raises StoppedError if a signal arrived; a
    second signal ends the process.
    """
    costs = {name: relative_cost(config) for name, config in sweep.configs.items()}
    results = [(cell, cell.result) for cell in cells]
    due = [cell for cell, r in results if r is None or (retry_failed and "error" in r)]
    left = sum(costs[cell.name] for cell in due)
    failed = sum(cell not in due and "error" in (r or {}) for cell, r in results)
    done = f"{len(cells) - len(due) - failed} done" + (f", {failed} failed" if failed else "")
    progress.say(f"{len(cells)} runs: {done}, {len(due)} to train")
    bench = functools.lru_cache(maxsize=1)(Bench)
    with StopRequest() as request:
        for number, cell in enumerate(cells, 1):
            if request.signal is not None:
                raise StoppedError(request.signal)
            if cell not in due:
                continue
            what = f"{number}/{len(cells)} {cell}"
            left -= costs[cell.name]
            show = functools.partial(progress.step, what, left / (costs[cell.name] or 1.0))
            progress.say(f"{what} ... (log: {cell.workdir / LOG_FILE})")
            try:
                result = bench(config_to_train(cell, sweep)).run(cell, request, show)
                _check_retried(cell, sweep, result["top1"])
            except StoppedError:
                raise
            except BusyError as error:  # the other process will save the result
                progress.say(f"{what}: skipped ({error})")
                continue
            except Exception as error:  # record the error, so that the other runs still train
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                result = {"status": "failed", "error": reason, "traceback": traceback.format_exc()}
                ended = f"failed, {reason}"
            else:
                ended = f"top-1 {result['top1']:.2%}, {result['images_per_sec']:.0f} images/s"
            cell.workdir.mkdir(parents=True, exist_ok=True)
            write_json(cell.workdir / RESULT_FILE, result)
            progress.say(f"{what}: {ended}")


def config_to_train(cell: Cell, sweep: Sweep) -> Config:
    """Returns the config of a run. Raises UserError if the learning rate could not be tuned."""
    config, tuned = sweep.configs[cell.name], None
    if cell.learning_rate is None and sweep.learning_rates:
        family = sweep.families.get(cell.name, cell.name)
        folder, seed = cell.workdir.parents[1], sweep.configs[family].seed
        tuning = read_tuning(tuning_cells(folder, family, seed, sweep.learning_rates))
        if tuning is None:
            raise BusyError(f"another process tunes the learning rate of {family}")
        if tuning.best is None:
            raise UserError(f"the tuning runs of {family} failed, so it has no learning rate")
        tuned = tuning.best
        _check_rate(folder, family, sweep, tuned)
    return config_of(cell, config, tuned)


def _check_retried(cell: Cell, sweep: Sweep, top1: float) -> None:
    """Raise a UserError if a tuning run, when retried, has the best rate after another was used.

    It then stays a failed run, so that the report shows the rate that was used.
    """
    rate, folder = cell.learning_rate, cell.workdir.parents[1]
    tuning = read_tuning(tuning_cells(folder, cell.name, cell.seed, sweep.learning_rates))
    if rate is None or tuning is None:  # some tuning runs had not ended, so no rate was used
        return
    if dataclasses.replace(tuning, tried=tuning.tried | {rate: top1}).best == rate:
        _check_rate(folder, cell.name, sweep, rate)


def _check_rate(folder: Path, family: str, sweep: Sweep, tuned: float) -> None:
    """Raise a UserError if a run of the family was trained with another learning rate."""
    members = [name for name in sweep.configs if sweep.families.get(name, name) == family]
    for file in (file for name in members for file in (folder / name).glob("seed-*/config.json")):
        used = (read_json(file) or {}).get("optim.learning_rate")
        if used != tuned:
            raise UserError(
                f"the best learning rate is now {tuned:g}, but {file.parent} was trained with "
                f"{used}; use another --workdir"
            )


def relative_cost(config: Config) -> float:
    """Returns multiply-adds per image times epochs, or 0 if the network cannot be built."""
    try:
        model = model_of(config, config.model.num_classes or 10)
        return network_ledger(model, config.data.image_size).macs_with_aux * config.epochs
    except UserError:  # the run itself will fail and report it
        return 0.0


def images_per_sec(workdir: Path) -> float:
    """Returns the median training throughput (images/s) that a run logged; NaN if there is none."""
    lines, name = MetricsFile(workdir / "metrics.jsonl").read(), "perf/images_per_sec"
    found = [line[name] for line in lines if name in line]
    return statistics.median(found) if found else math.nan
