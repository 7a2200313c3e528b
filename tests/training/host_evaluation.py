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

from gnet_jax.config.command import Launch, parse_command
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.training.evaluation import evaluate
from gnet_jax.training.hosts.start import start
from gnet_jax.training.hosts.stop import StopRequest, Vote
from gnet_jax.training.loop import CompiledSteps
from gnet_jax.training.observe.console import Reporter
from gnet_jax.training.observe.faults import BadImages
from gnet_jax.training.program import prepare
from gnet_jax.training.sharding import data_mesh
from tests.tiny import tiny_arch, with_program

BATCH_SIZES = (16, 32, 104)


def counts(arguments: Sequence[str], mesh: Mesh) -> dict[int, dict[str, int]]:
    """`count`, `top1` and `top5` of the initial network, by the size of the batches."""
    run = prepare(parse_command(arguments, "train.py", Launch()).config)
    run = with_program(run, model=GoogLeNet(tiny_arch()), mesh=mesh)
    state = run.program.initial_state()
    found = {}
    for size in BATCH_SIZES:
        config = dataclasses.replace(run.config, eval_batch_size=size)
        with tempfile.TemporaryDirectory() as folder:
            reporter = Reporter(Path(folder), start_step=0, total_steps=1, enabled=False)
            sized = with_program(run, config=config)
            bad_images = BadImages(sized, Path(folder), reporter, 0)
            eval_step = CompiledSteps(sized.program).evaluate
            vote = Vote(mesh, StopRequest())
            values = evaluate(sized, eval_step, 0, state, bad_images=bad_images, vote=vote)
        count = int(values["val/count"])
        found[size] = {"count": count} | {
            name: round(values[f"val/{name}"] * count) for name in ("top1", "top5")
        }
    return found


if __name__ == "__main__":
    start(parse_command(sys.argv[1:], "train.py", Launch()).options)
    result = counts(sys.argv[1:], data_mesh())
    if jax.process_index() == 0:
        print(json.dumps(result))
