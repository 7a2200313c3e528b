"""Evaluation of one fixed network at several batch sizes, here or over several processes.

`python -m tests.training.host_evaluation ARGUMENTS_OF_TRAIN` prints the sums as JSON.
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from gnet_jax.config.command import parse_command
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.training.compiled_steps import CompiledSteps
from gnet_jax.training.evaluate import Evaluator
from gnet_jax.training.hosts.start import start
from gnet_jax.training.hosts.stop import StopRequest, Vote
from gnet_jax.training.observe.bad_images import Damage
from gnet_jax.training.observe.console import Reporter
from gnet_jax.training.program import prepare
from gnet_jax.training.sharding import data_mesh
from tests.tiny import tiny_arch

BATCH_SIZES = (16, 32, 104)


def counts(arguments: Sequence[str], mesh: Mesh) -> dict[int, dict[str, int]]:
    """`count`, `top1` and `top5` of the initial network, by the size of the batches."""
    run = prepare(parse_command(arguments, "train.py").config)
    run = dataclasses.replace(run, model=GoogLeNet(tiny_arch()), mesh=mesh)
    state = run.initial_state()
    found = {}
    for size in BATCH_SIZES:
        config = dataclasses.replace(run.config, eval_batch_size=size)
        with tempfile.TemporaryDirectory() as folder:
            reporter = Reporter(Path(folder), start_step=0, total_steps=1, enabled=False)
            sized = dataclasses.replace(run, config=config)
            damage = Damage(sized, Path(folder), reporter, 0)
            values = Evaluator(sized, CompiledSteps(), damage, Vote(mesh, StopRequest()))(0, state)
        count = int(values["val/count"])
        found[size] = {"count": count} | {
            name: round(values[f"val/{name}"] * count) for name in ("top1", "top5")
        }
    return found


if __name__ == "__main__":
    start(parse_command(sys.argv[1:], "train.py").launch)
    result = counts(sys.argv[1:], data_mesh())
    if jax.process_index() == 0:
        print(json.dumps(result))
