import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from gnet_jax.config import Preprocessing
from gnet_jax.data import DataError, Example, eval_batches, train_batches


@dataclasses.dataclass
class Numbered:
    """A source whose image i is filled with the grey value i, and whose label is i % 10."""

    size: int
    class_names: tuple[str, ...] = tuple("0123456789")
    labels: Any = None

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        label = index % 10 if self.labels is None else self.labels[index]
        return Example(np.full((12, 10), index, np.uint8), label)

    def describe(self, index):
        return f"example {index}"

    def fingerprint(self):
        return "numbered"


OPTIONS = {"batch_size": 8, "image_size": 6, "crop_area": (0.3, 1.0), "crop_aspect": (0.75, 1.33)}


def take(count, source=None, **options):
    batches = train_batches(source or Numbered(50), **(OPTIONS | {"seed": 1} | options))
    return list(itertools.islice(batches, count))


def stacked(batches, name="image"):
    return np.concatenate([batch[name] for batch in batches])


def test_every_epoch_is_another_permutation_and_nothing_is_dropped():
    numbers = stacked(take(25), "image")[:, 0, 0, 0]  # 200 images: four epochs of 50
    epochs = numbers.reshape(4, 50)
    for epoch in epochs:
        assert sorted(epoch) == list(range(50))
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("start", [1, 6, 7, 13])
def test_a_batch_is_a_function_of_seed_and_step_alone(start):
    source = Textured(50)
    whole, resumed = take(16, source), take(3, source, start_step=start)
    np.testing.assert_array_equal(stacked(resumed), stacked(whole[start : start + 3]))
    other_seed = take(3, source, start_step=start, seed=2)
    assert (stacked(other_seed, "label") != stacked(resumed, "label")).any()


class Textured(Numbered):
    """As `Numbered`, but with pixels that tell one crop from another."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        texture = np.random.default_rng(index).integers(0, 256, (12, 10), np.uint8)
        return Example(texture, example.label)


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_hosts_slices_together_are_the_batch_of_one_host(hosts):
    source = Textured(50)
    whole = take(9, source)
    slices = [take(9, source, host=host, hosts=hosts) for host in range(hosts)]
    for step, batch in enumerate(whole):
        for name in ("image", "label"):
            joined = np.concatenate([part[step][name] for part in slices])
            np.testing.assert_array_equal(joined, batch[name])


@pytest.mark.parametrize("threads", [2, 5])
def test_the_number_of_threads_changes_nothing(threads):
    source = Textured(50)
    np.testing.assert_array_equal(
        stacked(take(12, source)), stacked(take(12, source, threads=threads))
    )


def test_crops_differ_between_epochs():
    source = Textured(8)
    first, second = take(2, source)
    by_label = [np.argsort(batch["label"]) for batch in (first, second)]
    assert (first["image"][by_label[0]] != second["image"][by_label[1]]).any()


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_out_of_range_is_an_error(label):
    with pytest.raises(DataError, match=f"label {label}, but the data has 10 classes"):
        take(1, Numbered(8, labels=[label] * 8))


def test_a_batch_that_does_not_divide_over_the_hosts_is_refused():
    with pytest.raises(DataError, match="batch of 8 does not divide over 3 hosts"):
        take(1, hosts=3)


@pytest.mark.parametrize("batch_size", [16, 32, 104])
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_evaluation_counts_every_example_once(batch_size, hosts):
    preprocessing = Preprocessing(image_size=6, resize_to=6)
    seen = []
    for host in range(hosts):
        for batch in eval_batches(
            Numbered(103),
            batch_size=batch_size,
            preprocessing=preprocessing,
            threads=2,
            host=host,
            hosts=hosts,
        ):
            assert batch["image"].shape == (batch_size // hosts, 6, 6, 3)
            seen += list(batch["image"][batch["mask"], 0, 0, 0])
            assert not batch["image"][~batch["mask"]].any()
    assert sorted(seen) == list(range(103))
