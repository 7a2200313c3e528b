"""Load batches, and record corrupt images. Each global batch is a pure function of (seed, step).

The batches do not depend on the number of hosts, devices, processes or threads. Each host loads a
contiguous slice of the global batch, in chunks that its threads or processes share.
"""

import contextlib
import dataclasses
import itertools
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np

from gnet_jax.config import AugmentConfig, Config, Decoder, Preprocessing, choose
from gnet_jax.config.paths import as_text
from gnet_jax.config.recipes import needs
from gnet_jax.data.decode import ImageError, central_crop, decode, pillow_crop
from gnet_jax.data.sources import DataError, Example, Source, digest
from gnet_jax.data.workers import CHUNK, Batch, Chunk, Fill, in_processes

S = TypeVar("S")
T = TypeVar("T")


SHOWN = 10  # number of corrupt images that a message lists; the others are only counted
# Bytes of the batches that a host has in memory, including the one that it yields. There are at
# most two per thread and one more, and at least two, even if these are larger.
PREFETCH_BYTES = 2**29


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """An example whose image cannot be decoded."""

    index: int
    name: str  # `Source.describe(index)`
    reason: str

    def __str__(self) -> str:
        return f"{as_text(self.name)}: {self.reason}"


class BadRecords:
    """The corrupt images found so far in one source, without duplicates.

    `limit` is the largest fraction of examples that may be corrupt. `known` are the images found
    before a restart. `on_new` is called with each new one. `listed_in` is the file that lists all.
    """

    def __init__(
        self,
        source: Source,
        limit: float = 0.0,
        *,
        on_new: Callable[[BadRecord], object] | None = None,
        known: Iterable[BadRecord] = (),
        listed_in: object = None,
    ) -> None:
        self._images, self._limit = len(source), limit
        self.allowed = int(limit * len(source))  # largest number of examples that may be corrupt
        self._found = {record.index: record for record in known}
        self._on_new, self._listed_in = on_new, listed_in

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[BadRecord]:
        return iter(self._found.values())

    def add(self, found: Iterable[BadRecord]) -> None:
        """Add corrupt images. Raises DataError if more images are corrupt than the limit allows."""
        for record in found:
            if record.index not in self._found:
                self._found[record.index] = record
                if self._on_new is not None:
                    self._on_new(record)
        if len(self) <= self.allowed:
            return
        lines = [
            f"{len(self):,} of {self._images:,} images are corrupt, but the limit of "
            f"{self._limit:.2%} allows {self.allowed:,}:",
            *(f"  {record}" for record in itertools.islice(self, SHOWN)),
        ]
        if len(self) > SHOWN:
            where = "" if self._listed_in is None else f", listed in {self._listed_in}"
            lines.append(f"  and {len(self) - SHOWN:,} more{where}")
        lines.append(
            "fix or remove them (`gnet check-data` lists all in a data source), or raise the limit "
            "(--data.bad-limit of train.py, --bad-limit of gnet evaluate and gnet prepare)"
        )
        raise DataError("\n".join(lines))


def read_example(source: Source, index: int) -> Example:
    """Returns `source[index]`. Raises ImageError if the source detects that the record is corrupt.

    Raises DataError if the label is out of range or if a file cannot be read at the moment.
    Training stops at a DataError, but replaces corrupt images by others.
    """
    try:
        example = source[index]
    except OSError as error:
        raise DataError(
            f"cannot read {as_text(source.describe(index))} ({error.strerror or error}); run the "
            "same command again once it is readable"
        ) from error
    classes = len(source.class_names)
    if not 0 <= example.label < classes:
        raise DataError(
            f"{as_text(source.describe(index))} has label {example.label}, but the {classes} "
            f"classes are 0 to {classes - 1}; fix the label"
        )
    return example


Found = dict[int, BadRecord]  # the corrupt images of a chunk or batch by index, in order


def _order(size: int, seed: int, places: range) -> np.ndarray:
    """Returns the indices, (len(places),) int64, at `places` of the endless order of the examples.

    It is the order of `grain.MapDataset.range(size).seed(seed).shuffle().repeat()`, but no Python
    code runs for each example.
    """
    from grain.experimental import index_shuffle  # imports JAX, which worker processes do not need

    epochs, positions = np.divmod(np.arange(places.start, places.stop), size)
    seeds = (np.random.SeedSequence((seed, 1)).generate_state(1) + epochs) % 2**32
    last, rounds = itertools.repeat(size - 1), itertools.repeat(4)
    indices = map(index_shuffle, positions.tolist(), last, seeds.tolist(), rounds)
    return np.fromiter(indices, np.int64, len(places))


