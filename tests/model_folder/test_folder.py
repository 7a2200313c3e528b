"""The model folder: everything comes back, nothing half-written or unfit is accepted."""

import dataclasses
import json
import os
import re
import struct
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import gnet_jax
from gnet_jax.config import UserError
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model_folder import WeightsError, read_folder, write_folder
from gnet_jax.model_folder.folder import is_safetensors, read_tensors
from tests.convert.conftest import random_variables, small_folder


@pytest.mark.parametrize("variant", ["paper", "batch_norm", "torchvision", "naive"])
def test_a_folder_comes_back_bit_for_bit(tmp_path, variant):
    folder = small_folder(variant, aux_after=("4a",) if variant == "torchvision" else ())
    write_folder(tmp_path / "model", folder)
    again = read_folder(tmp_path / "model")
    assert again.model == folder.model
    assert dataclasses.replace(again, variables={}) == dataclasses.replace(folder, variables={})
    jax.tree.map(np.testing.assert_array_equal, again.variables, folder.variables)


def test_names_and_config_are_as_documented(tmp_path, small):
    write_folder(tmp_path / "model", small)
    tensors = load_file(tmp_path / "model/model.safetensors")
    assert "params/inception_3a/b1/conv/kernel" in tensors
    config = json.loads((tmp_path / "model/config.json").read_text("utf-8"))
    assert config["id2label"]["2"] == "crane, größer"
    lines = (tmp_path / "model/config.json").read_text("utf-8").splitlines()
    assert '    "2": "crane, größer"' in lines  # a person can read it
    assert config["num_classes"] == 3
    assert config["gnet_jax"] == gnet_jax.__version__
    assert config["preprocessing"]["channels"] == "BGR"
    assert config["architecture"]["widths"]["3a"]["b1"] == 4


def test_the_example_on_the_card_runs(tmp_path, small, monkeypatch, capsys):
    write_folder(tmp_path / "model", small)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((50, 40, 3), 90, np.uint8)).save("photo.jpg")
    card = (tmp_path / "model/README.md").read_text("utf-8")
    assert card.startswith("---\nlibrary_name: gnet_jax\npipeline_tag: image-classification\n")
    (example,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(example, {})
    lines = capsys.readouterr().out.splitlines()
    assert {line.split("%  ")[1] for line in lines} == set(small.class_names)


def test_a_model_folder_is_replaced_and_nothing_is_left_beside_it(tmp_path, small):
    write_folder(tmp_path / "model", small)
    write_folder(tmp_path / "model", dataclasses.replace(small, class_names=("a", "b", "c")))
    assert read_folder(tmp_path / "model").class_names == ("a", "b", "c")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_other_folders_and_files_are_not_overwritten(tmp_path, small):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.txt").write_text("...")
    (tmp_path / "file").write_text("...")
    write_folder(tmp_path / "cloned", small)
    (tmp_path / "cloned/.git").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/config.json").write_text('{"model_type": "resnet"}')
    (tmp_path / "foreign/model.safetensors").write_text("...")
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt/config.json").write_text("{")
    (tmp_path / "list").mkdir()
    (tmp_path / "list/config.json").write_text('["gnet_jax"]')
    reasons = {
        "thesis": "chapter1.txt",
        "file": "Not a directory",
        "cloned": ".git",
        "foreign": "config.json",
        "corrupt": "config.json",
        "list": "config.json",
    }
    for name, reason in reasons.items():
        with pytest.raises(WeightsError, match=reason):
            write_folder(tmp_path / name, small)
    assert (tmp_path / "thesis/chapter1.txt").is_file()
    assert (tmp_path / "foreign/model.safetensors").read_text() == "..."


def test_the_working_directory_is_not_replaced(tmp_path, small, monkeypatch):
    write_folder(tmp_path / "model", small)
    (tmp_path / "empty").mkdir()
    for name in ("model", "empty"):
        monkeypatch.chdir(tmp_path / name)
        with pytest.raises(WeightsError, match=f"{name} is the working directory"):
            write_folder(".", small)
        assert (tmp_path / name).samefile(".")
    write_folder("../model", small)


def test_a_folder_that_cannot_be_written_leaves_the_old_one(tmp_path, small, monkeypatch):
    write_folder(tmp_path / "model", small)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gnet_jax.model_folder.folder.write_tensors", full)
    with pytest.raises(WeightsError, match="No space left"):
        write_folder(tmp_path / "model", small)
    assert read_folder(tmp_path / "model").class_names == small.class_names


def test_unfit_variables_are_not_written(tmp_path, small):
    small.variables["params"]["conv1"]["conv"]["bias"][0] = np.nan
    with pytest.raises(WeightsError, match="params/conv1/conv/bias"):
        write_folder(tmp_path / "model", small)
    assert not (tmp_path / "model").exists()


def damage_shape(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["params/classifier/kernel"] = tensors["params/classifier/kernel"][:, :2].copy()
    save_file(tensors, file)


def damage_missing(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["params/inception_3a/b1/conv/bias"]
    save_file(tensors, file)


def damage_cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def damage_bit(folder):
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)


def damage_text(folder):
    (folder / "model.safetensors").write_text("<!DOCTYPE html>" * 20)


def damage_json(folder):
    file = folder / "config.json"
    file.write_text(file.read_text("utf-8")[:500])


def damage_key(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text("utf-8"))
    del config["preprocessing"]
    file.write_text(json.dumps(config))


def damage_labels(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text("utf-8"))
    del config["id2label"]["2"]
    file.write_text(json.dumps(config))


def damage_architecture(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text("utf-8"))
    config["architecture"]["aux_after"] = ["9z"]
    config["architecture"]["widths"]["3a"]["b1"] = -4
    file.write_text(json.dumps(config))


def damage_widths(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text("utf-8"))
    config["architecture"]["widths"] = {}
    file.write_text(json.dumps(config))


def damage_std(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text("utf-8"))
    config["preprocessing"]["std"] = [1.0, 0.0, 1.0]
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_widths, "params/classifier/kernel"),
        (damage_std, "preprocessing.std"),
        (damage_shape, r"params/classifier/kernel .*\(52, 2\).*\(52, 3\)"),
        (damage_missing, "params/inception_3a/b1/conv/bias"),
        (damage_cut, "model.safetensors"),
        (damage_bit, "sha256"),
        (damage_text, "model.safetensors"),
        (damage_json, "config.json"),
        (damage_key, "preprocessing"),
        (damage_labels, "2 names for 3 classes"),
        (damage_architecture, "cannot be built"),
    ],
)
def test_a_damaged_folder_is_refused_by_name(tmp_path, small, damage, message):
    write_folder(tmp_path / "model", small)
    damage(tmp_path / "model")
    with pytest.raises(WeightsError, match=message) as caught:
        read_folder(tmp_path / "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda config: config["id2label"].update({"1": None}), r"id2label\.1 is None"),
        (
            lambda config: config["id2label"].update({"9": config["id2label"].pop("1")}),
            "id2label.1",
        ),
        (lambda config: config.update(id2label=["a", "b", "c"]), "id2label is"),
        (lambda config: config.update(num_classes=7), "num_classes is 7"),
        (lambda config: config.update(dtype="float16"), "dtype is 'float16'"),
        (lambda config: config.update(source=None), "source is None"),
    ],
)
def test_a_field_that_was_changed_by_hand_is_used_or_refused_by_name(
    tmp_path, small, change, field
):
    write_folder(tmp_path / "model", small)
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text("utf-8"))
    change(config)
    file.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=field):
        read_folder(tmp_path / "model")


