import hashlib
import json
import struct

import numpy as np
import pytest

from gnet_jax.training.checkpoints.verify import (
    CorruptError,
    add_notes,
    find_difference,
    first_line,
    named_leaves,
    read_digests,
    read_workdir,
    write_digests,
)

ARRAYS = {"a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.array(7, np.int32)}


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "digests").mkdir()
    write_digests(tmp_path / "digests", ARRAYS, {"top1": 0.5})
    return tmp_path


def test_digests_hold_dtype_shape_and_the_sha256_of_the_bytes(checkpoint):
    digests = read_digests(checkpoint)
    assert digests["top1"] == 0.5
    sha256 = hashlib.sha256(struct.pack("<6f", *range(6))).hexdigest()
    assert digests["arrays"]["a/kernel"] == ["float32", [2, 3], sha256]
    assert digests["arrays"]["step"] == ["int32", [], hashlib.sha256(b"\7\0\0\0").hexdigest()]
    assert find_difference(ARRAYS, digests["arrays"]) is None


def test_notes_are_replaced_and_the_digests_stay(checkpoint):
    arrays = read_digests(checkpoint)["arrays"]
    add_notes(checkpoint, {"top1": 0.75, "more": 1})
    assert read_digests(checkpoint) == {"top1": 0.75, "more": 1, "arrays": arrays}
    assert [file.name for file in (checkpoint / "digests").iterdir()] == ["digests.json"]


def flipped(array):
    changed = array.copy()
    changed.reshape(-1).view(np.uint8)[-1] ^= 1
    return changed


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"a/kernel": flipped(ARRAYS["a/kernel"])}, "a/kernel"),
        ({"a/kernel": ARRAYS["a/kernel"].reshape(3, 2)}, "a/kernel"),
        ({"step": flipped(ARRAYS["step"])}, "step"),
        ({"step": np.array(7, np.uint32)}, "step"),  # the same bits
        ({name: flipped(array) for name, array in ARRAYS.items()}, "a/kernel"),
    ],
)
def test_every_array_is_compared_and_the_first_that_differs_is_named(checkpoint, change, name):
    difference = find_difference(ARRAYS | change, read_digests(checkpoint)["arrays"])
    assert difference is not None
    assert name in difference


def test_the_digests_are_sealed(checkpoint):
    file = checkpoint / "digests" / "digests.json"
    whole = file.read_text()
    better = json.loads(whole) | {"top1": 0.9}
    for text in (json.dumps(better), whole[:-20], "", "[]", "{}", whole.replace("0.5", "0.6")):
        file.write_text(text)
        with pytest.raises(CorruptError) as raised:
            read_digests(checkpoint)
        assert raised.value.reason == "digests.json differs from what was written"
        assert str(checkpoint) in str(raised.value)
    file.unlink()
    with pytest.raises(CorruptError, match="No such file"):
        read_digests(checkpoint)


def test_names_do_not_depend_on_the_kind_of_container():
    tree = {"a": [1, {"b": 2}], "c": (3,)}
    assert named_leaves(tree) == {"a/0": 1, "a/1/b": 2, "c/0": 3}


def test_the_first_200_characters_of_an_error_are_told_or_else_its_class():
    assert first_line(ValueError("x" * 300 + "\nmore")) == "x" * 200
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"


def test_a_run_is_no_model_if_the_digests_of_any_checkpoint_are_corrupt(tmp_path):
    for step in ("1", "2"):
        (tmp_path / "checkpoints" / step / "digests").mkdir(parents=True)
    write_digests(tmp_path / "checkpoints" / "2" / "digests", ARRAYS, {"top1": 0.5})
    with pytest.raises(CorruptError, match="checkpoint 1 "):  # it may have been the best one
        read_workdir(tmp_path)
