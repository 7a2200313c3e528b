"""A checkpoint that was called saved can be restored, whatever its folder is called."""

import json
import os
import random
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from gnet_jax.cli.main import main
from gnet_jax.config.paths import plain_path
from gnet_jax.model_folder import read_folder
from gnet_jax.training.checkpoints.save import Checkpoints
from gnet_jax.training.checkpoints.verify import SavedSteps, digest, read_workdir
from gnet_jax.training.sharding import data_mesh, replicated
from tests.training.processes import start

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
            found = checkpoints.restore_latest(wanted)
        assert found is not None, name
        assert (found[0], digest(found[1])) == (7, digest(state)), name
        assert not said, name


def test_a_checkpoint_below_any_name_is_restored(tmp_path):
    check_names(tmp_path, [*list(path_names(200))[::40], "x[1]", "a*b?", "c\\d", "e\nf", "\udcff"])


def test_a_run_saves_after_the_temporary_files_were_removed(tmp_path):
    folder, state, said = tmp_path / "x[1]", {"step": np.int32(7)}, []
    with Checkpoints(folder, keep_latest=9, tell=said.append) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        link = plain_path(folder)
        shutil.rmtree(link.parent)
        checkpoints.save(2, state)
        checkpoints.wait()
        link.unlink()
        (link / "2").mkdir(parents=True)  # as Orbax does where it finds nothing
        checkpoints.save(3, state)
    assert not said
    assert SavedSteps(folder).steps == [1, 2, 3]


@pytest.mark.slow
def test_checkpoints_below_200_random_names_are_restored(tmp_path):
    names = list(path_names(200))
    assert len(set(names)) > 190
    check_names(tmp_path, names)


NAME = "[1]*?\\#%\"' $x^$\n\udcff"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_below_any_name_is_a_model_that_needs_no_data(
    tmp_path, monkeypatch, capsys, processes
):
    data, workdir = tmp_path / f"photos {NAME}", tmp_path / "runs" / f"run {NAME}"
    for split in ("train", "val"):
        for number, name in enumerate(("cat", "dog")):
            (data / split / name).mkdir(parents=True)
            for i in range(16):
                colour = (100 * number, 10 * i, 0)
                Image.new("RGB", (20, 20), colour).save(data / split / name / f"{i}.png")
    options = ("--data.source", f"folder:{data}", "--epochs", "2", "--eval-batch-size", "32")
    run = start(workdir, *options, processes=processes, devices=2)
    assert run.wait() == [0] * processes, run.text()
    photo = (data / "val" / "dog" / "3.png").rename(tmp_path / f"3 {NAME}.png")
    shutil.rmtree(data)
    monkeypatch.chdir(tmp_path)

    assert main(["predict", str(workdir), str(photo), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["file"] == str(photo)
    model, picture = tmp_path / f"model {NAME}", tmp_path / f"curves {NAME}.svg"
    assert main(["convert", str(workdir), str(model)]) == 0
    assert main(["curves", str(workdir), "--out", str(picture)]) == 0
    assert picture.stat().st_size > 1000
    read, converted = read_workdir(workdir), read_folder(model)
    assert (converted.class_names[:3], converted.source) == (("cat", "dog", "class 2"), read.source)
    assert converted.source["data"] == f"folder:{data.name}"
    jax.tree.map(np.testing.assert_array_equal, read.variables, converted.variables)
    for out in ("model.safetensors", "model.onnx", "model.stablehlo"):
        assert main(["export", str(workdir), str(tmp_path / f"{NAME}{out}")]) == 0
