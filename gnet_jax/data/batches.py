"""Load batches, and record corrupt images. Each global batch is a pure function of (seed, step).

The batches do not depend on the number of hosts, devices, processes or threads. Each host loads a
contiguous slice of the global batch.
"""

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypedDict, TypeVar

import grain
import numpy as np
from absl import flags

from gnet_jax.config import AugmentConfig, Config, Decoder, Preprocessing, UserError, choose
from gnet_jax.config.paths import as_text
from gnet_jax.config.recipes import needs
from gnet_jax.data.decode import ImageError, central_crop, decode, pillow_crop
from gnet_jax.data.sources import DataError, Example, Source, digest

T = TypeVar("T")


SHOWN = 10  # number of corrupt images that a message lists; the others are only counted


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


class Batch(TypedDict):
    """The images that one host sends to its devices for one step."""

    image: np.ndarray  # (B, S, S, 3) uint8
    label: np.ndarray  # (B,) int32
    mask: np.ndarray  # (B,) bool: False for an evaluation's padding and corrupt images


_Loaded = tuple[Batch, dict[int, BadRecord]]  # a batch, and its corrupt images by index


def _order(size: int, seed: int) -> Any:
    return grain.MapDataset.range(size).seed(seed).shuffle().repeat()


def batch_indices(size: int, config: Config, step: int) -> np.ndarray:
    """Returns the indices, (B,) int64, of the examples in the global batch of `step`.

    The first step is 1. `size` is the number of examples. Indices of corrupt images are included.
    """
    order, end = _order(size, config.seed), step * config.batch_size
    return np.array([order[place] for place in range(end - config.batch_size, end)], np.int64)


def order_fingerprint(size: int, seed: int) -> str:
    """Returns a short hash of the order of the examples and of the random numbers for crops.

    After an update, it differs if Grain shuffles differently or NumPy generates other numbers.
    """
    order = _order(size, seed)
    places = [epoch * size + i for epoch in (0, 1) for i in range(min(size, 1000))]
    indices = np.array([order[place] for place in places], "<i8")
    return digest(indices, np.random.default_rng((seed, 0, 0)).random(4).astype("<f8"))


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
    allowed = bad.allowed  # worker processes get this number instead of a copy of `bad`
    places, crop = _host_places(batch_size, host, hosts), cropper(decoder)
    order = _order(len(source), seed)

    def load(step: int) -> _Loaded:
        loaded = _empty(len(places), preprocessing.image_size)
        for row, place in enumerate(places):
            index = int(order[step * batch_size + place])
            while len(loaded[1]) <= allowed:  # if there are more, `bad.add` raises an error
                generator = np.random.default_rng((seed, step, place))
                options = generator, preprocessing, augmentation
                if _load_row(loaded, row, source, index, crop, *options):
                    break
                index = (index + 1) % len(source)
        return loaded

    return _checked(prefetched(load, range(start_step, sys.maxsize), threads, workers), bad)


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
    places = _host_places(batch_size, host, hosts)

    def load(step: int) -> _Loaded:
        loaded = _empty(len(places), preprocessing.image_size)
        for row, place in enumerate(places):
            index = step * batch_size + place
            if index < len(source):
                _load_row(loaded, row, source, index, _central, preprocessing)
        return loaded

    steps = -(-len(source) // batch_size)
    return _checked(prefetched(load, range(steps), threads), bad)


def _host_places(batch_size: int, host: int, hosts: int) -> range:
    if batch_size % hosts:
        raise DataError(f"a batch of {batch_size} images is not divisible by {hosts} hosts")
    share = batch_size // hosts
    return range(host * share, (host + 1) * share)


def _empty(n: int, size: int) -> _Loaded:
    pixels = np.zeros((n, size, size, 3), np.uint8)
    return Batch(image=pixels, label=np.zeros(n, np.int32), mask=np.zeros(n, bool)), {}


def _load_row(
    loaded: _Loaded, row: int, source: Source, index: int, crop: Callable[..., Any], *options: Any
) -> bool:
    """Fills a row of the batch with `crop(image, *options)`. Returns False for a corrupt image."""
    batch, found = loaded
    try:
        image, label = read_example(source, index)
        batch["image"][row] = crop(image, *options)
    except ImageError as error:
        found[index] = BadRecord(index, source.describe(index), str(error))
        return False
    batch["label"][row], batch["mask"][row] = label, True
    return True


def _central(image: bytes | np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    return central_crop(decode(image), preprocessing)


def _checked(
    loaded: Generator[_Loaded, None, None], bad: BadRecords
) -> Generator[Batch, None, None]:
    """Yields the batches, and adds the corrupt images of each batch to `bad` in order."""
    with contextlib.closing(loaded):
        for batch, found in loaded:
            bad.add(found.values())
            yield batch


def prefetched(
    load: Callable[[int], T], numbers: range, threads: int, workers: int = 0
) -> Generator[T, None, None]:
    """Yields `load(n)` for each n in `numbers`, a range with step 1. Computes results in advance.

    With `workers` > 0, `load` is copied to that many new processes, each with `threads` threads.
    With 0 workers, it runs in `threads` threads of this process. If `load` raises a UserError, the
    generator raises it too. Close the generator to end its threads and processes.
    """

    def attempt(number: int) -> T | UserError:
        try:
            return load(number)
        except UserError as error:  # returned, because Grain would change its message
            return error

    # Two results per thread are enough to bridge a slow image.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    dataset: Any = grain.MapDataset.range(numbers.start, numbers.stop).map(attempt)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain reads absl's flags; this project sets none
            flags.FLAGS.mark_as_parsed()
        # Grain sends bytes through a pipe. It would send arrays through shared memory, which is not
        # freed after kill -9 and is small in containers.
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
    """Ignore signals, which the main process handles, and exit when the main process exits."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # returns even if the parent was killed
        os._exit(1)
