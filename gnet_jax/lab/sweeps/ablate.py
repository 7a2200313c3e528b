"""Runs of a sweep, one after another: what is done is skipped, what was cut off goes on.

A run that fails is written down as failed, and the next one begins.
"""

import contextlib
import dataclasses
import statistics
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gnet_jax.config import Config, UserError
from gnet_jax.convert.start import with_start
from gnet_jax.lab.cost.ledger import network_ledger
from gnet_jax.lab.sweeps.heads import HeadEvaluator
from gnet_jax.lab.sweeps.sweep import Cell
from gnet_jax.training.loop import CompiledSteps, train
from gnet_jax.training.memory import step_memory
from gnet_jax.training.program import model_of, prepare
from gnet_jax.training.workdir import BusyError, MetricsFile, open_workdir

LOG_FILE = "log.txt"


class StoppedError(Exception):
    """A signal stopped a run, and the sweep with it; what was trained is saved."""

    def __init__(self, number: int, cell: Cell) -> None:
        super().__init__(f"stopped by signal {number} in {cell.workdir}")
        self.number = number


class Bench:
    """A config made ready once for all of its seeds, which share its compiled programs."""

    def __init__(self, config: Config) -> None:
        self._run = prepare(*with_start(config))
        self._steps = CompiledSteps(self._run.program)
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
        program = dataclasses.replace(self._run.program, config=own)
        run = dataclasses.replace(self._run, program=program)
        workdir = open_workdir(own, run.fingerprints())
        with (workdir / LOG_FILE).open("a") as log, contextlib.redirect_stdout(log):
            ended = train(run, workdir, self._steps)
        if ended.signal is not None:
            raise StoppedError(ended.signal, cell)
        count, heads = self._evaluate_heads(run, ended.state)
        cost = network_ledger(program.model, own.data.image_size)
        return {
            "status": "done",
            "step": ended.step,
            "val_images": count,
            "top1": heads["main"]["top1"],
            "heads": heads,
            "params": cost.params,
            "params_with_aux": cost.params_with_aux,
            "macs": cost.macs,
            "memory_bytes": step_memory(self._steps.train),
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


def images_per_sec(workdir: Path) -> float:
    """The median of the training speeds that a run logged."""
    name = "perf/images_per_sec"
    lines = MetricsFile(workdir / "metrics.jsonl").read()
    return statistics.median(line[name] for line in lines if name in line)
