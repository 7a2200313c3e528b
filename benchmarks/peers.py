"""GoogLeNet here, in torchvision and in onnxruntime, timed in turns on the same cores.

    python benchmarks/peers.py --peer-python PEERS/bin/python --json peers.json

Needs `pip install 'gnet_jax[export]'` here and, in the peers' own environment, torch, torchvision
and onnxruntime (see benchmarks/README.md). Compared are, in float32,

    train_bN     a training step: the paper's network, both auxiliary heads, SGD with momentum and
                 weight decay; against torchvision's in channels_last (a little smaller: 3x3 for
                 5x5, batch norm for LRN)
    forward_bN   the logits of N images; against torchvision's in channels_last
    onnx_bN      the same logits; against onnxruntime running `gnet export`'s graph of the same
                 weights

The JSON keeps medians of wall and CPU seconds a call, versions, threads, and `ratios`: images a
second here over the peer's, by the wall clock and (`cpu_ratios`) per second of CPU time.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
from side_by_side import Peer, Timer, in_turns, keep, machine, show, timer

from gnet_jax.config import LossConfig, OptimConfig, Preprocessing
from gnet_jax.data import Labels
from gnet_jax.model import GoogLeNet, architecture, init_variables, strip_aux
from gnet_jax.training.optimizer import make_optimizer
from gnet_jax.training.sharding import compile_train_step, data_mesh, put_state
from gnet_jax.training.step import create_state, train_step
from gnet_jax.weights import ModelFolder
from gnet_jax.weights.export import export


def training(model: GoogLeNet, variables: Any, batch: int, size: int) -> Timer:
    """Times one step after another, on the same images."""
    mesh = data_mesh()
    optimizer = make_optimizer(OptimConfig(), steps_per_epoch=100, total_steps=1000)
    # A copy: a step takes its state's memory.
    state = put_state(create_state(jax.tree.map(np.array, variables), optimizer, seed=0), mesh)
    images = {"image": images_of(batch, size), "label": np.arange(batch, dtype=np.int32) % 1000}
    step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        augment=lambda image, label, key, offset: (image, Labels(label)),
        loss=LossConfig(),
    )
    compiled = compile_train_step(mesh, step, state, images)
    images = jax.device_put(images)

    def run() -> None:
        nonlocal state
        state, metrics = compiled(state, images)
        jax.block_until_ready(metrics)

    return timer(run)


def forward(model: GoogLeNet, variables: Any, batch: int, size: int) -> Timer:
    """Times the logits of a batch."""
    x_BHWC = jax.device_put(images_of(batch, size))
    without_heads = {group: strip_aux(tree) for group, tree in variables.items()}
    logits = jax.jit(lambda variables, x_BHWC: model.apply(variables, x_BHWC).logits)
    return timer(lambda: logits(without_heads, x_BHWC).block_until_ready())


def images_of(batch: int, size: int) -> np.ndarray:
    """Normalised images (B, S, S, 3) float32."""
    return np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype(np.float32)


def main() -> None:
    """Time everything in turns, and print and keep the medians."""
    a = arguments()
    model = GoogLeNet(architecture("paper", 1000))
    variables = init_variables(model, jax.random.PRNGKey(0), a.size)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "paper.onnx"
        preprocessing = Preprocessing(image_size=a.size, resize_to=a.size)
        names = tuple(f"class {n}" for n in range(1000))
        export(ModelFolder(model, variables, preprocessing, names, {}), graph)
        setup = {
            "batches": a.batches,
            "train_batch": a.train_batch,
            "size": a.size,
            "threads": a.threads,
            "onnx": str(graph),
        }
        peer = Peer(a.peer_python, "torch_worker.py", setup)
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "flax": flax.__version__}
    facts = {"ours": versions, "peers": peer.facts, "machine": machine(), "size": a.size}
    for name, value in facts.items():
        print(f"{name}: {value}")

    timers: dict[str, Timer] = {}
    for batch in a.batches:
        timers[f"ours/forward_b{batch}"] = forward(model, variables, batch, a.size)
        for what in ("forward", "onnx"):
            timers[f"peer/{what}_b{batch}"] = peer.timer(f"{what}_b{batch}")
    name = f"train_b{a.train_batch}"
    timers[f"ours/{name}"] = training(model, variables, a.train_batch, a.size)
    timers[f"peer/{name}"] = peer.timer(name)
    medians = in_turns(timers, a.repeats, calls=lambda name: calls_of(name, max(a.batches)))
    peer.close()

    ratios, cpu_ratios, rows = {}, {}, []
    for name in (each.removeprefix("peer/") for each in timers if each.startswith("peer/")):
        ours = medians["ours/" + name.replace("onnx", "forward")]
        theirs, batch = medians[f"peer/{name}"], int(name.rpartition("_b")[2])
        ratios[name] = theirs["wall"] / ours["wall"]
        cpu_ratios[name] = theirs["cpu"] / ours["cpu"]
        rates = (f"{batch / seconds['wall']:.1f}" for seconds in (ours, theirs))
        cpu = (f"{1e3 * seconds['cpu'] / batch:.1f}" for seconds in (ours, theirs))
        rows.append((name, *rates, f"{ratios[name]:.2f}", *cpu, f"{cpu_ratios[name]:.2f}"))
    rows.sort(key=lambda row: (row[0].partition("_")[0], int(row[0].rpartition("_b")[2])))
    columns = ("images/s", "peer's", "ratio", "CPU ms an image", "peer's", "ratio")
    show(("", *columns), rows)
    kept = {"medians": medians, "ratios": ratios, "cpu_ratios": cpu_ratios, "repeats": a.repeats}
    keep(a.json, facts | kept)


def calls_of(name: str, largest: int) -> int:
    """Calls in one measurement: more where the batch is small, so that each takes about as long."""
    return 1 if "train" in name else max(1, largest // int(name.rpartition("_b")[2]) // 2)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", required=True, help="python of the peers' environment")
    parser.add_argument("--json", type=Path, help="where to keep the result")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="of forward")
    parser.add_argument("--train-batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224, help="side of the images, in pixels")
    parser.add_argument("--threads", type=int, default=machine()["cores"], help="of the peers")
    return parser.parse_args()


if __name__ == "__main__":
    main()