def batch_indices(size: int, config: Config, step: int) -> np.ndarray:
    """Returns the indices, (B,) int64, of the examples in the global batch of `step`.

    The first step is 1. `size` is the number of examples. Indices of corrupt images are included.
    """
    end = step * config.batch_size
    return _order(size, config.seed, range(end - config.batch_size, end))


def order_fingerprint(size: int, seed: int) -> str:
    """Returns a short hash of the order of the examples and of the random numbers for crops.

    After an update, it differs if Grain shuffles differently or NumPy generates other numbers.
    """
    epochs = (range(start, start + min(size, 1000)) for start in (0, size))
    indices = np.concatenate([_order(size, seed, places) for places in epochs])
    numbers = np.random.default_rng((seed, 0, 0)).random(4)
    return digest(indices.astype("<i8"), numbers.astype("<f8"))


def cropper(decoder: Decoder) -> Callable[..., np.ndarray]:
    """Returns the function that decodes and crops a training image.

    Raises DataError if a package that the decoder "fast" requires is missing. Pillow does not
    replace "fast" automatically, because its pixels differ slightly.
    """
    if choose("data.decoder", decoder, {"pillow": True, "fast": False}):
        return pillow_crop
    try:
        from gnet_jax.data.fast_crop import fast_crop
    except ImportError as error:
        raise DataError(
            f"{needs(f'data.decoder {decoder}', error, 'fast')}, or use data.decoder pillow"
        ) from error
    return fast_crop


def train_batches(
    source: Source,
    *,
    batch_size: int,
    preprocessing: Preprocessing,
    augmentation: AugmentConfig,
    decoder: Decoder = "pillow",
    seed: int,
    start_step: int = 0,
    threads: int = 1,
    workers: int = 0,
    host: int = 0,
    hosts: int = 1,
    bad: BadRecords | None = None,
) -> Generator[Batch, None, None]:
    """Yields, without end, this host's slice of each training batch after the first `start_step`.

    `batch_size` counts the images of all hosts. Each epoch is a new permutation of the source. The
    random crop of an image depends on the seed, the step and the position in the global batch. An
    image that cannot be decoded is added to `bad` when its batch is yielded, and is replaced by the
    next image of the source that can be decoded. `bad=None` allows no corrupt images. `prefetched`
    explains `threads` and `workers`. Raises the errors of `read_example`, `BadRecords.add` and
    `cropper`.
    """
    bad = BadRecords(source) if bad is None else bad
    places, size = _host_places(batch_size, host, hosts), preprocessing.image_size
    # Worker processes get a copy of `fill`, so it has the limit instead of `bad`.
    options = cropper(decoder), seed, bad.allowed, preprocessing, augmentation
    fill = partial(_fill_train, source, *options)

    def indices(step: int) -> np.ndarray:
        first = step * batch_size
        return _order(len(source), seed, range(first + places.start, first + places.stop))

    steps = range(start_step, sys.maxsize)
    return _load(fill, steps, places, indices, size, bad, threads, workers)


