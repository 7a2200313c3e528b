"""The order of the data: every batch is a pure function of (seed, step).

Nothing is stored but the step: to resume is to slice. The batch does not depend on the number of
hosts, devices, processes or threads, for each host takes its contiguous slice of one global batch.
"""

import contextlib
from collections.abc import Callable, Generator
from typing import TypedDict

import grain
import numpy as np

from gnet_jax.config import AugmentConfig, Config, Decoder, Preprocessing, choose
from gnet_jax.config.recipes import needs
from gnet_jax.data.bad_images import BadRecord, BadRecords, next_good, read_example
from gnet_jax.data.decode import ImageError, central_crop, decode, pillow_crop
from gnet_jax.data.prefetch import held, prefetched
from gnet_jax.data.sources import DataError, Source
from gnet_jax.data.sources.source import digest


class Batch(TypedDict):
    """What one host ships to its devices for one step."""

    image: np.ndarray  # (B, S, S, 3) uint8
    label: np.ndarray  # (B,) int32
    mask: np.ndarray  # (B,) bool: False where an evaluation batch is padded or an image damaged


# What a thread or a process loads: a batch, and the damaged images that were met on the way.
_Loaded = tuple[Batch, list[BadRecord]]


def _host_slice(batch_size: int, host: int, hosts: int) -> slice:
    if batch_size % hosts:
        raise DataError(f"a batch of {batch_size} does not divide over {hosts} hosts")
    share = batch_size // hosts
    return slice(host * share, (host + 1) * share)


def _empty(images: int, size: int) -> Batch:
    return Batch(
        image=np.zeros((images, size, size, 3), np.uint8),
        label=np.zeros(images, np.int32),
        mask=np.zeros(images, bool),
    )


def _order(size: int, seed: int) -> grain.MapDataset[int]:
    """Indices without end: every epoch is another permutation."""
    return grain.MapDataset.range(size).seed(seed).shuffle().repeat()


def batch_indices(size: int, config: Config, step: int) -> np.ndarray:
    """Which of `size` examples the batch of `step` (1 is the first) holds, before any is replaced.

    int64, in the order of the global batch.
    """
    order = _order(size, config.seed)
    last = step * config.batch_size
    return np.array([order[place] for place in range(last - config.batch_size, last)], np.int64)


def order_fingerprint(size: int, seed: int) -> str:
    """A short hash of the order of `size` examples, and of the random numbers of their crops.

    It tells a version of Grain or NumPy that shuffles or draws otherwise. Hashed are the first
    thousand indices of the first two epochs.
    """
    order = _order(size, seed)
    places = [epoch * size + i for epoch in (0, 1) for i in range(min(size, 1000))]
    indices = np.array([order[place] for place in places], "<i8")
    return digest(indices, np.random.default_rng((seed, 0, 0)).random(4).astype("<f8"))


def cropper(decoder: Decoder) -> Callable[..., np.ndarray]:
    """What decodes and crops a training image: "pillow", or "fast" with the extra `[fast]`.

    Which it is, is never left to what is installed: their pixels differ a little.

    Raises:
        DataError: if a package that "fast" needs is missing.
    """
    if choose("data.decoder", decoder, {"pillow": True, "fast": False}):
        return pillow_crop
    try:
        from gnet_jax.data.fast_crop import fast_crop
    except ImportError as error:
        raise DataError(
            f"{needs(f'data.decoder {decoder}', error, 'fast')}, or leave it at pillow"
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
    """This host's share of every training batch from `start_step` on, without end.

    Every epoch is another permutation of the source; batches run over its border. The crop of an
    example is keyed by (seed, step, place in the global batch). In the place of an image that
    cannot be decoded comes the next of the source that can be.

    Args:
        batch_size: images a step over all hosts.
        preprocessing, augmentation: see `training_crop`; the pixels' values are left alone.
        decoder: see `cropper`.
        threads, workers: see `prefetched`.
        host, hosts: which slice of the global batch to read.
        bad: takes in the damaged images of each batch as it is taken; None allows none.

    Raises:
        DataError: as `cropper`; and when a batch is taken that holds a label out of range, a file
            that cannot be read, or more damaged images than `bad` allows.
    """
    bad = BadRecords(source) if bad is None else bad
    allowed = bad.allowed  # a number: worker processes are to hold nothing of `bad`
    mine = _host_slice(batch_size, host, hosts)
    crop = cropper(decoder)

    def load(step: int, indices: np.ndarray) -> _Loaded:
        batch = _empty(mine.stop - mine.start, preprocessing.image_size)
        found: dict[int, BadRecord] = {}
        for row, index in enumerate(indices[mine]):

            def read(image: bytes | np.ndarray, row: int = row) -> np.ndarray:
                generator = np.random.default_rng((seed, step, mine.start + row))
                return crop(image, generator, preprocessing, augmentation)

            good = next_good(source, int(index), found, allowed, read)
            if good is None:
                break  # `bad` refuses this batch, so nobody sees what it lacks
            batch["image"][row], batch["label"][row] = good
            batch["mask"][row] = True
        return batch, list(found.values())

    batches = _order(len(source), seed).batch(batch_size).map_with_index(held(load))
    return _taken(prefetched(batches[start_step:], threads, workers), bad)


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
    """This host's share of the whole source, once and in order; the last batch is padded.

    Padding repeats no example: it is black and its mask is False, so sums weighted by the mask
    count every example exactly once. An image that cannot be decoded is left out in the same way.
    `bad`, and what is raised, are as for `train_batches`.
    """
    bad = BadRecords(source) if bad is None else bad
    mine = _host_slice(batch_size, host, hosts)
    size = preprocessing.image_size

    def load(step: int) -> _Loaded:
        share = mine.stop - mine.start
        batch, found = _empty(share, size), []
        first = step * batch_size + mine.start
        for row, index in enumerate(range(first, min(first + share, len(source)))):
            try:
                example = read_example(source, index)
                batch["image"][row] = central_crop(decode(example.image), preprocessing)
            except ImageError as error:
                found.append(BadRecord(index, source.describe(index), str(error)))
                continue
            batch["label"][row] = example.label
            batch["mask"][row] = True
        return batch, found

    steps = -(-len(source) // batch_size)
    return _taken(prefetched(grain.MapDataset.range(steps).map(held(load)), threads), bad)


def _taken(loaded: Generator[_Loaded, None, None], bad: BadRecords) -> Generator[Batch, None, None]:
    """The batches, while `bad` takes in what was damaged in each: in the order of the steps, and
    in the thread that takes them.
    """
    with contextlib.closing(loaded):
        for batch, found in loaded:
            bad.add(found)
            yield batch