def test_a_folder_of_an_older_version_has_the_defaults_of_fields_added_later(tmp_path, small):
    write_folder(tmp_path / "model", small)
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text("utf-8"))
    del config["architecture"]["stem_padding"], config["architecture"]["block"]
    file.write_text(json.dumps(config))
    arch = read_folder(tmp_path / "model").model.arch
    assert (arch.stem_padding, arch.block) == ("caffe", None)


def test_a_byte_order_mark_is_ignored(tmp_path, small):
    write_folder(tmp_path / "model", small)
    file = tmp_path / "model" / "config.json"
    file.write_text(file.read_text("utf-8"), "utf-8-sig")
    assert read_folder(tmp_path / "model").class_names == small.class_names
    write_folder(tmp_path / "model", small)  # it still counts as a model folder


def test_two_classes_and_bytes_that_are_no_text_come_back(tmp_path, small):
    arch = dataclasses.replace(small.model.arch, num_classes=2)
    head = small.variables["params"]["classifier"]
    head["kernel"], head["bias"] = head["kernel"][:, :2], head["bias"][:2]
    names, source = ("caf\udce9", "tea"), {"file": "\udce9.pt"}
    changes = {"model": GoogLeNet(arch), "class_names": names, "source": source}
    write_folder(tmp_path / "model", dataclasses.replace(small, **changes))
    found = read_folder(tmp_path / "model")
    assert (found.class_names, found.source) == (names, source)


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json"])
def test_a_folder_without_one_of_the_two_files_is_no_model_folder(tmp_path, small, lost):
    write_folder(tmp_path / "model", small)
    (tmp_path / "model" / lost).unlink()
    with pytest.raises(WeightsError, match="model is not a folder with"):
        read_folder(tmp_path / "model")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(WeightsError, match="nothing is not a folder"):
        read_folder(tmp_path / "nothing")