def _fill_train(
    source: Source,
    crop: Callable[..., np.ndarray],
    seed: int,
    allowed: int,
    preprocessing: Preprocessing,
    augmentation: AugmentConfig,
    chunk: Chunk,
    rows: Batch,
) -> Found:
    found: Found = {}
    for row, place in enumerate(chunk.places):
        index = int(chunk.indices[row])
        while len(found) <= allowed:  # if there are more, `bad.add` raises an error
            options = np.random.default_rng((seed, chunk.step, place)), preprocessing, augmentation
            if _fill_row(rows, row, found, source, index, crop, *options):
                break
            index = (index + 1) % len(source)
    return found


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    preprocessing: Preprocessing,
    threads: int = 1,
    host: int = 0,
    hosts: int = 1,
    bad: BadRecords | None = None,
) -> Generator[Batch, None, None]:
    """Yields this host's slice of each evaluation batch: all examples in order, then padding.

    Padding and images that cannot be decoded are black, and their mask is False.
    `train_batches` explains `bad` and the errors.
    """
    bad = BadRecords(source) if bad is None else bad
    places, size = _host_places(batch_size, host, hosts), preprocessing.image_size

    def indices(step: int) -> np.ndarray:
        return step * batch_size + np.arange(places.start, places.stop)

    def fill(chunk: Chunk, rows: Batch) -> Found:
        found: Found = {}
        for row, index in enumerate(chunk.indices.tolist()):
            options = found, source, index, _central, preprocessing
            if index >= len(source) or not _fill_row(rows, row, *options):
                rows["image"][row] = 0
        return found

    steps = range(-(-len(source) // batch_size))
    return _load(fill, steps, places, indices, size, bad, threads)


def _host_places(batch_size: int, host: int, hosts: int) -> range:
    if batch_size % hosts:
        raise DataError(f"a batch of {batch_size} images is not divisible by {hosts} hosts")
    share = batch_size // hosts
    return range(host * share, (host + 1) * share)


def _fill_row(
    rows: Batch,
    row: int,
    found: Found,
    source: Source,
    index: int,
    crop: Callable[..., np.ndarray],
    *options: Any,
) -> bool:
    """Fills a row with `crop(image, *options)`. Adds a corrupt image to `found`; returns False."""
    try:
        image, label = read_example(source, index)
        rows["image"][row] = crop(image, *options)
    except ImageError as error:
        found[index] = BadRecord(index, source.describe(index), str(error))
        return False
    rows["label"][row], rows["mask"][row] = label, True
    return True


def _central(image: bytes | np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    return central_crop(decode(image), preprocessing)


def _load(
    fill: Fill,
    steps: range,
    places: range,
    indices: Callable[[int], np.ndarray],
    size: int,
    bad: BadRecords,
    threads: int,
    workers: int = 0,
) -> Generator[Batch, None, None]:
    """Yields the batches of `steps`, and adds the corrupt images of each to `bad` before.

    The images have `size` x `size` pixels. `fill` loads the chunks, in `threads` threads of this
    process or, with `workers` > 0, of each of that many new processes.
    """
    chunks = range(0, len(places), CHUNK)
    threads_in_all = threads * max(1, workers)
    batches = PREFETCH_BYTES // (len(places) * size * size * 3)
    ahead = max(1, min(batches - 1, 2 * threads_in_all)) * len(chunks)

    def tasks() -> Iterator[tuple[Batch, Chunk, Batch]]:
        for step in steps:
            # Each batch has new memory, because a device may read a batch until its step is done.
            batch, own = _empty(len(places), size), indices(step)
            for each in (slice(first, first + CHUNK) for first in chunks):
                yield batch, Chunk(step, places[each], own[each]), _rows(batch, each)

    with contextlib.ExitStack() as stack:
        if workers:
            fill = stack.enter_context(in_processes(fill, size, threads, workers))

        def load(task: tuple[Batch, Chunk, Batch]) -> tuple[Batch, Found]:
            batch, chunk, rows = task
            return batch, fill(chunk, rows)

        loaded = prefetched(load, tasks(), threads_in_all, ahead)
        found: Found = {}
        for number, (batch, more) in enumerate(stack.enter_context(contextlib.closing(loaded)), 1):
            found |= more
            complete = number % len(chunks) == 0
            if complete or len(found) > bad.allowed:
                bad.add(found.values())
            if complete:
                yield batch
                found = {}


def _empty(n: int, size: int) -> Batch:
    pixels = np.empty((n, size, size, 3), np.uint8)  # clearing it would take longer
    return Batch(image=pixels, label=np.zeros(n, np.int32), mask=np.zeros(n, bool))


def _rows(batch: Batch, rows: slice) -> Batch:
    return Batch(image=batch["image"][rows], label=batch["label"][rows], mask=batch["mask"][rows])


def prefetched(
    load: Callable[[S], T], items: Iterable[S], threads: int, ahead: int | None = None
) -> Generator[T, None, None]:
    """Yields `load(item)` for each item, in order. Loads in advance, in `threads` threads.

    `ahead` is the number of results that are loaded or stored while the caller uses one. The
    default is two per thread, which is enough to bridge a slow image. Raises the errors of `load`.
    Close the generator to end its threads.
    """
    ahead = 2 * threads if ahead is None else ahead
    pool, waiting = ThreadPoolExecutor(threads), deque[Future[T]]()
    try:
        for item in items:
            waiting.append(pool.submit(load, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
