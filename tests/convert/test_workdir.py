"""A training run becomes a model: best checkpoint, averaged parameters, the data's classes."""

import dataclasses
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from gnet_jax.config import Config, DataConfig, ModelConfig, OptimConfig, UserError
from gnet_jax.convert.export import export
from gnet_jax.convert.read import convert, read
from gnet_jax.convert.start import with_start
from gnet_jax.inference.predict import load
from gnet_jax.model_folder import WeightsError, read_folder, write_folder
from gnet_jax.training.checkpoints import verify
from gnet_jax.training.checkpoints.save import Checkpoints
from gnet_jax.training.checkpoints.verify import CorruptError, add_notes, read_workdir
from gnet_jax.training.program import prepare
from gnet_jax.training.workdir import open_workdir


def saved_run(workdir, averaging="none", top1=(0.5, 0.9, 0.7)):
    """A workdir with one checkpoint for each accuracy; step n has weights of value n."""
    config = Config(
        workdir=str(workdir),
        batch_size=8,
        keep_latest=3,
        model=ModelConfig(width_multiplier=1 / 16, stem="small", aux_after=("4a",)),
        data=DataConfig(image_size=33, resize_to=33, mean=(1.0, 2.0, 3.0)),
        optim=OptimConfig(averaging=averaging),
    )
    run = prepare(config)
    open_workdir(config, {"train": "0", "val": "1"})
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), run.program.abstract_state())
    folder, model = workdir / "checkpoints", run.description()
    with Checkpoints(folder, config.keep_latest, model=model) as checkpoints:
        for step, score in enumerate(top1, start=1):
            params = jax.tree.map(lambda x, s=step: np.full_like(x, s), state.params)
            average = jax.tree.map(lambda x, s=step: np.full_like(x, 10 * s), state.average)
            at_step = state.replace(params=params, average=average)
            checkpoints.save(step, at_step, score)
            checkpoints.wait()
    return config, run


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run with averaged parameters and three checkpoints, of which the second is the best."""
    workdir = tmp_path_factory.mktemp("averaged") / "run"
    return workdir, *saved_run(workdir, "ema")


@pytest.fixture
def copied(tmp_path, averaged):
    """A copy of the checkpoints of `averaged`, which a test may change."""
    return Path(shutil.copytree(averaged[0], tmp_path / "run"))


def test_the_best_checkpoint_is_taken_with_its_averaged_parameters(tmp_path, averaged):
    workdir, config, run = averaged
    folder = convert(workdir, tmp_path / "model")
    assert folder.model == run.program.model
    assert folder.model.arch.aux_after == ("4a",)
    assert "aux_4a" in folder.variables["params"]
    assert all((x == 20).all() for x in jax.tree.leaves(folder.variables["params"]))
    assert folder.preprocessing == config.data.preprocessing
    assert folder.class_names == tuple("0123456789")
    assert folder.source["step"] == "2"
    assert folder.source["parameters"] == "averaged"
    assert folder.source["validation_top1"] == "0.9000"
    assert read_folder(tmp_path / "model").source == folder.source
    assert "the run's own evaluation" in (tmp_path / "model/README.md").read_text("utf-8")


def test_class_names_that_are_not_utf8_are_converted_and_exported_as_valid_text(tmp_path, small):
    for split in ("train", "val"):
        for name in (b"ant", b"caf\xe9", b"two\nlines"):
            folder = tmp_path / "photos" / split / os.fsdecode(name)
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("L", (33, 33), i).save(folder / f"{i}.png")
    data = DataConfig(source=f"folder:{tmp_path / 'photos'}", image_size=32, resize_to=32)
    model = ModelConfig(width_multiplier=1 / 16, stem="small", aux_after=())
    names = prepare(Config(batch_size=8, model=model, data=data)).description()["id2label"]
    assert names == {"0": "ant", "1": r"caf\xe9", "2": r"two\nlines"}
    source = small.source | {"data": os.fsdecode(b"caf\xe9")}
    folder = dataclasses.replace(small, class_names=tuple(names.values()), source=source)
    write_folder(tmp_path / "model", folder)
    assert r"caf\xe9" in (tmp_path / "model/README.md").read_text("utf-8")
    copy = tmp_path / "model.safetensors"
    assert export(read_folder(tmp_path / "model"), copy) == 0
    assert read(copy).class_names == folder.class_names


def test_without_averages_and_an_evaluation_the_newest_parameters_are_taken(tmp_path):
    saved_run(tmp_path / "run", top1=(None, None))
    folder = convert(tmp_path / "run", tmp_path / "model")
    assert folder.source["step"] == "2"
    assert "validation_top1" not in folder.source
    assert all((x == 2).all() for x in jax.tree.leaves(folder.variables["params"]))


def test_a_damaged_checkpoint_is_never_converted_and_nothing_in_the_folder_is_changed(
    tmp_path, copied
):
    checkpoints = copied / "checkpoints"
    (checkpoints / "2" / "state" / "manifest.ocdbt").write_bytes(b"OCDBT")
    with pytest.raises(CorruptError, match=str(checkpoints / "2")):
        convert(tmp_path / "run", tmp_path / "model")
    (checkpoints / "2" / "digests" / "digests.json").write_text("{}")
    with pytest.raises(CorruptError, match=str(checkpoints / "2")):
        convert(tmp_path / "run", tmp_path / "model")
    assert sorted(path.name for path in checkpoints.iterdir()) == ["1", "2", "3"]
    assert not (tmp_path / "model").exists()


def test_a_run_that_saved_nothing_is_named(tmp_path, copied):
    for step in ("1", "2", "3"):
        shutil.rmtree(copied / "checkpoints" / step)
    with pytest.raises(WeightsError, match="no checkpoint"):
        convert(copied, tmp_path / "model")


def test_a_workdir_needs_neither_its_data_nor_its_config_nor_its_start(
    averaged, copied, monkeypatch
):
    (copied / "config.json").write_text("no longer read")
    monkeypatch.setattr("gnet_jax.data.sources.open_source", None)
    folder = read_workdir(copied)
    assert folder.class_names == tuple("0123456789")
    assert folder.preprocessing == averaged[1].data.preprocessing


@pytest.mark.parametrize("step", [1, 3])
def test_any_saved_step_can_be_named_even_if_another_is_corrupt(copied, step):
    (copied / "checkpoints" / "2" / "digests" / "digests.json").unlink()
    folder = load(copied, step)
    assert folder.source["step"] == str(step)
    assert all((x == 10 * step).all() for x in jax.tree.leaves(folder.variables["params"]))


def test_a_step_that_is_not_saved_is_refused_with_those_that_are(averaged, tmp_path):
    with pytest.raises(WeightsError, match=r"no checkpoint of step 7; it has 1, 2, 3$"):
        load(averaged[0], 7)
    with pytest.raises(UserError, match=f"--step 7 .* {tmp_path} "):
        load(tmp_path, 7)


@pytest.mark.parametrize("moment", ["list", "digests", "arrays"])
def test_a_step_that_the_run_deletes_while_it_is_read_is_never_half_read(
    copied, monkeypatch, moment
):
    def delete_first(usual, part):
        def with_deletion(path, *rest):
            if (copied / "checkpoints" / "2").exists() and path.parts[-len(part) :] == part:
                shutil.rmtree(copied / "checkpoints" / "2")
            return usual(path, *rest)

        return with_deletion

    if moment == "arrays":
        deleting = delete_first(verify._read_arrays, ("2", "state"))
        monkeypatch.setattr(verify, "_read_arrays", deleting)
    else:
        deleting = delete_first(verify.read_digests, ("2",) if moment == "digests" else ("1",))
        monkeypatch.setattr(verify, "read_digests", deleting)
    assert read_workdir(copied).source["step"] == "3"  # now the best
    with pytest.raises(WeightsError, match=r"no checkpoint of step 2; it has 1, 3$"):
        read_workdir(copied, 2)


def test_a_named_step_that_is_deleted_while_it_is_read_is_one_sentence(copied, monkeypatch):
    def deleted(folder, names):
        shutil.rmtree(copied / "checkpoints" / "2")
        raise OSError("gone")

    monkeypatch.setattr(verify, "_read_arrays", deleted)
    with pytest.raises(WeightsError, match=r"no checkpoint of step 2; it has 1, 3$"):
        read_workdir(copied, 2)


def test_only_the_arrays_of_the_model_are_read(averaged, monkeypatch):
    read, usual = [], verify._read_arrays
    monkeypatch.setattr(
        verify, "_read_arrays", lambda f, names: read.extend(names) or usual(f, names)
    )
    read_workdir(averaged[0])
    assert read
    assert all(name.startswith("average/") for name in read)


def test_a_checkpoint_without_a_model_is_refused(copied):
    add_notes(copied / "checkpoints" / "2", {"model": None})
    with pytest.raises(WeightsError, match=r"checkpoint 2 in .* contains no model"):
        read_workdir(copied)


def test_a_model_with_more_outputs_than_classes_numbers_the_others(tmp_path):
    model = ModelConfig(width_multiplier=1 / 16, stem="small", aux_after=(), num_classes=12)
    run = prepare(Config(model=model, data=DataConfig(image_size=16, resize_to=16)))
    names = run.description()["id2label"]
    assert (names["9"], names["10"], names["11"], len(names)) == ("9", "class 10", "class 11", 12)


def test_a_workdir_is_a_model_to_start_from(averaged):
    _, pretrained = with_start(Config(init=str(averaged[0])))
    assert pretrained is not None
    assert all((x == 20).all() for x in jax.tree.leaves(pretrained.variables["params"]))
