"""The replay file: a batch that did harm, and everything that is needed to run it again."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

import gnet_jax
from gnet_jax.config import json_text
from gnet_jax.data import batch_indices
from gnet_jax.training.digests import named_leaves
from gnet_jax.training.run import Run

NOTES = "notes"


def write_replay(
    workdir: Path,
    run: Run,
    state: Any,
    step: int,
    batch: dict[str, jax.Array],
    metrics: dict[str, float],
) -> Path:
    """Write `replay-STEP.npz` into `workdir`, and return its path.

    It holds arrays and JSON alone, no pickle: the global batch as the hosts shipped it, the places
    of its examples in the data, the state in front of the step, the config and the network.

    Args:
        workdir: the run's.
        run: its config, network and data.
        state: after `step`, which was skipped: all but the counts of steps is as before it.
        step: the one to run again; 1 is the first.
        batch: that it was given; of several hosts each must call this.
        metrics: that it gave.

    Raises:
        OSError: on the first host, if it cannot be written, as on a full disk; nothing is left.
    """
    file = workdir / f"replay-{step}.npz"
    whole = multihost_utils.process_allgather(batch, tiled=True)
    if jax.process_index():
        return file
    notes = {
        "version": gnet_jax.__version__,
        "step": step,
        "metrics": {name: repr(value) for name, value in metrics.items()},
        "config": dataclasses.asdict(run.config),
        "architecture": _as_json(run.model.arch),
        "steps_per_epoch": run.steps_per_epoch,
        "total_steps": run.total_steps,
        "loaded": [] if run.takeover is None else list(run.takeover.loaded),
    }
    arrays = {f"batch/{name}": np.asarray(value) for name, value in whole.items()}
    arrays |= {f"state/{name}": np.asarray(x) for name, x in named_leaves(_before(state)).items()}
    arrays["indices"] = batch_indices(len(run.train), run.config, step)
    arrays[NOTES] = np.frombuffer(json_text(notes).encode(), np.uint8)
    partial = file.with_suffix(".partial")
    try:
        with partial.open("wb") as opened:
            np.savez(opened, **arrays)  # pyright: ignore[reportArgumentType]
        partial.replace(file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return file


def _as_json(arch: Any) -> dict[str, Any]:
    fields = {field.name: getattr(arch, field.name) for field in dataclasses.fields(arch)}
    return fields | {"widths": {name: each._asdict() for name, each in arch.widths.items()}}


def _before(state: Any) -> Any:
    """The state with its counts of steps put back by the one that was skipped."""

    def counts_steps(x: Any) -> bool:
        return isinstance(x, optax.ScaleByScheduleState)

    back = jax.tree.map(
        lambda x: x._replace(count=x.count - 1) if counts_steps(x) else x,
        state,
        is_leaf=counts_steps,
    )
    return back.replace(step=back.step - 1)
