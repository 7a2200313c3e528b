"""A checkpoint that was called saved can be restored, whatever its folder is called."""

import os
import random

import jax
import numpy as np
import pytest

from gnet_jax.training.checkpoint import Checkpoints, digest
from gnet_jax.training.sharding import data_mesh, replicated

ODD = [*"[]{}()*?\\#%\"'`$&;:|<>!~^@ \n\t\r", *map(chr, range(0xDC80, 0xDCFF, 9)), "é", "猫", "..."]
PLAIN = "abcXYZ019_-.=+,"


def path_names(count):
    """Paths of one to three legal components; the same on every call."""
    draw = random.Random(16)
    for _ in range(count):
        parts = []
        for _ in range(draw.randint(1, 3)):
            size = draw.choice([1, 2, 5, 20, 200])
            letters = draw.choices([*ODD, *PLAIN], k=size)
            part = os.fsencode("".join(letters))[:200]  # a name may have 255 bytes
            parts.append(os.fsdecode(part if part.strip(b".") else b"[" + part))
        yield os.path.join(*parts)


def check_names(folder, names):
    state = {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4), "step": np.int32(7)}
    whole = replicated(data_mesh())
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), state)
    for name in names:
        said = []
        with Checkpoints(folder / name, keep_latest=1, tell=said.append) as checkpoints:
            checkpoints.save(7, state)
        assert not said, name
        with Checkpoints(folder / name, keep_latest=1, tell=said.append) as checkpoints:
            found = checkpoints.restore_newest(wanted)
        assert found is not None, name
        assert (found[0], digest(found[1])) == (7, digest(state)), name
        assert not said, name


def test_a_checkpoint_below_any_name_is_restored(tmp_path):
    check_names(tmp_path, [*list(path_names(200))[::40], "x[1]", "a*b?", "c\\d", "e\nf", "\udcff"])


@pytest.mark.slow
def test_checkpoints_below_200_random_names_are_restored(tmp_path):
    names = list(path_names(200))
    assert len(set(names)) > 190
    check_names(tmp_path, names)
