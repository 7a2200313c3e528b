r"""Time GoogLeNet in this project, torchvision and onnxruntime, in turns on the same cores.

    python benchmarks/peers.py --peer-python PEERS/bin/python --json peers.json

Requires `pip install -e '.[export]'` here and torch, torchvision and onnxruntime in the peers' own
environment (see benchmarks/README.md). Compares, in float32 (or `--dtype`),

    train_bN     a training step of the paper's network with both auxiliary heads, using SGD with
                 momentum and weight decay, against torchvision's network in channels_last
                 (slightly smaller: 3x3 instead of 5x5, batch norm instead of LRN)
    forward_bN   the logits of N images, against torchvision's network in channels_last
    onnx_bN      the same logits, against onnxruntime running the file that `gnet export` writes
                 for the same weights

Shares of the peak rate are in per cent of the rate at which JAX or torch, whichever is faster,
multiplies two matrices of 4096 rows. They count the multiply-adds of the layers; Winograd's form of
a convolution needs fewer, so a share can be above 100 %.

The JSON contains medians of wall and CPU seconds per call, versions, threads, and our images per
second divided by the peer's, computed from wall time (`ratios`) and from CPU time (`cpu_ratios`).
`--compile-peer` also runs torchvision's network under torch.compile(mode="max-autotune"), in a
process of its own; the keys of these ratios end in `_to_compiled`. It requires a C++ compiler.
`--with-ynn` also times our network compiled with XLA's defaults, which pass operations to the
library YNNPACK (`gnet_jax.training.sharding.xla_options`). `--plain` also times our network with
the plain operations (`gnet_jax.ops`).

If JAX finds a GPU, both sides run on it, onnxruntime is skipped, and `--compile-peer` is the
default. In bfloat16, torchvision's network runs under autocast:

    python benchmarks/peers.py --peer-python PEERS/bin/python --dtype bfloat16 --plain \
        --batches 1 256 --train-batch 256 --json gpu.json

CPU seconds then show how much of a core the host spends to keep the GPU busy. `memory` is the
number of bytes that XLA plans for our training step; `peers` has the peaks of torchvision's.
"""

import argparse
import itertools
import os
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from side_by_side import Peer, Timer, in_turns, keep, machine, show, timer

from gnet_jax.config import LossConfig, OptimConfig, Preprocessing
from gnet_jax.convert.export import export
from gnet_jax.lab.cost.ledger import network_ledger
from gnet_jax.model.architecture import architecture
from gnet_jax.model.googlenet import GoogLeNet, init, strip_aux
from gnet_jax.model_folder import TrainedModel
from gnet_jax.ops.reference import REFERENCE
from gnet_jax.pods.plan import training_flops
from gnet_jax.training.optimizer import make_optimizer
from gnet_jax.training.sharding import call_in_this_thread, keep_freed_memory, xla_options
from gnet_jax.training.step import create_state, train_step

Options = dict[str, bool | str]  # XLA compiler options
PRODUCT = 4096  # rows of the matrices whose product has the highest rate
CALLS_ON_A_GPU = 20  # per measurement, because a call takes only milliseconds


def training(
    model: GoogLeNet, variables: Any, batch: int, size: int, options: Options
) -> tuple[Timer, int]:
    """Returns a timer of consecutive steps on the same images, and the bytes that a step needs."""
    optimizer = make_optimizer(OptimConfig(), steps_per_epoch=100, total_steps=1000)
    # A copy, because a step donates its state's memory.
    state = create_state(jax.tree.map(jnp.copy, variables), optimizer, seed=0)
    images = {"image": images_of(batch, size), "label": np.arange(batch, dtype=np.int32) % 1000}
    step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        augment=lambda image, label, key: (image, jax.nn.one_hot(label, 1000)),
        loss=LossConfig(),
    )
    images = jax.device_put(images)
    lowered = jax.jit(step, donate_argnums=0).lower(state, images)
    compiled = lowered.compile(compiler_options=options)

    def run() -> None:
        nonlocal state
        state, metrics = compiled(state, images)
        jax.block_until_ready(metrics)

    memory: Any = compiled.memory_analysis()
    return timer(run), memory.argument_size_in_bytes + memory.temp_size_in_bytes


