"""Conversion: every known kind is told by its content, everything else is refused."""

import gzip
import hashlib
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from gnet_jax.config import UserError
from gnet_jax.convert.export import export
from gnet_jax.convert.published import PUBLISHED
from gnet_jax.convert.read import convert, read
from gnet_jax.convert.torch_file import write_torch
from gnet_jax.model_folder import WeightsError, read_folder, write_folder
from gnet_jax.model_folder.folder import flatten, write_tensors
from tests.convert.caffe_files import caffemodel_bytes, random_layers


def assert_written(folder, path):
    again = read_folder(path)
    found, expected = flatten(again.variables), flatten(folder.variables)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)
    assert (again.model, again.preprocessing) == (folder.model, folder.preprocessing)
    assert (again.class_names, again.source) == (folder.class_names, folder.source)


def test_a_caffemodel_under_any_name(tmp_path):
    file = tmp_path / "weights.bin"
    file.write_bytes(caffemodel_bytes(random_layers()))
    folder = convert(file, tmp_path / "model")
    assert folder.source["format"] == "caffemodel"
    assert folder.source["file"] == "weights.bin"
    assert folder.source["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert folder.preprocessing.channels == "BGR"
    assert folder.class_names == tuple(f"class {i}" for i in range(5))
    assert_written(folder, tmp_path / "model")


def test_the_published_caffe_weights(tmp_path, caffemodel):
    folder = convert(caffemodel, tmp_path / "model")
    assert folder.class_names[967] == "espresso"
    assert "license_name: unrestricted" in (tmp_path / "model/README.md").read_text("utf-8")
    assert_written(folder, tmp_path / "model")


def test_the_published_file_is_known_by_its_hash(tmp_path, monkeypatch):
    file = tmp_path / "bvlc_googlenet.caffemodel"
    file.write_bytes(caffemodel_bytes(random_layers()))
    assert "license" not in read(file).source
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(PUBLISHED, "caffe", PUBLISHED["caffe"]._replace(sha256=sha256))
    assert read(file).source["license"] == "unrestricted"


def test_a_torch_state_dict(tmp_path, plain):
    write_torch(tmp_path / "net.caffemodel", plain)  # the suffix lies
    folder = convert(tmp_path / "net.caffemodel", tmp_path / "model")
    assert folder.source["format"] == "torch state dict"
    assert folder.preprocessing.mean == pytest.approx((123.675, 116.28, 103.53))
    assert_written(folder, tmp_path / "model")


def test_a_safetensors_state_dict_with_transform_input(tmp_path, plain):
    save_file({name: np.array(v) for name, v in plain.items()}, tmp_path / "net")
    names = ["a", "b", "c", "d", "e", "f", "g"]
    folder = convert(tmp_path / "net", tmp_path / "model", class_names=names, transform_input=True)
    assert folder.source["format"] == "safetensors state dict"
    assert folder.preprocessing.mean == folder.preprocessing.std == (127.5, 127.5, 127.5)
    assert "mean and std" in folder.source["transform_input"]
    assert folder.class_names == tuple(names)
    assert_written(folder, tmp_path / "model")


def test_a_model_folder_and_an_exported_file_keep_everything(tmp_path, small):
    write_folder(tmp_path / "first", small)
    assert export(small, tmp_path / "net.safetensors") == 0
    for src in ("first", "net.safetensors"):
        assert_written(convert(tmp_path / src, tmp_path / "second"), tmp_path / "second")
        assert read_folder(tmp_path / "second").source == small.source


def test_the_weights_file_of_a_folder_is_told_from_the_folder(tmp_path, small):
    write_folder(tmp_path / "first", small)
    with pytest.raises(WeightsError, match=r"first/model\.safetensors .*folder"):
        convert(tmp_path / "first/model.safetensors", tmp_path / "second")


def test_the_wrong_number_of_class_names_is_refused(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(caffemodel_bytes(random_layers()))
    with pytest.raises(WeightsError, match=r"\b2 .*\b5\b"):
        convert(file, tmp_path / "model", class_names=["a", "b"])
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\nname: 'GoogleNet'\nlayer {\n" * 50,
        b"\n<!DOCTYPE html><html>Not found",
        json.dumps({"a": 1}).encode(),
        b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(range(256)),
        bytes(1000),
        gzip.compress(b"inception_v1.ckpt", mtime=0),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=str(file)) as caught:
        convert(file, tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_a_cut_file_is_refused_whatever_its_kind(tmp_path, plain, small):
    write_tensors(tmp_path / "net.safetensors", flatten(small.variables), {"format": "gnet_jax"})
    write_torch(tmp_path / "net.pth", plain)
    (tmp_path / "net.caffemodel").write_bytes(caffemodel_bytes(random_layers()))
    for kind in ("safetensors", "pth", "caffemodel"):
        file = tmp_path / f"net.{kind}"
        data = file.read_bytes()
        file.write_bytes(data[: len(data) * 3 // 4])
        with pytest.raises(WeightsError, match=str(file)):
            convert(file, tmp_path / "model")


def test_a_file_that_would_run_a_command_runs_nothing(tmp_path):
    trace = tmp_path / "trace"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {trace}",)

    with zipfile.ZipFile(tmp_path / "evil.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"conv1.conv.weight": Evil()}))
    with pytest.raises(WeightsError, match=r"\.system"):
        convert(tmp_path / "evil.pth", tmp_path / "model")
    assert not trace.exists()


def test_a_missing_file_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="nothing"):
        convert(tmp_path / "nothing", tmp_path / "model")
    with pytest.raises(UserError, match=str(tmp_path)):
        convert(tmp_path, tmp_path / "model")


def test_a_state_dict_of_another_network_is_named(tmp_path):
    write_torch(tmp_path / "a.pth", {"layer1.0.conv1.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(WeightsError, match=r"layer1\.0\.conv1\.weight"):
        convert(tmp_path / "a.pth", tmp_path / "model")
