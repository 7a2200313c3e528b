"""Runs of a sweep, one after another: what is done is skipped, what was cut off goes on.

A run that fails is written down as failed, and the next one begins.
"""

import contextlib
import dataclasses
import os
import statistics
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from gnet_jax.config import Config, ConfigError, UserError
from gnet_jax.data import order_fingerprint
from gnet_jax.lab.heads import HeadEvaluator
from gnet_jax.lab.ledger import network_ledger
from gnet_jax.lab.sweep import Cell
from gnet_jax.training.checkpoint import Checkpoints
from gnet_jax.training.compiled_steps import CompiledSteps
from gnet_jax.training.loop import train
from gnet_jax.training.record import BusyError, MetricsFile, open_workdir
from gnet_jax.training.run import Run, model_of
from gnet_jax.weights.start import prepare_run

LOG_FILE = "log.txt"


class StoppedError(Exception):
    """A signal stopped a run, and the sweep with it; what was trained is saved."""

    def __init__(self, number: int, cell: Cell) -> None:
        super().__init__(f"stopped by signal {number} in {cell.workdir}")
        self.number = number


class Bench:
    """A config made ready once for all of its seeds, which share its compiled programs."""

    def __init__(self, config: Config) -> None:
        self._run = prepare_run(config)
        self._compiled = CompiledSteps()
        self._evaluate_heads = HeadEvaluator(self._run)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Train `cell` to its end, from wherever it is, and return its result.

        Raises:
            StoppedError: if a signal came in between.
            BusyError: if another process has the run.
            Exception: whatever keeps the run from its end.
        """
        own = dataclasses.replace(
            self._run.config, seed=cell.config.seed, workdir=cell.config.workdir
        )
        run = dataclasses.replace(self._run, config=own)
        fingerprints = {
            "train": run.train.fingerprint(),
            "val": run.val.fingerprint(),
            "order": order_fingerprint(len(run.train), own.seed),
        }
        workdir = open_workdir(own, fingerprints)
        with (workdir / LOG_FILE).open("a") as log, contextlib.redirect_stdout(log):
            print("compiling the training step, if it is not yet compiled ...", flush=True)
            memory = step_memory(self._compiled.train_step(run))
            check_memory(memory, run)
            ended = train(run, workdir, self._compiled)
        if ended.signal is not None:
            raise StoppedError(ended.signal, cell)
        with Checkpoints(workdir / "checkpoints", own.keep_latest) as checkpoints:
            state = checkpoints.restore(ended.step, run.abstract_state())
        count, heads = self._evaluate_heads(run, state)
        cost = network_ledger(run.model, own.data.image_size)
        return {
            "status": "done",
            "step": ended.step,
            "val_images": count,
            "top1": heads["main"]["top1"],
            "heads": heads,
            "params": cost.params,
            "params_with_aux": cost.params_with_aux,
            "macs": cost.macs,
            "memory_bytes": memory,
            "images_per_sec": images_per_sec(workdir),
        }


def run_cells(
    cells: Sequence[Cell], say: Callable[[str], None], *, retry_failed: bool = False
) -> None:
    """Bring every run of `cells` to its end, and write down how it ended.

    Args:
        cells: the runs; those that have ended are left alone.
        say: is given a line for each.
        retry_failed: begin those that have failed again.

    Raises:
        StoppedError: if a signal came in between.
    """
    bench: tuple[str, Bench] | None = None
    for number, cell in enumerate(cells, 1):
        known = cell.result
        if known is not None and not (retry_failed and known["status"] == "failed"):
            continue
        what = f"{number}/{len(cells)} {cell.name}, seed {cell.config.seed}"
        say(f"{what} ... (log: {cell.workdir / LOG_FILE})")
        try:
            if bench is None or bench[0] != cell.name:
                bench = (cell.name, Bench(cell.config))
            result = bench[1].run(cell)
        except StoppedError:
            raise
        except BusyError as error:  # another process has it: its result will come from there
            say(f"{what}: left to another process ({error})")
            continue
        except Exception as error:  # whatever it is, the other runs are worth having
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            cell.write_result(
                {"status": "failed", "error": reason, "traceback": traceback.format_exc()}
            )
            say(f"{what}: failed, {reason}")
            continue
        cell.write_result(result)
        say(f"{what}: top-1 {result['top1']:.2%}, {result['images_per_sec']:.0f} images/s")


def relative_cost(config: Config) -> float:
    """What a run of `config` costs against others: multiply-adds times epochs; 0 if impossible."""
    try:
        model = model_of(config, config.model.num_classes or 10)
        return network_ledger(model, config.data.image_size).macs_with_aux * config.epochs
    except UserError:  # it will fail, and be reported, in its turn
        return 0.0


def step_memory(step: jax.stages.Compiled) -> int | None:
    """Bytes that a device needs for one training step, by XLA's plan; None where it has none."""
    plan: Any = step.memory_analysis()
    if plan is None:
        return None
    held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return held + plan.temp_size_in_bytes


def check_memory(needed: int | None, run: Run) -> None:
    """Refuse a step that does not fit: a process that dies of it would end the whole sweep.

    Raises:
        ConfigError: naming what the step needs and what there is.
    """
    device = run.mesh.devices.flat[0]
    there = (device.memory_stats() or {}).get("bytes_limit")
    if device.platform == "cpu":  # virtual devices share the machine's memory
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // run.mesh.size
    if needed is not None and there is not None and needed > there:
        raise ConfigError(
            f"a step of batch_size {run.config.batch_size} needs {needed / 2**30:.1f} GiB on each "
            f"device, which has {there / 2**30:.1f}; use a smaller batch_size"
        )


def images_per_sec(workdir: Path) -> float:
    """The median of the training speeds that a run logged."""
    name = "perf/images_per_sec"
    lines = MetricsFile(workdir / "metrics.jsonl").read()
    return statistics.median(line[name] for line in lines if name in line)