def forward(model: GoogLeNet, variables: Any, batch: int, size: int, options: Options) -> Timer:
    """Returns a timer of computing the logits of a batch."""
    x_BHWC = jax.device_put(images_of(batch, size))

    def logits_of(variables: Any, x_BHWC: jax.Array) -> jax.Array:
        outputs: Any = model.apply(variables, x_BHWC)
        return outputs.logits

    without_heads = {group: strip_aux(tree) for group, tree in variables.items()}
    logits = jax.jit(logits_of).lower(without_heads, x_BHWC).compile(compiler_options=options)
    return timer(lambda: logits(without_heads, x_BHWC).block_until_ready())


def images_of(batch: int, size: int) -> np.ndarray:
    """Returns normalised images (B, S, S, 3) float32."""
    return np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype(np.float32)


def main() -> None:
    """Time everything in turns, then print and save the medians."""
    a = arguments()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peer uses the device too
    call_in_this_thread()
    kept = keep_freed_memory()  # as train.py and `gnet predict` do
    platform = jax.default_backend()
    on_cpu = platform == "cpu"
    model = GoogLeNet(architecture("paper", 1000), dtype=jnp.dtype(a.dtype))
    variables = init(model, jax.random.PRNGKey(0), a.size)
    with tempfile.TemporaryDirectory() as folder:
        setup = {
            "product": PRODUCT,
            "batches": a.batches,
            "train_batch": a.train_batch,
            "size": a.size,
            "threads": a.threads,
            "device": "cpu" if on_cpu else "cuda",
            "dtype": a.dtype,
            "compile": False,
            "onnx": str(_exported(model, variables, a.size, Path(folder))) if on_cpu else None,
        }
        peers = {"peer": Peer(a.peer_python, "torch_worker.py", setup)}
        if a.compile_peer if a.compile_peer is not None else not on_cpu:
            setup |= {"compile": True, "onnx": None}
            peers["compiled"] = Peer(a.peer_python, "torch_worker.py", setup)
    facts = {
        "ours": {name: version(name) for name in ("jax", "jaxlib", "flax")},
        "peers": {name: peer.facts for name, peer in peers.items()},
        "machine": machine() | {"device": jax.devices()[0].device_kind, "memory_kept": kept},
        "size": a.size,
        "dtype": a.dtype,
    }
    for name, value in facts.items():
        print(f"{name}: {value}")

    ways: dict[str, tuple[GoogLeNet, Options]] = {"ours": (model, xla_options(platform))}
    if a.with_ynn:
        ways["with_ynn"] = model, {}
    if a.plain:
        ways["plain"] = model.clone(ops=REFERENCE), xla_options(platform)
    a_NN = jnp.ones((PRODUCT, PRODUCT), a.dtype)
    product = jax.jit(jnp.matmul).lower(a_NN, a_NN).compile(compiler_options=xla_options(platform))
    timers = {"ours/product": timer(lambda: product(a_NN, a_NN).block_until_ready())}
    memory = {}
    for batch in a.batches:
        for way, (network, options) in ways.items():
            timers[f"{way}/forward_b{batch}"] = forward(network, variables, batch, a.size, options)
    name = f"train_b{a.train_batch}"
    for way, (network, options) in ways.items():
        options = options and xla_options(platform, training=True)
        timers[f"{way}/{name}"], memory[way] = training(
            network, variables, a.train_batch, a.size, options
        )
    for way, peer in peers.items():
        timers |= {f"{way}/{case}": peer.timer(case) for case in peer.facts["cases"]}
    calls = partial(calls_of, largest=max(a.batches)) if on_cpu else lambda _: CALLS_ON_A_GPU
    medians = in_turns(timers, a.repeats, calls)
    products = [medians.pop(name) for name in list(medians) if name.endswith("/product")]
    peak = 2 * PRODUCT**3 / min(each["wall"] for each in products)
    costs = network_ledger(model, a.size)
    flops = {"train": training_flops(costs), "forward": 2.0 * costs.macs}
    shares = {
        name: flops[name.split("/")[1].split("_")[0]] * batch_of(name) / each["wall"] / peak
        for name, each in medians.items()
        if name.startswith("ours/")
    }
    print(f"matrix product: {peak / 1e9:,.0f} GFLOP/s; ours reaches", end=" ")
    print(", ".join(f"{share:.0%} in {name[5:]}" for name, share in shares.items()))
    for peer in peers.values():
        peer.close()
    ratios = _show_ratios(medians, list(ways), list(peers))
    facts |= {"peak": peak, "shares": shares}
    keep(a.json, facts | {"medians": medians, "repeats": a.repeats, "memory": memory} | ratios)


