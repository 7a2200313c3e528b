"""Load chunks of batches in worker processes, which share memory with the main process."""

import atexit
import contextlib
import math
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypedDict

import numpy as np

from gnet_jax.config import UserError
from gnet_jax.data.sources import DataError

CHUNK = 16  # number of images that a thread loads at a time


class Batch(TypedDict):
    """The images that one host sends to its devices for one step."""

    image: np.ndarray  # (B, S, S, 3) uint8
    label: np.ndarray  # (B,) int32
    mask: np.ndarray  # (B,) bool: False for an evaluation's padding and corrupt images


class Chunk(NamedTuple):
    """The images of a step that one thread loads."""

    step: int
    places: range  # in the global batch
    indices: np.ndarray  # of the examples, in the source


# Loads a chunk into as many rows of a batch, and returns its corrupt images by index, in order.
Fill = Callable[[Chunk, Batch], dict[int, Any]]


class WorkerError(DataError):
    """A worker process was killed or crashed."""

    exit_code = 1


@contextlib.contextmanager
def in_processes(fill: Fill, size: int, threads: int, workers: int) -> Iterator[Fill]:
    """Yields a function that runs `fill` in worker processes, `threads` calls at a time in each.

    A worker writes the images into memory that it shares with this process. Only the indices, the
    labels and the corrupt images are pickled.
    """
    context, idle = multiprocessing.get_context("spawn"), queue.SimpleQueue[Any]()
    with contextlib.ExitStack() as stack:
        for _ in range(workers):
            shape = threads, CHUNK, size, size, 3
            # RawArray maps a file that it has already deleted. The memory is therefore freed even
            # after kill -9, unlike `multiprocessing.shared_memory`. If /dev/shm is too small, as in
            # some containers, the file is in the temporary folder.
            memory = context.RawArray("B", math.prod(shape))
            ours, theirs = zip(*(context.Pipe() for _ in range(threads)), strict=True)
            process = context.Process(target=_work, args=(fill, theirs, memory, shape), daemon=True)
            process.start()
            stack.callback(process.join)
            for connection in theirs:
                connection.close()
            images = np.frombuffer(memory, np.uint8).reshape(shape)
            for connection, slot in zip(ours, images, strict=True):
                stack.enter_context(connection)  # the worker exits when it is closed
                idle.put((connection, slot))
        # If the program ends without closing the generator, multiprocessing would wait forever.
        atexit.register(stack.close)
        stack.callback(atexit.unregister, stack.close)

        def fill_remotely(chunk: Chunk, rows: Batch) -> dict[int, Any]:
            connection, slot = idle.get()
            try:
                connection.send(chunk)
                reply = connection.recv()
                if isinstance(reply, UserError):
                    raise reply
                found, rows["label"][:], rows["mask"][:] = reply
                rows["image"][:] = slot[: len(chunk.places)]
                return found
            except (EOFError, ConnectionError) as error:
                raise WorkerError(
                    "a process of --data.workers exited; if no error is printed above, the system "
                    "probably killed it because memory ran out: use fewer --data.workers"
                ) from error
            finally:
                idle.put((connection, slot))

        yield fill_remotely


def _work(
    fill: Fill, connections: Sequence[Connection], memory: Any, shape: tuple[int, ...]
) -> None:
    """Run a worker process: load chunks in one thread per connection until all are closed."""
    _start_worker()
    slots = np.frombuffer(memory, np.uint8).reshape(shape)
    with ThreadPoolExecutor(len(connections)) as pool:
        list(pool.map(partial(_answer, fill), connections, slots))


def _answer(fill: Fill, connection: Connection, images: np.ndarray) -> None:
    """Fill the shared `images` at each request. After an unexpected error, close `connection`."""
    with connection:
        while True:
            try:
                chunk = connection.recv()
            except EOFError:
                return
            n = len(chunk.places)
            rows = Batch(image=images[:n], label=np.zeros(n, np.int32), mask=np.zeros(n, bool))
            try:
                reply = fill(chunk, rows), rows["label"], rows["mask"]
            except UserError as error:
                reply = error
            connection.send(reply)


def _start_worker() -> None:
    """Ignore signals, which the main process handles, and exit when the main process exits."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # returns even if the parent was killed
        os._exit(1)
