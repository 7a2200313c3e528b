import hashlib
import pickle

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