def _exported(model: GoogLeNet, variables: Any, size: int, folder: Path) -> Path:
    """Write the network to an ONNX file that computes in float32; returns the file's path."""
    model = model.clone(dtype=jnp.float32)
    preprocessing = Preprocessing(image_size=size, resize_to=size)
    names = tuple(f"class {n}" for n in range(1000))
    graph = folder / "paper.onnx"
    export(TrainedModel(model, variables, preprocessing, names, {}), graph)
    return graph


def _show_ratios(
    medians: dict[str, dict[str, float]], ways: list[str], peers: list[str]
) -> dict[str, dict[str, float]]:
    """Print images/s of ours, each way, and of each peer; returns `ratios` and `cpu_ratios`."""
    kept, rows = {}, []
    for way, peer in itertools.product(ways, peers):
        suffix = ("" if way == "ours" else f"_{way}") + ("" if peer == "peer" else f"_to_{peer}")
        names = sorted(
            (each.removeprefix(f"{peer}/") for each in medians if each.startswith(f"{peer}/")),
            key=lambda name: (name.partition("_")[0], batch_of(name)),
        )
        pairs = {name: (medians[ours_for(name, way)], medians[f"{peer}/{name}"]) for name in names}
        for key, kind in (("ratios", "wall"), ("cpu_ratios", "cpu")):
            kept[key + suffix] = {name: b[kind] / a[kind] for name, (a, b) in pairs.items()}
        for name, both in pairs.items():
            rates = (f"{batch_of(name) / each['wall']:.1f}" for each in both)
            cpu = (f"{1e3 * each['cpu'] / batch_of(name):.1f}" for each in both)
            by_wall, by_cpu = (
                f"{kept[key + suffix][name]:.2f}" for key in ("ratios", "cpu_ratios")
            )
            rows.append((name, way, peer, *rates, by_wall, *cpu, by_cpu))
    columns = ("images/s", "peer's", "ratio", "CPU ms per image", "peer's", "ratio")
    show(("", "", "", *columns), rows)
    return kept


def ours_for(name: str, way: str) -> str:
    """Returns the name of our timer to compare with the peer's case `name`."""
    return f"{way}/{name.replace('onnx', 'forward')}"


def batch_of(name: str) -> int:
    """Returns the number of images per call of a case."""
    return int(name.rpartition("_b")[2])


def calls_of(name: str, largest: int) -> int:
    """Returns the calls per measurement: more for small batches, so that all take equally long."""
    return 1 if "train" in name or "product" in name else max(1, largest // batch_of(name) // 2)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", required=True, help="python of the peers' environment")
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 8, 32], help="for the forward pass"
    )
    parser.add_argument("--train-batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224, help="side of the images, in pixels")
    parser.add_argument("--with-ynn", action="store_true", help="also time ours using YNNPACK")
    parser.add_argument("--plain", action="store_true", help="also time our plain operations")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--compile-peer",
        action=argparse.BooleanOptionalAction,
        help="also time torchvision's network under torch.compile (default: on GPUs)",
    )
    parser.add_argument(
        "--threads", type=int, default=machine()["cores"], help="threads of the peers"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
