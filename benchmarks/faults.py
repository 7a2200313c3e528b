"""Inject thousands of faults: `python benchmarks/faults.py corrupt` or `... kill`.

corrupt: each case damages one file of the newest checkpoint (truncates, zeroes or deletes it, or
flips one bit), then restores. A third of the cases also damage one file of the older checkpoint,
another third all of its files. A restore must never return wrong data.
kill: a run is repeatedly killed with SIGKILL at random times and started again. Its final state
must be bit-identical to that of an uninterrupted run.

With `--bucket`, the checkpoints are in a bucket of an emulator of Cloud Storage, and every second
kill is in the middle of a save.
"""

import argparse
import collections
import contextlib
import itertools
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from gnet_jax.config.bucket import BucketPath, Place

KINDS = ("cut", "zeroed", "deleted", "flipped")


def damage(file: Place, kind: str, generator: np.random.Generator) -> None:
    """Damage a file in the given way. An empty file is deleted, whatever the kind."""
    content = bytearray(file.read_bytes())
    if kind == "deleted" or not content:
        file.unlink()
        return
    if kind == "cut":
        content = content[: generator.integers(len(content))]
    elif kind == "zeroed":
        content = bytearray(len(content))
    else:
        content[generator.integers(len(content))] ^= 1 << generator.integers(8)
    file.write_bytes(bytes(content))


def files_in(folder: Place) -> list[str]:
    """Returns the paths, relative to `folder`, of all files or objects below it."""
    if isinstance(folder, BucketPath):
        return folder.names()
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def fill(folder: Place, content: Mapping[str, bytes], changed: Collection[str] = ()) -> None:
    """Make `content`, by name, the files of `folder`, in which only `changed` may differ."""
    if isinstance(folder, BucketPath):
        found = set(files_in(folder))
        for name in found.difference(content):
            (folder / name).unlink()
        content = {name: content[name] for name in content.keys() - found.difference(changed)}
    else:
        shutil.rmtree(folder, ignore_errors=True)
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def corrupt(
    cases: int, folder: Path, seed: int = 0, processes: int = 1, bucket: BucketPath | None = None
) -> collections.Counter[str]:
    """Returns how many cases restored the "newest" or "older" step, or "stopped" with an error.

    Args:
        processes: number of processes that restore together; the first one damages the files.
        bucket: where the checkpoints are, instead of in `folder`.

    Raises:
        AssertionError: if a restored state is not bit-identical to the one saved at that step, or
            if the processes report different outcomes.
    """
    if processes == 1:
        return _corrupt(cases, bucket or folder, seed)
    from tests.training.processes import free_port

    port = free_port()
    context = multiprocessing.get_context("spawn")
    jobs = [
        context.Process(
            target=_corrupt_together, args=(cases, folder, seed, port, processes, number)
        )
        for number in range(processes)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0] * processes
    texts = [(folder / f"outcomes-{number}.json").read_text() for number in range(processes)]
    assert len(set(texts)) == 1, texts
    return collections.Counter(json.loads(texts[0]))


def _corrupt_together(
    cases: int, folder: Path, seed: int, port: int, processes: int, number: int
) -> None:
    """Run one of the processes of `corrupt` and write its outcomes to a file."""
    from gnet_jax.config.command import Launch
    from gnet_jax.training.hosts.start import start

    start(Launch(coordinator=f"localhost:{port}", num_processes=processes, process_id=number))
    outcomes = _corrupt(cases, folder, seed)
    (folder / f"outcomes-{number}.json").write_text(json.dumps(outcomes, sort_keys=True))


def _corrupt(cases: int, folder: Place, seed: int) -> collections.Counter[str]:
    import jax

    from gnet_jax.config import UserError
    from gnet_jax.training.checkpoints.save import Checkpoints
    from gnet_jax.training.checkpoints.verify import digest
    from gnet_jax.training.hosts.start import gather, run_on_all_hosts
    from gnet_jax.training.sharding import data_mesh, put_state, replicated

    main = jax.process_index() == 0
    generator, mesh = np.random.default_rng(seed), data_mesh()
    states = {}
    for step in (1, 2):
        arrays = {
            "step": np.int32(step),
            "rng": generator.integers(0, 2**32, 2, np.uint32),
            "params": {"kernel": generator.normal(size=(3, 3, 8, 16)).astype(np.float32)},
            "zeros": np.zeros((64, 8), np.float32),  # Orbax reads missing data as zeros
        }
        states[step] = put_state(arrays, mesh)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), states[1]
    )
    run_on_all_hosts(lambda: fill(folder, {}) if main else None)
    with Checkpoints(folder / "whole", keep_latest=2) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state)
    expected = {step: digest(state) for step, state in states.items()}
    files = {
        step: [f"{step}/{name}" for name in files_in(folder / "whole" / str(step))]
        for step in states
    }
    broken, whole = folder / "broken", folder / "whole"
    content = {name: (whole / name).read_bytes() for each in files.values() for name in each}
    changed: list[str] = []

    def break_one(case: int) -> None:
        fill(broken, content, changed)
        turn, number = divmod(case, len(files[2]))
        damage(broken / files[2][number], KINDS[turn % len(KINDS)], generator)
        others = ([], [files[1][generator.integers(len(files[1]))]], files[1])[turn % 3]
        changed[:] = [files[2][number], *others]
        for other in others:
            damage(broken / other, generator.choice(KINDS), generator)

    outcomes: collections.Counter[str] = collections.Counter()
    for case in range(cases):
        gather("")  # all processes have finished the previous case
        run_on_all_hosts(lambda: break_one(case) if main else None)  # noqa: B023 - called at once
        with Checkpoints(broken, keep_latest=2, tell=lambda _: None) as checkpoints:
            try:
                found = checkpoints.restore_latest(abstract)
            except UserError:  # raised by this process or another
                outcomes["stopped"] += 1
            else:
                assert found is not None, f"case {case}: no checkpoint found, but no error raised"
                step, state = found
                assert digest(state) == expected[step], f"case {case}: wrong data as step {step}"
                outcomes["newest" if step == 2 else "older"] += 1
    return outcomes


