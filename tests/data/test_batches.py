import dataclasses
import hashlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import grain
import jax
import numpy as np
import pytest
from PIL import Image

from gnet_jax.config import AugmentConfig, Config, Preprocessing, UserError
from gnet_jax.data import batches
from gnet_jax.data.batches import (
    BadRecord,
    BadRecords,
    _order,
    batch_indices,
    eval_batches,
    order_fingerprint,
    prefetched,
    train_batches,
)
from gnet_jax.data.decode import ImageError
from gnet_jax.data.sources import DataError, Example
from gnet_jax.data.workers import CHUNK, _start_worker


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


OPTIONS = {
    "batch_size": 8,
    "preprocessing": Preprocessing(image_size=6),
    "augmentation": AugmentConfig(crop_area=(0.3, 1.0), crop_aspect=(0.75, 1.33)),
}


FIRST, SECOND = [47, 46, 25, 32, 8, 23, 9, 2], [0, 22, 6, 33, 27, 17, 13, 40]


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
def test_the_slices_of_all_hosts_are_the_batch_of_one_host(hosts):
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


def expected_crop(source, index, key):
    """The crop of `OPTIONS`, written out: the box drawn from `key`, resized by Pillow."""
    picture = Image.fromarray(source[index].image).convert("RGB")
    generator = np.random.default_rng(key)
    width, height = picture.size
    for _ in range(10):
        area = width * height * generator.uniform(0.3, 1.0)
        aspect = np.exp(generator.uniform(np.log(0.75), np.log(1.33)))
        w, h = np.sqrt(area * aspect), np.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = generator.uniform(0, width - w), generator.uniform(0, height - h)
            break
    else:
        pytest.fail("no draw fits; the test needs another key")
    box = left, top, left + w, top + h
    return np.asarray(picture.resize((6, 6), Image.Resampling.BILINEAR, box=box))


@pytest.mark.parametrize("host", [0, 1])
@pytest.mark.parametrize("step", [0, 6, 9])  # the first, one over the border of an epoch, a later
def test_image_and_label_are_those_of_the_index_and_the_crop_is_keyed_by_its_place(step, host):
    source = Labelled(50)
    (batch,) = take(1, source, seed=3, start_step=step, host=host, hosts=2)
    indices = batch_indices(50, Config(batch_size=8, seed=3), step + 1)
    for row in range(4):
        place = 4 * host + row
        assert batch["label"][row] == indices[place]
        expected = expected_crop(source, int(indices[place]), (3, step, place))
        np.testing.assert_array_equal(batch["image"][row], expected)
    assert batch["mask"].all()
    assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)


def test_the_order_is_that_of_earlier_runs():
    config = Config(batch_size=8, seed=1)
    first, second = (batch_indices(50, config, step).tolist() for step in (1, 2))
    assert first == FIRST
    assert second == SECOND
    assert len({*first, *second}) == 16


def test_crops_differ_between_epochs():
    source = Textured(8)
    first, second = take(2, source)
    by_label = [np.argsort(batch["label"]) for batch in (first, second)]
    assert (first["image"][by_label[0]] != second["image"][by_label[1]]).any()


@dataclasses.dataclass
class Labelled(Textured):
    """As `Textured`, with a class for each image."""

    class_names: tuple[str, ...] = tuple(map(str, range(50)))

    def __getitem__(self, index):
        return Example(super().__getitem__(index).image, index)


class Damaged(Labelled):
    """As `Labelled`, but those in `BAD` cannot be decoded."""

    BAD = frozenset({3, 4, 5, 17, 48, 49})

    def __getitem__(self, index):
        return Example(b"<html>", index) if index in self.BAD else super().__getitem__(index)


class KnownDamage(Labelled):
    """As `Damaged`, but the source itself tells: record files have checksums."""

    def __getitem__(self, index):
        if index in Damaged.BAD:
            raise ImageError("a corrupt record: it has a wrong checksum")
        return super().__getitem__(index)


