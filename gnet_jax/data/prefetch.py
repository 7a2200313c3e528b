"""Results computed ahead of time by threads or processes, in order."""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import grain
from absl import flags

from gnet_jax.config import UserError

T = TypeVar("T")


def prefetched(
    load: Callable[[int], T], numbers: range, threads: int, workers: int = 0
) -> Generator[T, None, None]:
    """Yields `load(n)` for each of `numbers`; close the generator to end its threads and processes.

    Args:
        load: called from any thread of any process; a UserError is raised to the consumer.
        numbers: consecutive integers.
        threads: number of threads in each process.
        workers: number of processes to compute in; 0 uses this one. Process w computes every
            `workers`-th result from w on. Each is a fresh process with its own copy of `load`, and
            takes seconds to start.
    """

    def attempt(number: int) -> T | UserError:
        try:
            return load(number)
        except UserError as error:  # returned, because Grain would extend its message
            return error

    # Two results per thread: enough to hide one slow image, few enough to keep in memory.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    dataset: Any = grain.MapDataset.range(numbers.start, numbers.stop).map(attempt)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain reads absl's flags, which this project does not use
            flags.FLAGS.mark_as_parsed()
        # Bytes go through a pipe. Arrays would go through shared memory, which stays full after
        # kill -9 and is small in containers.
        processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        dataset = dataset.map(pickle.dumps).to_iter_dataset(options)
        results = iter(dataset.mp_prefetch(processes, worker_init_fn=_start_worker))
    else:
        results = iter(dataset.to_iter_dataset(options))
    try:
        for result in results:
            loaded = pickle.loads(result) if workers else result
            if isinstance(loaded, UserError):
                raise loaded
            yield loaded
    finally:
        results.close()


def _start_worker(_worker: int, _workers: int) -> None:
    """Ignore signals, which the main process handles by saving, and exit when it exits."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # returns even if the parent was killed
        os._exit(1)
