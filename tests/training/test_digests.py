import json

import numpy as np
import pytest

from gnet_jax.training.checkpoints.storage import (
    DamageError,
    add_notes,
    check_arrays,
    named_leaves,
    read_digests,
    write_digests,
)

ARRAYS = {"a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.array(7, np.int32)}


@pytest.fixture
def folder(tmp_path):
    write_digests(tmp_path, ARRAYS, {"top1": 0.5})
    return tmp_path


def test_what_was_written_is_found_again(folder):
    digests = read_digests(folder)
    assert digests["top1"] == 0.5
    check_arrays(ARRAYS, digests["arrays"])


def test_notes_are_added_under_the_same_seal(folder):
    add_notes(folder, {"top1": 0.75, "more": 1})
    digests = read_digests(folder)
    assert (digests["top1"], digests["more"]) == (0.75, 1)
    check_arrays(ARRAYS, digests["arrays"])
    assert [file.name for file in folder.iterdir()] == ["digests.json"]


def flipped(array):
    changed = array.copy()
    changed.view(np.uint8).flat[5] ^= 1
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a/kernel": flipped(ARRAYS["a/kernel"])}, "a/kernel has other bits than were saved"),
        ({"a/kernel": ARRAYS["a/kernel"].reshape(3, 2)}, r"is float32 \[3, 2\], saved was float32"),
        ({"step": np.array(7, np.int64)}, r"step is int64 \[\], saved was int32 \[\]"),
        ({"more": np.zeros(1)}, "more was not there"),
    ],
)
def test_every_change_is_named(folder, change, message):
    with pytest.raises(DamageError, match=message):
        check_arrays(ARRAYS | change, read_digests(folder)["arrays"])


def test_a_missing_array_is_named(folder):
    with pytest.raises(DamageError, match="step is missing"):
        check_arrays({"a/kernel": ARRAYS["a/kernel"]}, read_digests(folder)["arrays"])


def test_the_list_of_digests_vouches_for_itself(folder):
    file = folder / "digests.json"
    whole = file.read_text()
    better = json.loads(whole) | {"top1": 0.9}
    for text in (json.dumps(better), whole[:-20], "", "[]", "{}", whole.replace("0.5", "0.6")):
        file.write_text(text)
        with pytest.raises(DamageError, match=r"digests\.json is no longer what was written"):
            read_digests(folder)
    file.unlink()
    with pytest.raises(DamageError, match=r"digests\.json cannot be read \(No such file"):
        read_digests(folder)


def test_names_do_not_depend_on_the_kind_of_container():
    tree = {"a": [1, {"b": 2}], "c": (3,)}
    assert named_leaves(tree) == {"a/0": 1, "a/1/b": 2, "c/0": 3}
