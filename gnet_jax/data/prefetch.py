"""Work done ahead, by threads or by processes, without a change of what comes out."""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import grain
from absl import flags

from gnet_jax.config import UserError


class _Held(NamedTuple):
    error: UserError


def held(load: Callable[..., Any]) -> Callable[..., Any]:
    """`load` for a dataset's `map`, with its user errors held back until `prefetched` raises them.

    Grain would add its own words to their sentence.
    """

    def hold(*arguments: Any) -> Any:
        try:
            return load(*arguments)
        except UserError as error:
            return _Held(error)

    return hold


def _released(element: Any) -> Any:
    if isinstance(element, _Held):
        raise element.error
    return element


def prefetched(
    dataset: grain.MapDataset[Any], threads: int, workers: int = 0
) -> Generator[Any, None, None]:
    """The elements of `dataset` in order; close the generator to end its threads and processes.

    Args:
        threads: that compute elements, in each process.
        workers: processes to compute in, besides this one; 0 computes here. Process w computes the
            elements w, w + workers, ..., so that the order stays; each is started anew, holds its
            own copy of what `dataset` needs, and takes seconds to begin.
    """
    # Two elements a thread: enough to hide one slow image, little enough to hold in memory.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    if not workers:
        elements = iter(dataset.to_iter_dataset(options))
        try:
            yield from map(_released, elements)
        finally:
            elements.close()
        return
    if not flags.FLAGS.is_parsed():  # Grain reads its own; this project's are not absl's
        flags.FLAGS.mark_as_parsed()
    # As bytes, elements go through a pipe. Arrays would go through shared memory, which a kill -9
    # leaves full and which containers keep small.
    elements = iter(
        dataset.map(pickle.dumps)
        .to_iter_dataset(options)
        .mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
            worker_init_fn=_begin_worker,
        )
    )
    try:
        for element in elements:
            yield _released(pickle.loads(element))
    finally:
        elements.close()


def _begin_worker(_worker: int, _workers: int) -> None:
    """Leave the signals to the main process, which saves before it stops, and end when it ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # returns however the parent ended; a killed one tells nobody
        os._exit(1)
