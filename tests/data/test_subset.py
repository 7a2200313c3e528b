import hashlib
import pickle

import numpy as np
import pytest

from gnet_jax.data.sources import DataError, open_source


def test_a_subset_is_evenly_spaced():
    whole, part = open_source("digits", "train"), open_source("digits#100", "train")
    assert len(part) == 100
    assert (part.class_names, part.split) == (whole.class_names, "train")
    assert part.labels.tolist() == [part[i].label for i in range(100)]
    assert len(open_source("digits#1", "train")) == 1
    for index in (0, 1, 50, 99):
        place = index * 1437 // 100
        assert (part[index].image == whole[place].image).all()
        assert part[index].label == whole[place].label
        assert part.describe(index) == whole.describe(place)
    with pytest.raises(IndexError):
        part[100]


def test_a_subset_larger_than_the_source_is_the_source():
    whole = open_source("digits", "val")
    for count in (360, 361, 9999):
        part = open_source(f"digits#{count}", "val")
        assert len(part) == len(whole) == 360
        assert part.fingerprint() == whole.fingerprint()
    assert len(open_source("digits#359", "val")) == 359


def test_subsets_of_different_sizes_have_different_fingerprints():
    parts = [open_source(spec, "train") for spec in ("digits", "digits#100", "digits#101")]
    assert len({part.fingerprint() for part in parts}) == 3
    expected = hashlib.sha256(b"100 of 3b5d4b834352dc23").hexdigest()[:16]
    assert parts[1].fingerprint() == expected  # as every checkpoint holds it
    again = pickle.loads(pickle.dumps(parts[1]))  # as a worker process gets it
    assert again.fingerprint() == parts[1].fingerprint()


def test_a_subset_requires_at_least_one_image():
    with pytest.raises(DataError, match="#0"):
        open_source("digits#0", "train")


def test_a_training_budget_leaves_the_validation_images_whole():
    train, val = (open_source("digits#train=100", split) for split in ("train", "val"))
    assert len(train) == 100
    assert val.fingerprint() == open_source("digits", "val").fingerprint()
    assert len(open_source("digits#train=9999", "train")) == 1437


def test_a_percentage_is_of_the_images_of_each_split():
    assert len(open_source("digits#10%", "train")) == 143
    assert len(open_source("digits#10%", "val")) == 36
    assert len(open_source("digits#train=50%", "train")) == 718
    assert len(open_source("digits#200%", "val")) == 360


def test_held_out_images_are_training_images_that_are_not_trained_on():
    whole = open_source("digits", "train")
    train, val = (open_source("digits#holdout=37", split) for split in ("train", "val"))
    assert (len(train), len(val), val.split) == (1400, 37, "holdout")
    names = [[part.describe(i) for i in range(len(part))] for part in (train, val, whole)]
    assert sorted(names[0] + names[1]) == sorted(names[2])
    assert val.labels.tolist() == [val[i].label for i in range(37)]
    prints = {part.fingerprint() for part in (whole, train, val)}
    assert len(prints | {open_source("digits#holdout=38", "train").fingerprint()}) == 4


def test_images_are_held_out_of_a_training_budget():
    train, val = (open_source("digits#train=200#holdout=10%", s) for s in ("train", "val"))
    budget = open_source("digits#train=200", "train")
    names = {part.describe(i) for part in (train, val) for i in range(len(part))}
    assert names == {budget.describe(i) for i in range(200)}
    assert (len(train), len(val)) == (180, 20)


@pytest.mark.parametrize(
    "suffix", ["#holdout=1437", "#holdout=0", "#train=0", "#0%", "#holdout=100%"]
)
def test_a_part_without_images_is_refused(suffix):
    with pytest.raises(DataError, match=suffix):
        open_source(f"digits{suffix}", "train")


def test_held_out_images_are_of_all_classes_in_whatever_order_the_images_are(tmp_path):
    images, labels = np.full((100, 4, 4, 3), 200, np.uint8), np.arange(100) % 10
    images[:, 0] = 9
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    source = f"npz:{tmp_path}/d.npz"
    for order in (labels, np.sort(labels)):
        np.savez(tmp_path / "d.npz", x_train=images, y_train=order, x_test=images, y_test=labels)
        train, val = (open_source(f"{source}#holdout=10%", split) for split in ("train", "val"))
        assert np.bincount(val.labels).tolist() == [1] * 10
        assert np.bincount(train.labels).tolist() == [9] * 10
        assert np.bincount(open_source(f"{source}#train=20", "train").labels).tolist() == [2] * 10
