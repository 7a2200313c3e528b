import pickle

import pytest

from gnet_jax.data import DataError, open_source


def test_a_part_is_evenly_spaced_over_the_whole():
    whole, part = open_source("digits", "train"), open_source("digits#100", "train")
    assert len(part) == 100
    assert (part.class_names, part.split) == (whole.class_names, "train")
    for index in (0, 1, 50, 99):
        place = index * 1437 // 100
        assert (part[index].image == whole[place].image).all()
        assert part[index].label == whole[place].label
        assert part.describe(index) == whole.describe(place)
    with pytest.raises(IndexError):
        part[100]


def test_a_part_of_more_than_there_is_is_the_whole():
    whole, part = open_source("digits", "val"), open_source("digits#9999", "val")
    assert len(part) == len(whole)
    assert part.fingerprint() == whole.fingerprint()


def test_the_fingerprint_tells_one_part_from_another():
    parts = [open_source(spec, "train") for spec in ("digits", "digits#100", "digits#101")]
    assert len({part.fingerprint() for part in parts}) == 3
    again = pickle.loads(pickle.dumps(parts[1]))  # as a worker process gets it
    assert again.fingerprint() == parts[1].fingerprint()


def test_no_image_is_no_part():
    with pytest.raises(DataError, match="#0"):
        open_source("digits#0", "train")