def test_a_limit_allows_that_many_damaged_images_and_not_one_more():
    told = []
    records = [BadRecord(i, f"photo {i}", "cut short") for i in range(13)]
    bad = BadRecords(Numbered(50), 0.12, on_new=told.append, known=records[:1], listed_in="list")
    assert bad.allowed == 6
    bad.add(records[:6])
    bad.add(records[:6])  # again: each counts once
    assert (list(bad), told) == (records[:6], records[1:6])
    with pytest.raises(DataError, match=r"7 of 50 .* 12.00% allows 6:") as caught:
        bad.add(records[6:7])
    assert [f"photo {i}: cut short" in str(caught.value) for i in range(8)] == [True] * 7 + [False]
    assert "more" not in str(caught.value)
    with pytest.raises(DataError, match=r"13 of 50 ") as caught:
        bad.add(records)
    lines = str(caught.value).splitlines()
    assert lines[10] == "  photo 9: cut short"
    assert lines[11] == "  and 3 more, listed in list"
    assert BadRecords(Numbered(50), 0.1199).allowed == 5
    assert BadRecords(Numbered(50)).allowed == 0


def next_of(index):
    """The first good index from `index` on, written as plainly as can be."""
    return {3: 6, 4: 6, 5: 6, 17: 18, 48: 0, 49: 0}.get(index, index)


@pytest.mark.parametrize("kind", [Damaged, KnownDamage])
def test_a_damaged_image_is_replaced_by_the_next_good_one_of_the_source(kind):
    source, told = kind(50), []
    bad = BadRecords(source, 0.2, on_new=told.append)
    labels = stacked(take(19, source, bad=bad), "label")
    clean = stacked(take(19, Labelled(50)), "label")
    assert labels.tolist() == [next_of(index) for index in clean]
    assert len(bad) == len(told) == 6
    assert {record.index for record in told} == Damaged.BAD
    reason = (
        "not an image: the format is none of" if kind is Damaged else "a corrupt record: it has"
    )
    assert str(told[0]).startswith(f"example {told[0].index}: {reason}")


def identity(batches):
    """One hash over every pixel and label."""
    whole = hashlib.sha256()
    for batch in batches:
        whole.update(batch["image"].tobytes() + batch["label"].tobytes() + batch["mask"].tobytes())
    return whole.hexdigest()


