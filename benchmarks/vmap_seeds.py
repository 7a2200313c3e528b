"""Compare training a config's seeds together under vmap with training them one after another.

    python benchmarks/vmap_seeds.py ablate_block x1 --data.source folder:imagenette160

Arguments: a sweep, the name of one of its configs, and changes of its fields. Both ways run the
same steps in turns. For each way, prints the median milliseconds that one step of all seeds takes.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gnet_jax.cli.lab import Ablate
from gnet_jax.config.command import parse_sweep
from gnet_jax.convert.start import with_start
from gnet_jax.training.program import prepare, training_batches
from gnet_jax.training.sharding import use_compilation_cache

TURNS = 15


def timed(step: Callable[[], Any]) -> float:
    """Returns the seconds of one call, including its asynchronous computation."""
    began = time.perf_counter()
    jax.block_until_ready(step())
    return time.perf_counter() - began


def main(arguments: Sequence[str]) -> None:
    """Print the median time of one step of all seeds: one after another, and under vmap."""
    sweep, name, *changes = arguments
    given, options, _ = parse_sweep([sweep, *changes], "vmap_seeds.py", Ablate(), __doc__)
    config = given.configs[name]
    run, seeds = prepare(*with_start(config)), range(config.seed, config.seed + options.seeds)
    program = run.program
    configs = [dataclasses.replace(config, seed=seed) for seed in seeds]
    states = [dataclasses.replace(program, config=each).initial_state() for each in configs]
    batches = [next(training_batches(each, run.train, start_step=0)) for each in configs]
    batches = [jax.tree.map(jnp.asarray, dict(batch)) for batch in batches]
    one = jax.jit(program.train_step())
    together = jax.jit(jax.vmap(program.train_step()))
    stacked = [jax.tree.map(lambda *x: jnp.stack(x), *each) for each in (states, batches)]

    ways = {
        "one after another": lambda: [one(*each) for each in zip(states, batches, strict=True)],
        "under vmap": lambda: together(*stacked),
    }
    for step in ways.values():
        timed(step)  # compiles
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(TURNS):
        for way, step in ways.items():
            times[way].append(timed(step))
    for way, found in times.items():
        spread = f"{min(found) * 1e3:.1f} to {max(found) * 1e3:.1f}"
        print(f"{len(seeds)} seeds {way}: {statistics.median(found) * 1e3:.1f} ms ({spread})")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    use_compilation_cache()
    main(sys.argv[1:])