def test_a_network_with_one_output_is_refused(tmp_path, small):
    arch = dataclasses.replace(small.model.arch, num_classes=1)
    one = dataclasses.replace(small, model=GoogLeNet(arch), class_names=("cat",))
    with pytest.raises(WeightsError, match="1 output"):
        write_folder(tmp_path / "model", one)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_of_the_computation_comes_back(tmp_path, small, dtype):
    folder = dataclasses.replace(small, model=small.model.clone(dtype=np.dtype(dtype)))
    write_folder(tmp_path / "model", folder)
    assert json.loads((tmp_path / "model/config.json").read_text("utf-8"))["dtype"] == dtype
    assert np.dtype(read_folder(tmp_path / "model").model.dtype) == np.dtype(dtype)


def test_variables_are_stored_in_float32(tmp_path, small):
    halved = jax.tree.map(lambda x: x.astype(np.float16), small.variables)
    write_folder(tmp_path / "model", dataclasses.replace(small, variables=halved))
    found = load_file(tmp_path / "model/model.safetensors")
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}


def test_a_network_that_its_architecture_does_not_describe_is_refused(tmp_path, small):
    class Other(GoogLeNet):
        pass

    with pytest.raises(WeightsError, match="Other"):
        write_folder(tmp_path / "model", dataclasses.replace(small, model=Other(small.model.arch)))


def test_a_folder_is_written_even_if_its_temporary_one_cannot_be_deleted(
    tmp_path, small, monkeypatch
):
    def busy(*_, **__):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(os, "rmdir", busy)
    write_folder(tmp_path / "model", small)
    assert read_folder(tmp_path / "model").class_names == small.class_names


def test_an_interrupted_replacement_leaves_the_old_folder(tmp_path, small, monkeypatch):
    write_folder(tmp_path / "model", small)
    rename = Path.rename

    def interrupted(self, target):
        if self.name == "new":
            partial = self.parent
            assert (partial.parent, partial.name[:7]) == (tmp_path, ".model-")  # the same disk
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    other = dataclasses.replace(small, class_names=("a", "b", "c"))
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "model", other)
    assert read_folder(tmp_path / "model").class_names == small.class_names
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_interrupt_behind_the_first_rename_leaves_the_old_folder(tmp_path, small, monkeypatch):
    write_folder(tmp_path / "model", small)

    def interrupted(self, target, rename=Path.rename):
        rename(self, target)
        if Path(target).name == "old":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "model", small)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert read_folder(tmp_path / "model").class_names == small.class_names


# Safetensors files of other programs


def test_half_precision_is_read_as_float32(tmp_path):
    values = np.array([1.5, -2.25], np.float32)
    data = values.astype(ml_dtypes.bfloat16).tobytes()
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + data)
    save_file({"w": values.astype(np.float16)}, tmp_path / "b")
    for name in ("a", "b"):
        assert is_safetensors((tmp_path / name).read_bytes())
        tensors, metadata = read_tensors(tmp_path / name)
        assert tensors["w"].dtype == np.float32
        assert metadata == {}
        np.testing.assert_array_equal(tensors["w"], values)


def test_a_type_that_is_no_weight_is_named(tmp_path):
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + bytes(2))
    with pytest.raises(WeightsError, match=r"w .*F8_E4M3"):
        read_tensors(tmp_path / "a")


def test_missing_parent_folders_are_made(tmp_path, small):
    write_folder(tmp_path / "a" / "b" / "model", small)
    assert [file.name for file in (tmp_path / "a" / "b").iterdir()] == ["model"]


def test_a_tilde_before_a_name_that_no_user_has_is_part_of_the_name(tmp_path, small, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder("~nobody-here/model", small)
    assert read_folder("~nobody-here/model").class_names == small.class_names
    assert (tmp_path / "~nobody-here" / "model").is_dir()


@pytest.mark.parametrize(("length", "expected"), [(2, True), (99_999_999, True), (10**8, False)])
def test_a_safetensors_header_is_smaller_than_the_formats_limit(length, expected):
    assert is_safetensors(struct.pack("<Q", length) + b"{") == expected
    assert not is_safetensors(struct.pack("<Q", length) + b"[")


def test_the_five_most_probable_classes_are_returned_by_default():
    folder = small_folder()
    model = GoogLeNet(dataclasses.replace(folder.model.arch, num_classes=7))
    variables = random_variables(model, 32)
    folder = dataclasses.replace(folder, model=model, variables=variables, class_names=[*"abcdefg"])
    (found,) = folder.predict(np.zeros((40, 40, 3), np.uint8))
    assert len(found) == 5
    with pytest.raises(UserError, match="top is 0"):
        folder.predict(np.zeros((40, 40, 3), np.uint8), top=0)
    assert sorted(found, key=lambda pair: -pair[1]) == found
