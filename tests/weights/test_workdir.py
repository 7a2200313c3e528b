"""A training run becomes a model: best checkpoint, averaged parameters, the data's classes."""

import os

import jax
import numpy as np
import pytest
from PIL import Image

from gnet_jax.config import Config, ConfigError, DataConfig, ModelConfig, OptimConfig
from gnet_jax.data import open_source
from gnet_jax.training.checkpoint import Checkpoints
from gnet_jax.training.record import open_workdir
from gnet_jax.training.run import prepare
from gnet_jax.weights import WeightsError, read_folder
from gnet_jax.weights.convert import convert, read
from gnet_jax.weights.export import export
from gnet_jax.weights.workdir import read_workdir


def saved_run(workdir, averaging="none", top1=(0.5, 0.9, 0.7), source="digits"):
    """A workdir with one checkpoint for each accuracy; step n has weights of value n."""
    config = Config(
        workdir=str(workdir),
        batch_size=8,
        keep_latest=3,
        model=ModelConfig(width_multiplier=1 / 16, stem="small", aux_after=("4a",)),
        data=DataConfig(source=source, image_size=33, resize_to=33, mean=(1.0, 2.0, 3.0)),
        optim=OptimConfig(averaging=averaging),
    )
    run = prepare(config)
    open_workdir(config, {"train": "0", "val": "1"})
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), run.abstract_state())
    with Checkpoints(workdir / "checkpoints", config.keep_latest) as checkpoints:
        for step, score in enumerate(top1, start=1):
            params = jax.tree.map(lambda x, s=step: np.full_like(x, s), state.params)
            average = jax.tree.map(lambda x, s=step: np.full_like(x, 10 * s), state.average)
            at_step = state.replace(params=params, average=average)
            checkpoints.save(step, at_step, score)
            checkpoints.wait()
    return config, run


@pytest.mark.parametrize(("averaging", "value"), [("none", 2), ("ema", 20)])
def test_the_best_checkpoint_is_taken_averaged_where_it_can_be(tmp_path, averaging, value):
    config, run = saved_run(tmp_path / "run", averaging)
    folder = convert(tmp_path / "run", tmp_path / "model")
    assert folder.model == run.model
    assert folder.model.arch.aux_after == ("4a",)
    assert "aux_4a" in folder.variables["params"]
    assert all((x == value).all() for x in jax.tree.leaves(folder.variables["params"]))
    assert folder.preprocessing == config.data.preprocessing
    assert folder.class_names == tuple("0123456789")
    assert folder.source["step"] == "2"
    assert folder.source["validation_top1"] == "0.9000"
    assert read_folder(tmp_path / "model").source == folder.source
    assert "the run's own evaluation" in (tmp_path / "model/README.md").read_text("utf-8")


def test_class_names_that_are_not_utf8_are_converted_and_exported_as_valid_text(tmp_path):
    for split in ("train", "val"):
        for name in (b"caf\xe9", b"two\nlines"):
            folder = tmp_path / "photos" / split / os.fsdecode(name)
            folder.mkdir(parents=True)
            for i in range(4):
                Image.new("L", (33, 33), i).save(folder / f"{i}.png")
    data = f"folder:{tmp_path / 'photos'}"
    saved_run(tmp_path / "run", top1=(None,), source=data)
    convert(tmp_path / "run", tmp_path / "model")
    copy = tmp_path / "model.safetensors"
    assert export(read_folder(tmp_path / "model"), copy) == 0
    assert read(copy).class_names == (r"caf\xe9", r"two\nlines")
    assert read(copy).class_names == open_source(data, "val").class_names


def test_without_an_evaluation_the_newest_checkpoint_is_taken(tmp_path):
    saved_run(tmp_path / "run", top1=(None, None))
    folder = convert(tmp_path / "run", tmp_path / "model")
    assert folder.source["step"] == "2"
    assert "validation_top1" not in folder.source


def test_a_damaged_checkpoint_is_never_converted_and_nothing_in_the_folder_is_changed(tmp_path):
    saved_run(tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "2" / "state" / "manifest.ocdbt").write_bytes(b"OCDBT")
    with pytest.raises(ConfigError, match=r"checkpoint 2 in .* is damaged: "):
        convert(tmp_path / "run", tmp_path / "model")
    (checkpoints / "2" / "digests" / "digests.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"2 in .* is damaged: .* the best of the others"):
        convert(tmp_path / "run", tmp_path / "model")
    assert sorted(path.name for path in checkpoints.iterdir()) == ["1", "2", "3"]
    assert not (tmp_path / "model").exists()


def test_a_run_that_saved_nothing_is_named(tmp_path):
    saved_run(tmp_path / "run", top1=())
    with pytest.raises(WeightsError, match="no finished checkpoint"):
        convert(tmp_path / "run", tmp_path / "model")


def test_a_config_of_another_version_is_named(tmp_path):
    saved_run(tmp_path / "run", top1=())
    file = tmp_path / "run/config.json"
    file.write_text(file.read_text().replace('"optim.momentum"', '"optim.inertia"'))
    with pytest.raises(WeightsError, match=r"optim\.inertia is no field of OptimConfig"):
        convert(tmp_path / "run", tmp_path / "model")
    file.write_text("{")
    with pytest.raises(WeightsError, match="is damaged"):
        convert(tmp_path / "run", tmp_path / "model")


def test_batches_that_would_not_divide_over_these_devices_do_not_matter(tmp_path):
    """A run of one device is read on a machine of eight."""
    config, _ = saved_run(tmp_path / "run")
    file = tmp_path / "run/config.json"
    file.write_text(file.read_text().replace('"batch_size": 8', '"batch_size": 5'))
    assert read_workdir(tmp_path / "run").preprocessing == config.data.preprocessing


def test_a_run_whose_start_is_gone_says_that_it_is_needed(tmp_path):
    saved_run(tmp_path / "run")
    file = tmp_path / "run/config.json"
    file.write_text(file.read_text().replace('"init": null', '"init": "models/gone"'))
    with pytest.raises(WeightsError, match="began from models/gone, whose network is needed"):
        read_workdir(tmp_path / "run")
