r"""Time the optimisation of a sheet of 16 images here and in Lucent, in turns on the same cores.

    python benchmarks/visualize.py --peer-python PEERS/bin/python --json visualize.json

Requires torch and torch-lucent (`pip install --no-deps torch-lucent`) in the peers' environment.
Both optimise one image for each of 16 channels of mixed4a, all at once, in inception5h's network
with random weights, with Adam, Fourier parameters and decorrelated colours, without transforms. The
JSON contains medians of the seconds per sheet, and our images per second divided by Lucent's.
"""

import argparse
from pathlib import Path

import jax
from side_by_side import Peer, in_turns, keep, machine, show, timer

from gnet_jax.config import Preprocessing
from gnet_jax.lab.look.objectives import channel
from gnet_jax.lab.look.visualize import visualize
from gnet_jax.model.googlenet import googlenet, init
from gnet_jax.training.sharding import call_in_this_thread, keep_freed_memory

CHANNELS, SIZE = 16, 224  # Lucent's network needs images of 224 pixels


def main() -> None:
    """Time both, print images per second, and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", required=True, help="python of the peers' environment")
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="steps of each sheet")
    a = parser.parse_args()
    call_in_this_thread()
    keep_freed_memory()
    model = googlenet("google_release")
    variables = init(model, jax.random.key(0), SIZE)
    preprocessing = Preprocessing(mean=(117.0, 117.0, 117.0))
    objectives = [channel("mixed4a", number) for number in range(CHANNELS)]

    def sheet() -> None:
        visualize(
            model, variables, objectives, preprocessing=preprocessing, steps=a.steps, robust=False
        )

    setup = {"channels": CHANNELS, "size": SIZE, "steps": a.steps, "threads": machine()["cores"]}
    peer = Peer(a.peer_python, "lucent_worker.py", setup)
    medians = in_turns({"ours": timer(sheet), "lucent": peer.timer("sheet")}, a.repeats)
    peer.close()
    rates = {name: CHANNELS * a.steps / each["wall"] for name, each in medians.items()}
    ratio = rates["ours"] / rates["lucent"]
    show(
        ("", "image steps/s", "ratio"),
        [
            ("ours", f"{rates['ours']:.1f}", f"{ratio:.2f}"),
            ("Lucent", f"{rates['lucent']:.1f}", ""),
        ],
    )
    facts = machine() | {"jax": jax.__version__} | peer.facts
    keep(a.json, facts | setup | {"medians": medians, "ratios": {"sheet": ratio}})


if __name__ == "__main__":
    main()
