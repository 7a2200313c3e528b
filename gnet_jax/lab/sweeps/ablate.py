"""Train the runs of a sweep one after another; skip finished ones, and continue after failures."""

import contextlib
import dataclasses
import functools
import statistics
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gnet_jax.config import Config, Preprocessing, UserError
from gnet_jax.convert.start import with_start
from gnet_jax.data.augment import preprocess
from gnet_jax.data.batches import BadRecords, eval_batches
from gnet_jax.lab.cost.ledger import network_ledger
from gnet_jax.lab.sweeps.sweep import RESULT_FILE, Cell
from gnet_jax.model.googlenet import GoogLeNet, every_head
from gnet_jax.training.loop import CompiledSteps, train
from gnet_jax.training.program import Run, model_of, prepare
from gnet_jax.training.sharding import compile_eval_step, put_batches, step_memory
from gnet_jax.training.step import TrainState, head_names
from gnet_jax.training.workdir import BusyError, MetricsFile, open_workdir, write_json

LOG_FILE = "log.txt"


class StoppedError(Exception):
    """A signal (the argument) stopped a run and its sweep; the run's state is saved."""


class Bench:
    """A config that is prepared and compiled once for the runs of all its seeds."""

    def __init__(self, config: Config) -> None:
        self._run = run = prepare(*with_start(config))
        self._steps = CompiledSteps(run.program)
        pixels = run.config.data.preprocessing
        step = functools.partial(head_sums, model=run.program.model, preprocessing=pixels)
        self._head_step = compile_eval_step(run.program.mesh, step)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Train or resume `cell` to its end and return its result; raises StoppedError."""
        own = dataclasses.replace(self._run.config, seed=cell.seed, workdir=str(cell.workdir))
        program = dataclasses.replace(self._run.program, config=own)
        run = dataclasses.replace(self._run, program=program)
        workdir = open_workdir(own, run.fingerprints())
        with (workdir / LOG_FILE).open("a") as log, contextlib.redirect_stdout(log):
            ended = train(run, workdir, self._steps)
        if ended.signal is not None:
            raise StoppedError(ended.signal)
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

    def _evaluate_heads(
        self, run: Run, state: TrainState
    ) -> tuple[int, dict[str, dict[str, float]]]:
        """Returns the number of validation images, and the mean `loss` and `top1` of each head."""
        d, program = run.config.data, run.program
        batches = eval_batches(
            run.val,
            batch_size=program.eval_batch_size,
            preprocessing=d.preprocessing,
            threads=d.threads,
            bad=BadRecords(run.val, d.bad_limit),
        )
        names = head_names(program.model)
        count, loss_H, top1_H = 0, np.zeros(len(names)), np.zeros(len(names))
        for batch in put_batches(batches, program.mesh, program.eval_batch_size):
            sums = jax.device_get(self._head_step(state, batch))
            count += int(sums["count"])
            loss_H += sums["loss"]
            top1_H += sums["top1"]
        return count, {
            name: {"loss": float(loss) / count, "top1": float(top1) / count}
            for name, loss, top1 in zip(names, loss_H, top1_H, strict=True)
        }


def head_sums(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    *,
    model: GoogLeNet,
    preprocessing: Preprocessing,
) -> dict[str, jax.Array]:
    """Returns sums over the examples in the batch's mask: `count` (), `loss` (H,), `top1` (H,).

    The H heads are in the order of `head_names`. They run without dropout, so their losses can be
    compared. Averaged parameters are used if the state has them.
    """
    variables = state.average or {"params": state.params, "batch_stats": state.batch_stats}
    outputs = every_head(model, variables, preprocess(batch["image"], preprocessing=preprocessing))
    label_B, mask_B = batch["label"], batch["mask"]
    heads = (outputs.logits, *outputs.aux_logits)
    losses = [optax.softmax_cross_entropy_with_integer_labels(x, label_B) for x in heads]
    hits = [(jnp.argmax(x, axis=-1) == label_B) & mask_B for x in heads]
    return {
        "count": jnp.sum(mask_B, dtype=jnp.int32),
        "loss": jnp.stack([jnp.sum(jnp.where(mask_B, loss_B, 0.0)) for loss_B in losses]),
        "top1": jnp.stack([jnp.sum(hits_B, dtype=jnp.int32) for hits_B in hits]),
    }


def run_cells(
    cells: Sequence[Cell],
    configs: Mapping[str, Config],
    say: Callable[[str], None],
    *,
    retry_failed: bool = False,
) -> None:
    """Train every run of `cells` that has not ended, and save its result.

    `say` gets a line at the start and end of each run. With `retry_failed`, failed runs are
    tried again. Raises StoppedError if a signal arrived.
    """
    bench = functools.lru_cache(maxsize=1)(lambda name: Bench(configs[name]))
    for number, cell in enumerate(cells, 1):
        known = cell.result
        if known is not None and not (retry_failed and known["status"] == "failed"):
            continue
        what = f"{number}/{len(cells)} {cell.name}, seed {cell.seed}"
        say(f"{what} ... (log: {cell.workdir / LOG_FILE})")
        try:
            result = bench(cell.name).run(cell)
        except StoppedError:
            raise
        except BusyError as error:  # the other process will save the result
            say(f"{what}: skipped ({error})")
            continue
        except Exception as error:  # record the error, so that the other runs still train
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            result = {"status": "failed", "error": reason, "traceback": traceback.format_exc()}
            ended = f"failed, {reason}"
        else:
            ended = f"top-1 {result['top1']:.2%}, {result['images_per_sec']:.0f} images/s"
        cell.workdir.mkdir(parents=True, exist_ok=True)
        write_json(cell.workdir / RESULT_FILE, result)
        say(f"{what}: {ended}")


def relative_cost(config: Config) -> float:
    """Returns multiply-adds per image times epochs, or 0 if the network cannot be built."""
    try:
        model = model_of(config, config.model.num_classes or 10)
        return network_ledger(model, config.data.image_size).macs_with_aux * config.epochs
    except UserError:  # the run itself will fail and report it
        return 0.0


def images_per_sec(workdir: Path) -> float:
    """Returns the median training throughput (images/s) that a run logged."""
    lines, name = MetricsFile(workdir / "metrics.jsonl").read(), "perf/images_per_sec"
    return statistics.median(line[name] for line in lines if name in line)