def run_to_the_end(
    workdir: Place, log: Path, cache: Path, epochs: float, save_every_steps: int
) -> None:
    """Train a tiny network in `workdir`, resuming if possible; run in a separate process."""
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    sys.stdout = sys.stderr = log.open("a")

    import jax

    from gnet_jax.training.loop import train
    from tests.tiny import tiny_run

    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    workdir.mkdir(exist_ok=True)
    train(tiny_run(workdir, epochs=epochs, save_every_steps=save_every_steps), workdir)


def committed(workdir: Place) -> int:
    """Returns the newest committed step, or 0 if there is none."""
    from gnet_jax.training.checkpoints.storage import open_storage

    return max(open_storage(workdir / "checkpoints").list_steps(), default=0)


def saving(workdir: BucketPath) -> bool:
    """Returns whether the bucket has a part of a checkpoint."""
    names = [name.partition("/") for name in (workdir / "checkpoints").names()]
    whole = {step for step, _, name in names if name == "commit_success.txt"}
    return bool({step for step, _, _ in names} - whole)


def kill(
    times: int, folder: Path, seed: int | None = None, bucket: BucketPath | None = None
) -> dict[str, int]:
    """Kill a run `times` times, each after a new checkpoint; compare it with an uninterrupted run.

    With `bucket`, the killed run is in the bucket, and the other one in `folder`.

    Returns:
        The number of `kills` and the `steps` of the run.

    Raises:
        AssertionError: if a start resumed no later than the one before it, or the bits differ.
    """
    from gnet_jax.training.checkpoints.save import Checkpoints
    from gnet_jax.training.checkpoints.verify import digest
    from tests.tiny import tiny_run

    # Fork processes from one that has imported everything, so that they start in a second or two.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gnet_jax.training.loop", "tests.tiny"])
    generator = np.random.default_rng(seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    epochs = times * 8 / 44
    steps, final, starts = 0, [], []
    for name, kills in (("whole", 0), ("killed", times)):
        workdir, before = folder / name, 0
        if bucket is not None and kills:
            workdir = bucket / name
        log = folder / f"{name}.log"
        for left in range(kills, -1, -1):
            every = 3 if kills else 10**6
            arguments = (workdir, log, folder / "cache", epochs, every)
            process = context.Process(target=run_to_the_end, args=arguments)
            process.start()
            while left and process.is_alive() and committed(workdir) <= before:
                time.sleep(0.01)
            if left:
                # Stop waiting if another step is saved: a fast run must not end between the kills.
                moment = time.monotonic() + generator.uniform(0, 0.3)
                while time.monotonic() < moment and committed(workdir) < before + 6:
                    time.sleep(0.01)
                while left % 2 and isinstance(workdir, BucketPath) and not saving(workdir):
                    assert process.is_alive(), log.read_text()[-2000:]
                assert process.is_alive(), log.read_text()[-2000:]
                process.kill()
            process.join()
            assert left or process.exitcode == 0, log.read_text()[-2000:]
            before = committed(workdir)
            starts = json.loads((workdir / "run.json").read_text())["starts"]
            assert left == 0 or len(starts) == kills - left + 1
        run = tiny_run(workdir, epochs=epochs)
        with Checkpoints(workdir / "checkpoints", keep_latest=2) as checkpoints:
            assert checkpoints.latest == run.program.total_steps
            final.append(
                digest(checkpoints.restore(run.program.total_steps, run.program.abstract_state()))
            )
        begun = [start["step"] for start in starts]
        assert all(a < b for a, b in itertools.pairwise(begun)), begun
        steps = run.program.total_steps
    assert final[0] == final[1], "the bits differ"
    return {"kills": times, "steps": steps}


def main() -> None:
    """Run the faults named on the command line and print the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    corruption = commands.add_parser("corrupt")
    bucket = "in a bucket of an emulator"
    corruption.add_argument("--bucket", action="store_true", help=bucket)
    corruption.add_argument("--cases", type=int, default=1000)
    corruption.add_argument(
        "--processes", type=int, default=1, help="number of processes that restore together"
    )
    killing = commands.add_parser("kill")
    killing.add_argument("--bucket", action="store_true", help=bucket)
    killing.add_argument("--times", type=int, default=200)
    arguments = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        place = {}
        if arguments.bucket:
            from tests.gcs_server import emulator

            stack.enter_context(emulator())
            place["bucket"] = BucketPath("pod", "faults")
        if arguments.command == "corrupt":
            outcomes = corrupt(
                arguments.cases, Path(folder) / "corrupt", processes=arguments.processes, **place
            )
            text = ", ".join(f"{outcomes[name]} {name}" for name in ("newest", "older", "stopped"))
            print(f"{arguments.cases} corrupt checkpoints: {text}; no wrong data", end="")
        else:
            done = kill(arguments.times, Path(folder) / "kill", **place)
            print(f"{done['kills']} kills of a run of {done['steps']} steps: same bits", end="")
    print(f" ({time.perf_counter() - began:.0f} s)")


if __name__ == "__main__":
    main()