def joined(parts):
    """The global batches of the slices that the hosts read."""
    return [
        {name: np.concatenate([part[name] for part in step]) for name in ("image", "label", "mask")}
        for step in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize(("hosts", "threads"), [(1, 3), (2, 4), (4, 1)])
def test_indices_crops_and_replacements_are_the_same_bytes_everywhere(hosts, threads):
    """Whatever the hosts, the threads and the step at which reading begins."""
    source = Damaged(50)
    whole = take(16, source, bad=BadRecords(source, 0.2))
    for start in (0, 5, 13):  # 6.25 steps are an epoch
        parts = []
        for host in range(hosts):
            options = {"host": host, "hosts": hosts, "threads": threads, "start_step": start}
            bad = BadRecords(source, 0.2)
            parts.append(take(16 - start, source, bad=bad, **options))
        assert identity(joined(parts)) == identity(whole[start:])


# Hashes and corrupt images in the order of their reports, as whole batches gave them at first, for
# batches of three chunks on one host and two on two: (batch size, first step, seed, host, hosts).
EARLIER = {
    (48, 5, 1, 0, 1): ("cc3970f74b2707d2", [4, 5, 48, 49, 17, 3]),
    (48, 5, 1, 0, 2): ("3115ad06acbe135e", [4, 5, 3, 49, 48, 17]),
    (48, 5, 1, 1, 2): ("364cdf26bd2fde54", [48, 49, 17, 5, 3, 4]),
    (40, 10**6, 7, 0, 1): ("2d58c8fef72af365", [5, 17, 48, 49, 3, 4]),
    (40, 10**6, 7, 0, 2): ("d6a1644ff9f116ac", [5, 17, 48, 49, 3, 4]),
    (40, 10**6, 7, 1, 2): ("5c5d83a774f4f7a8", [4, 5, 49, 17, 48]),
}


@pytest.mark.parametrize("key", EARLIER)
@pytest.mark.parametrize("threads", [1, 4])
def test_chunks_give_the_bytes_and_reports_of_whole_batches(key, threads):
    batch_size, start, seed, host, hosts = key
    told, source = [], Damaged(50)
    bad = BadRecords(source, 0.2, on_new=lambda record: told.append(record.index))
    options = {"batch_size": batch_size, "start_step": start, "seed": seed}
    batches = take(4, source, **options, host=host, hosts=hosts, threads=threads, bad=bad)
    assert (identity(batches)[:16], told) == EARLIER[key]


def test_chunks_give_the_evaluation_of_whole_batches():
    told, source = [], Damaged(50)
    bad = BadRecords(source, 0.2, on_new=lambda record: told.append(record.index))
    preprocessing = Preprocessing(image_size=6, resize_to=6)
    options = {"batch_size": 40, "threads": 3, "bad": bad}
    batches = eval_batches(source, preprocessing=preprocessing, **options)
    assert (identity(batches)[:16], told) == ("0378c5fe9ca57643", [3, 4, 5, 17, 48, 49])


@pytest.mark.parametrize("size", [1, 2, 50, 1_281_167])
@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_order_is_that_of_grains_data_set(size, seed):
    data = grain.MapDataset.range(size).seed(seed).shuffle().repeat()
    for start in (0, 3 * size - 2, 10**6 * size - 5):  # the later two cross the border of an epoch
        places = range(max(start, 0), start + 9)
        assert _order(size, seed, places).tolist() == [data[place] for place in places]


def test_a_host_orders_and_reads_only_its_own_slice(monkeypatch):
    ordered, read, source = [], [], Labelled(100_000, class_names=tuple(map(str, range(10**5))))

    def order(size, seed, places):
        ordered.append(places)
        return _order(size, seed, places)

    monkeypatch.setattr(batches, "_order", order)
    monkeypatch.setattr(Labelled, "__getitem__", lambda self, i: read.append(i) or Example(GREY, i))
    (batch,) = take(1, source, batch_size=4096, host=17, hosts=256)
    assert ordered[0] == range(17 * 16, 18 * 16)
    assert {len(places) for places in ordered} == {16}
    assert len(read) <= 16 * 3  # one batch, and two more in advance
    assert batch["image"].shape == (16, 6, 6, 3)


GREY = np.zeros((6, 6), np.uint8)


def test_threads_share_a_batch():
    met = threading.Barrier(4)

    class Slow(Numbered):
        def __getitem__(self, index):
            if index % CHUNK == 0:
                met.wait(30)  # until four threads read the first images of their chunks
            return super().__getitem__(index)

    options = {"batch_size": 64, "preprocessing": Preprocessing(image_size=6, resize_to=6)}
    (batch,) = eval_batches(Slow(64), threads=4, **options)
    assert batch["image"][:, 0, 0, 0].tolist() == list(range(64))


@pytest.mark.parametrize(("budget", "in_memory"), [(4, 4), (1, 2), (0, 2), (10**6, 17)])
def test_the_budget_limits_the_batches_in_memory(budget, in_memory, monkeypatch):
    """To as many as it holds, but at least two, and at most two per thread and one more."""
    read = []

    class Watched(Numbered):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    monkeypatch.setattr(batches, "PREFETCH_BYTES", budget * 32 * 6 * 6 * 3)
    loaded = train_batches(Watched(50), **OPTIONS | {"batch_size": 32}, seed=1, threads=8)
    next(loaded)
    deadline = time.monotonic() + 30
    while len(read) < 32 * in_memory and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    loaded.close()
    assert len(read) == 32 * in_memory


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_no_batch_on_a_device_is_overwritten(workers):
    """On a CPU, a device array may be the memory of the NumPy array that it was made of."""
    source = Textured(50)
    options = {"batch_size": 32, "preprocessing": Preprocessing(image_size=64), "seed": 1}
    loaded = train_batches(source, **OPTIONS | options, threads=2, workers=workers)
    on_device = [jax.device_put(batch["image"]) for batch in itertools.islice(loaded, 12)]
    loaded.close()
    expected = take(12, source, **options)
    for kept, batch in zip(on_device, expected, strict=True):
        np.testing.assert_array_equal(kept, batch["image"])


@pytest.mark.slow
def test_a_killed_worker_process_is_an_error_and_leaves_no_files():
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    loaded = train_batches(Labelled(50), **OPTIONS, seed=1, workers=2)
    next(loaded)
    if before:
        assert not [f for f in set(os.listdir("/dev/shm")) - before if f.startswith("pym-")]
    for process in multiprocessing.active_children():
        process.kill()
    with pytest.raises(DataError, match=r"--data\.workers exited") as raised:
        list(loaded)
    assert raised.value.exit_code == 1  # --supervise restarts the run
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_program_that_does_not_close_its_batches_exits():
    program = (
        "from gnet_jax.config import AugmentConfig, Preprocessing\n"
        "from gnet_jax.data.batches import train_batches\n"
        "from gnet_jax.data.sources import open_source\n"
        "batches = train_batches(open_source('digits', 'train'), batch_size=8, seed=1, workers=2,\n"
        "    preprocessing=Preprocessing(image_size=8), augmentation=AugmentConfig())\n"
        "print(next(batches)['image'].shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, "(8, 8, 8, 3)\n"), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_worker_processes_change_nothing_and_report_damaged_images(workers):
    source = Damaged(50)
    bad, bad_there = BadRecords(source, 0.2), BadRecords(source, 0.2)
    whole = take(20, source, bad=bad)
    batches = train_batches(
        source, **OPTIONS, seed=1, workers=workers, threads=2, start_step=6, bad=bad_there
    )
    there = list(itertools.islice(batches, 14))
    processes = multiprocessing.active_children()
    assert len(processes) == workers
    batches.close()
    assert not any(process.is_alive() for process in processes)
    assert identity(there) == identity(whole[6:])
    assert {record.index for record in bad_there} == Damaged.BAD
    strict = train_batches(source, **OPTIONS, seed=1, workers=workers)
    with pytest.raises(DataError, match="not an image"):
        list(strict)


def test_a_late_start_reads_no_earlier_batch():
    read = []

    class Watched(Numbered):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    take(1, Watched(50), start_step=10**9)
    assert 8 <= len(read) <= 8 * 4  # a batch in this process, and those that are loaded ahead


def test_one_damaged_image_above_the_limit_is_an_error_that_names_it():
    source = Damaged(50)
    with pytest.raises(DataError, match=r"(?s)0.00%.*example \d+: not an image"):
        take(19, source)
    bad = BadRecords(source, 5 / 50, listed_in="list.jsonl")
    with pytest.raises(DataError, match=r"6 of 50 .* 10.00% allows 5") as caught:
        take(19, source, bad=bad)
    assert all(f"example {index}: not an" in str(caught.value) for index in Damaged.BAD)


def test_a_source_with_only_damaged_images_stops_at_the_limit():
    read = []

    class Nothing(Numbered):
        def __getitem__(self, index):
            read.append(index)
            return Example(b"", 0)

    source = Nothing(100_000)
    with pytest.raises(DataError, match="corrupt"):
        take(1, source, bad=BadRecords(source, 0.001))
    assert len(read) <= 3 * 101  # three batches may be loaded at once


def test_a_file_that_cannot_be_read_is_named_and_not_replaced():
    class Gone(Numbered):
        def __getitem__(self, index):
            raise FileNotFoundError(2, "No such file or directory", "x.jpg")

    source = Gone(50)
    with pytest.raises(DataError, match=r"example \d+ \(No such file"):
        take(1, source, bad=BadRecords(source, 0.5))


@pytest.mark.parametrize("kind", [Damaged, KnownDamage])
@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_leaves_damaged_images_out(hosts, kind):
    source, labels = kind(50), []
    found = []
    for host in range(hosts):
        bad = BadRecords(source, 0.2)
        options = {"batch_size": 16, "host": host, "hosts": hosts, "bad": bad}
        preprocessing = Preprocessing(image_size=6, resize_to=6)
        for batch in eval_batches(source, preprocessing=preprocessing, **options):
            labels += list(batch["label"][batch["mask"]])
            assert not batch["image"][~batch["mask"]].any()
        found += [record.index for record in bad]
    assert sorted(labels) == sorted(set(range(50)) - Damaged.BAD)
    assert sorted(found) == sorted(Damaged.BAD)


def test_the_order_has_its_own_fingerprint():
    known = order_fingerprint(50, 1)
    assert (
        known == "e2f86f7fecac4b84"
    )  # as every checkpoint holds it: another value is another order
    assert order_fingerprint(2000, 1) == "44107fcfca10cf8b"  # of the first thousand of two epochs
    others = [order_fingerprint(51, 1), order_fingerprint(50, 2), order_fingerprint(100_000, 1)]
    assert len({known, *others}) == 4


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_out_of_range_is_an_error(label):
    with pytest.raises(DataError, match=rf"example \d+ has label {label}, .* 0 to 9"):
        take(1, Numbered(8, labels=[label] * 8))


def test_a_batch_that_does_not_divide_over_the_hosts_is_refused():
    with pytest.raises(DataError, match=r"8 images .* 3 hosts"):
        take(1, hosts=3)


@pytest.mark.parametrize(
    ("size", "batch_size", "steps"),
    [(103, 16, 7), (103, 104, 1), (104, 104, 1), (105, 104, 2), (96, 16, 6)],
)
@pytest.mark.parametrize("hosts", [1, 4])
def test_evaluation_counts_every_example_once(size, batch_size, steps, hosts):
    preprocessing = Preprocessing(image_size=6, resize_to=6)
    seen = []
    for host in range(hosts):
        options = {"batch_size": batch_size, "threads": 2, "host": host, "hosts": hosts}
        batches = [*eval_batches(Numbered(size), preprocessing=preprocessing, **options)]
        assert len(batches) == steps
        for batch in batches:
            assert batch["image"].shape == (batch_size // hosts, 6, 6, 3)
            seen += list(batch["image"][batch["mask"], 0, 0, 0])
            assert (batch["label"] == batch["image"][:, 0, 0, 0] % 10).all()
            assert not batch["image"][~batch["mask"]].any()
    assert sorted(seen) == list(range(size))


def test_evaluation_reads_central_crops_in_order():
    source = Textured(9)
    preprocessing = Preprocessing(image_size=6, resize_to=8)
    images = stacked(eval_batches(source, batch_size=3, preprocessing=preprocessing))
    for index in range(9):
        picture = Image.fromarray(source[index].image).convert("RGB")  # 10 wide, 12 high
        resized = picture.resize((8, 10), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(images[index], np.asarray(resized)[2:8, 1:7])


def test_results_are_prefetched_in_order_and_errors_come_as_they_are():
    calls = []

    def load(number):
        calls.append(number)
        if number == 7:
            raise UserError("seven")
        if number == 1007:
            raise KeyError("a bug")
        return number**2

    results = prefetched(load, range(3, 9), threads=3)
    assert [next(results) for _ in range(4)] == [9, 16, 25, 36]
    with pytest.raises(UserError, match=r"^seven$"):
        next(results)
    assert list(prefetched(load, range(10, 13), threads=1)) == [100, 121, 144]
    with pytest.raises(KeyError):
        list(prefetched(load, range(1007, 1008), threads=1))
    calls.clear()
    endless = prefetched(load, range(10**6, 10**12), threads=2)
    assert next(endless) == 10**12
    time.sleep(0.2)
    endless.close()
    assert len(calls) <= 2 * 2 + 2 + 1


def test_a_worker_process_ignores_signals_and_watches_its_parent(monkeypatch):
    handlers, threads = {}, []
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(threading.Thread, "start", lambda thread: threads.append(thread))
    _start_worker()
    assert set(handlers.values()) == {signal.SIG_IGN}
    assert handlers.keys() == {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    assert [thread.daemon for thread in threads] == [True]
