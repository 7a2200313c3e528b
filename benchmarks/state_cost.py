"""Time the guard and the save of a state: `python benchmarks/state_cost.py [WIDTH]`.

Prints the CPU milliseconds (medians, in turns) of the optimiser step with and without the guard,
which discards non-finite states. Then prints the wall milliseconds of a save (on the training
thread, in total, and for reading it back), of hashing and of a restore. WIDTH 1, the default, is
the full network: 13.4 million parameters, their momentum and their average.
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gnet_jax.config import OptimConfig
from gnet_jax.model.architecture import architecture
from gnet_jax.model.googlenet import GoogLeNet, init
from gnet_jax.training import step as steps
from gnet_jax.training.checkpoints.save import Checkpoints
from gnet_jax.training.checkpoints.verify import named_leaves, read_verified, write_digests
from gnet_jax.training.optimizer import make_optimizer

ROUNDS = 15


def full_state(width: float) -> tuple[steps.TrainState, steps.Optimizer]:
    """Returns a state of the paper's network with momentum and averaging, and its optimiser."""
    model = GoogLeNet(architecture("paper", 1000, width_multiplier=width))
    optimizer = make_optimizer(OptimConfig(averaging="ema"), 1000, 100_000)
    variables = init(model, jax.random.PRNGKey(0), 224)
    return steps.create_state(variables, optimizer, 0), optimizer


def guard(state: steps.TrainState, optimizer: steps.Optimizer) -> None:
    """Print the CPU time of the optimiser step with and without the guard."""

    def update(state, grads, *, guarded):
        metrics = {"loss": jnp.float32(1), "grad_norm": optax.tree.norm(grads)}
        updates, opt_state = optimizer.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        own = {"params": params, "batch_stats": {}}
        average = optax.incremental_update(own, state.average, 0.001)
        new = state.replace(
            step=state.step + 1, params=params, opt_state=opt_state, average=average
        )
        return steps.keep_finite(new, state, metrics) if guarded else (new, metrics)

    grads = jax.tree.map(lambda x: x * 1e-3, state.params)
    programs = {}
    for guarded in (False, True):
        jitted = jax.jit(partial(update, guarded=guarded), donate_argnums=0)
        programs[guarded] = jitted.lower(state, grads).compile()
    spent = {False: [], True: []}
    now = {guarded: jax.tree.map(jnp.copy, state) for guarded in programs}
    for _ in range(ROUNDS):
        for guarded, program in programs.items():
            before = time.process_time()
            now[guarded], metrics = program(now[guarded], grads)
            jax.block_until_ready((now[guarded], metrics))
            spent[guarded].append(1000 * (time.process_time() - before))
    without, with_guard = (statistics.median(spent[guarded][2:]) for guarded in (False, True))
    print(f"optimiser step: {without:.0f} ms of CPU time, with the guard {with_guard:.0f} ms")


def save(state: steps.TrainState) -> None:
    """Print the wall times of a save (on the training thread, in total), hashing and a restore."""
    size = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder), 1) as checkpoints:
        held, whole = [], []
        for step in range(1, 6):
            began = time.perf_counter()
            checkpoints.save(step, state)
            held.append(time.perf_counter() - began)
            checkpoints.wait()
            whole.append(time.perf_counter() - began)
        arrays = {name: np.array(x) for name, x in named_leaves(state).items()}
        began = time.perf_counter()
        write_digests(Path(folder), arrays, {})
        hashing = time.perf_counter() - began
        began = time.perf_counter()
        checkpoints.restore(5, jax.tree.map(_placed, state))
        restoring = time.perf_counter() - began
        reading = []
        for _ in range(5):
            began = time.perf_counter()
            read_verified(Path(folder) / "5")
            reading.append(time.perf_counter() - began)
    held_ms, whole_ms, reading_ms = (
        1000 * statistics.median(times) for times in (held, whole, reading)
    )
    print(
        f"a state of {size:.0f} MB: a save blocks training for {held_ms:.0f} ms and takes "
        f"{whole_ms:.0f} ms in all, {reading_ms:.0f} of them to read it back; hashing takes "
        f"{1000 * hashing:.0f} ms, and a verified restore takes {1000 * restoring:.0f} ms"
    )


def _placed(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("width", type=float, nargs="?", default=1.0, metavar="WIDTH")
    whole_state, its_optimizer = full_state(parser.parse_args().width)
    guard(whole_state, its_optimizer)
    save(whole_state)
