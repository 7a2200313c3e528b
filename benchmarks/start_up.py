"""Measure the time from process start to the first training step, by phase.

    python benchmarks/start_up.py --json start_up.json

Each row times a new process; the rows take turns:

    import      `import gnet_jax` and everything that training imports, without TensorFlow
    init        the variables of the full network at 224x224, excluding the import
    cold        `train.py` to the end of its first step, with an empty compilation cache
    cached      the same again, with the compilation cache that `cold` has filled

`cold` and `cached` run the recipe of `make train`. To time another one, append its arguments:
`-- imagenet_paper --data.source ...`. Prints medians of wall and CPU seconds.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from side_by_side import keep, machine, show

ROOT = Path(__file__).parents[1]
IMPORT = """
import train, sys
from gnet_jax.training import loop, program
from gnet_jax.convert import start
assert "tensorflow" not in sys.modules
"""
INIT = """
import time, jax
from gnet_jax.model.googlenet import googlenet, init
key = jax.block_until_ready(jax.random.PRNGKey(0))
wall, cpu = time.perf_counter(), time.process_time()
jax.block_until_ready(init(googlenet("paper", 1000), key, 224))
print(time.perf_counter() - wall, time.process_time() - cpu)
"""
# Exits at the end of the first step, before anything is saved.
FIRST_STEP = """
import os, sys
import jax, train
from gnet_jax.training import sharding
compile_step = sharding.compile_train_step
def first_only(*args, **options):
    step = compile_step(*args, **options)
    def run(*inputs):
        jax.block_until_ready(step(*inputs))
        os._exit(0)
    return run
sharding.compile_train_step, sharding.step_memory = first_only, lambda _: None
sys.exit(train.main(sys.argv[1:]))
"""


def seconds_of(code: str, *arguments: str, cache: Path | None = None) -> dict[str, float]:
    """Returns wall and CPU seconds of a new Python process; for INIT, those that it prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if cache is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"the process exited with {done.returncode}: {done.stdout}")
    if code == INIT:
        wall, cpu = map(float, done.stdout.split())
        return {"wall": wall, "cpu": cpu}
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu}


def main() -> None:
    """Time the rows in turns, then print and save the medians."""
    a = arguments()
    found: dict[str, list[dict[str, float]]] = {"import": [], "init": [], "cold": [], "cached": []}
    before = machine()
    for _ in range(a.repeats):
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder) / "cache"
            found["import"].append(seconds_of(IMPORT))
            found["init"].append(seconds_of(INIT))
            for name in ("cold", "cached"):
                workdir = f"--workdir={folder}/{name}"
                found[name].append(seconds_of(FIRST_STEP, *a.train, workdir, cache=cache))
    medians = {
        name: {kind: statistics.median(each[kind] for each in rows) for kind in ("wall", "cpu")}
        for name, rows in found.items()
    }
    show(
        ("", "seconds", "CPU seconds"),
        [(name, f"{each['wall']:.2f}", f"{each['cpu']:.2f}") for name, each in medians.items()],
    )
    facts = {"machine": before, "arguments": a.train, "repeats": a.repeats}
    keep(a.json, facts | {"medians": medians})


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("train", nargs="*", help="arguments of train.py")
    return parser.parse_args()


if __name__ == "__main__":
    main()
