"""The order of the data: every batch is a pure function of (seed, step).

Nothing is stored but the step: to resume is to slice. The batch does not depend on the number of
hosts, devices or threads, for each host takes its contiguous slice of one global batch.
"""

from collections.abc import Iterator
from typing import Any, TypedDict

import grain
import numpy as np
from PIL import Image

from gnet_jax.config import Preprocessing
from gnet_jax.data.decode import ImageError, Interpolation, central_crop, decode, random_crop
from gnet_jax.data.sources import DataError, Example, Source


class Batch(TypedDict):
    """What one host ships to its devices for one step."""

    image: np.ndarray  # (B, S, S, 3) uint8
    label: np.ndarray  # (B,) int32
    mask: np.ndarray  # (B,) bool: False where an evaluation batch is padded


def _host_slice(batch_size: int, host: int, hosts: int) -> slice:
    if batch_size % hosts:
        raise DataError(f"a batch of {batch_size} does not divide over {hosts} hosts")
    share = batch_size // hosts
    return slice(host * share, (host + 1) * share)


def _checked(label: int, source: Source) -> int:
    if not 0 <= label < len(source.class_names):
        raise DataError(f"found label {label}, but the data has {len(source.class_names)} classes")
    return label


def _decoded(example: Example, source: Source, index: int) -> Image.Image:
    try:
        return decode(example.image)
    except ImageError as error:
        where = source.describe(index)
        raise DataError(f"{where} is {error}; mend it or take it out of the data") from error


def train_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    crop_area: tuple[float, float],
    crop_aspect: tuple[float, float],
    seed: int,
    interpolation: Interpolation = "bilinear",
    start_step: int = 0,
    threads: int = 1,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[Batch]:
    """This host's share of every training batch from `start_step` on, without end.

    Every epoch is another permutation of the source; batches run over its border. The crop of an
    example is keyed by (seed, step, place in the global batch).

    Args:
        batch_size: images a step over all hosts.
        image_size: side of the crops that are shipped, in pixels.
        crop_area, crop_aspect, interpolation: see `random_crop`.
        host, hosts: which slice of the global batch to read.
    """
    mine = _host_slice(batch_size, host, hosts)

    def load(step: int, indices: np.ndarray) -> Batch:
        images, labels = [], []
        for place, index in enumerate(indices[mine], start=mine.start):
            example = source[int(index)]
            generator = np.random.default_rng((seed, step, place))
            picture = _decoded(example, source, int(index))
            crop = random_crop(
                picture, generator, image_size, crop_area, crop_aspect, interpolation
            )
            images.append(crop)
            labels.append(_checked(example.label, source))
        return Batch(
            image=np.stack(images),
            label=np.array(labels, np.int32),
            mask=np.ones(len(labels), bool),
        )

    indices = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    batches = indices.batch(batch_size).map_with_index(load)
    return _prefetched(batches[start_step:], threads)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    preprocessing: Preprocessing,
    threads: int = 1,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[Batch]:
    """This host's share of the whole source, once and in order; the last batch is padded.

    Padding repeats no example: it is black and its mask is False, so sums weighted by the mask
    count every example exactly once.
    """
    mine = _host_slice(batch_size, host, hosts)
    size = preprocessing.image_size

    def load(step: int) -> Batch:
        share = mine.stop - mine.start
        batch = Batch(
            image=np.zeros((share, size, size, 3), np.uint8),
            label=np.zeros(share, np.int32),
            mask=np.zeros(share, bool),
        )
        first = step * batch_size + mine.start
        for place, index in enumerate(range(first, min(first + share, len(source)))):
            example = source[index]
            batch["image"][place] = central_crop(_decoded(example, source, index), preprocessing)
            batch["label"][place] = _checked(example.label, source)
            batch["mask"][place] = True
        return batch

    steps = -(-len(source) // batch_size)
    return _prefetched(grain.MapDataset.range(steps).map(load), threads)


def _prefetched(batches: grain.MapDataset[Any], threads: int) -> Iterator[Batch]:
    # Two batches a thread: enough to hide one slow image, little enough to hold in memory.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(batches.to_iter_dataset(options))
