"""Weights as training scripts save them: wrapped, renamed, retrained, with other things beside."""

import dataclasses
import hashlib
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from gnet_jax.cli.main import main
from gnet_jax.convert import caffe
from gnet_jax.convert.published import PUBLISHED
from gnet_jax.convert.read import convert, read
from gnet_jax.convert.torchvision import find_network, from_torchvision, to_torchvision
from gnet_jax.model_folder import WeightsError, read_folder
from gnet_jax.model_folder.folder import flatten
from tests.convert.caffe_files import (
    NARROW,
    caffemodel_bytes,
    floats,
    message,
    number,
    random_layers,
)
from tests.convert.conftest import narrow_torchvision
from tests.convert.torch_files import Named, save

CHANNELS = 64  # of the narrow network's last block


@pytest.fixture(scope="module")
def flat(plain):
    return from_torchvision(plain, "memory")[1]


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def network_of(tensors):
    """The flat variables found among `tensors`, and the notes."""
    network, notes = find_network(tensors, "memory")
    return from_torchvision(network, "memory")[1], notes


def with_prefix(tensors, prefix):
    return {prefix + name: value for name, value in tensors.items()}


def renamed(tensors, old, new):
    return {new + k.removeprefix(old) if k.startswith(old) else k: v for k, v in tensors.items()}


def layer(outputs, inputs):
    return np.ones((outputs, inputs), np.float32), np.arange(outputs, dtype=np.float32)


@pytest.mark.parametrize(
    "prefix", ["module.", "module._orig_mod.", "backbone.", "model.net.module.", "any name at all."]
)
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_prefix_is_known_by_the_names_that_follow(tmp_path, plain, flat, prefix, kind):
    file = tmp_path / f"net.{kind}"
    if kind == "pth":
        save(with_prefix(plain, prefix), file)
    else:
        save_file(with_prefix(plain, prefix), file)
    assert_same(flatten(read(file).variables), flat)


def test_compiled_parts_of_the_network_are_read(plain, flat):
    assert_same(network_of(renamed(plain, "inception4c.", "inception4c._orig_mod."))[0], flat)


@pytest.mark.parametrize("key", ["state_dict", "any", "x/y/z"])
def test_the_key_of_a_checkpoint_is_known_by_what_it_holds(tmp_path, plain, flat, key):
    checkpoint = with_prefix(plain, "module.")
    for part in reversed(key.split("/")):
        checkpoint = {part: checkpoint}
    save({"epoch": 3} | checkpoint, tmp_path / "a.pth")
    assert_same(flatten(read(tmp_path / "a.pth").variables), flat)


def test_what_trainers_save_beside_the_weights_is_left_out_and_counted(
    tmp_path, plain, flat, capsys
):
    moments = {i: {"step": np.ones((), np.float32), "exp_avg": np.ones(3)} for i in range(4)}
    checkpoint = {
        "model": plain,
        "optimizer": {"state": moments, "param_groups": [{"lr": 0.1, "params": [0, 1]}]},
        "args": Named("argparse", "Namespace", (), {"lr": 0.1, "data": "photos"}),
        "best": Named(
            "numpy.core.multiarray", "scalar", (Named("numpy", "dtype", ("f8", 0, 1)), "x")
        ),
        "out": Named("pathlib", "PosixPath", ("runs", "a")),
        "history": Named("collections", "defaultdict", (Named("builtins", "list"),)),
        "rng": np.zeros(5056, np.uint8),
        "epoch": 9,
    }
    save(checkpoint, tmp_path / "a.pth")
    folder = read(tmp_path / "a.pth")
    assert_same(flatten(folder.variables), flat)
    assert "rng and 8 other" in folder.source["notes"]
    assert "rng and 8 other" in capsys.readouterr().err


def test_lightnings_loss_beside_the_network_is_left_out_by_name(plain, flat):
    found, notes = network_of(with_prefix(plain, "model.") | {"loss.weight": np.ones(7)})
    assert_same(found, flat)
    assert any("loss.weight" in note for note in notes)


@pytest.mark.parametrize("shape", [(3,), (1, 3, 1, 1)])
def test_a_norm_of_the_image_before_the_network_is_refused_by_name(plain, shape):
    tensors = {"0.mean": np.ones(shape), "0.std": np.ones(shape)} | with_prefix(plain, "1.")
    with pytest.raises(WeightsError, match=r"0\.mean"):
        network_of(tensors)


@pytest.mark.parametrize(
    ("first", "second"), [("model/", "ema/"), ("model/", "ema/module."), ("model.", "ema_model.")]
)
def test_two_networks_in_one_file_are_named(plain, first, second):
    with pytest.raises(WeightsError) as caught:
        find_network(with_prefix(plain, first) | with_prefix(plain, second), "memory")
    assert f"{first}conv1" in str(caught.value)
    assert f"{second}conv1" in str(caught.value)


def test_one_dict_under_two_keys_is_one_network(tmp_path, plain, flat):
    save({"model": plain, "state_dict": plain}, tmp_path / "a.pth")
    assert_same(flatten(read(tmp_path / "a.pth").variables), flat)


@pytest.mark.parametrize("place", ["fc.1", "fc.0.0", "head", "classifier.2"])
def test_one_linear_layer_in_a_module_is_the_classifier(plain, flat, place):
    found, notes = network_of(renamed(plain, "fc", place))
    assert_same(found, flat)
    assert any(place in note for note in notes)


@pytest.mark.parametrize("prefix", ["backbone.", "state_dict/backbone."])
def test_a_head_beside_a_backbone_is_the_classifier(plain, flat, prefix):
    root = prefix.removesuffix("backbone.")
    tensors = renamed(with_prefix(plain, prefix), f"{prefix}fc", f"{root}head.1")
    assert_same(network_of(tensors)[0], flat)


@pytest.mark.parametrize("name", ["fc", "head"])
def test_a_classifier_as_a_convolution_computes_the_same(plain, flat, name):
    tensors = plain | {"fc.weight": plain["fc.weight"][:, :, None, None]}
    assert_same(network_of(renamed(tensors, "fc", name))[0], flat)


@pytest.mark.parametrize("hidden", [32, CHANNELS])
@pytest.mark.parametrize(
    ("first", "second"),
    [("fc.0", "fc.3"), ("head.0", "head.3"), ("fc", "fc2"), ("backbone.fc", "head")],
)
def test_a_second_layer_makes_it_another_network(plain, hidden, first, second):
    prefix = "backbone." if "backbone" in first else ""
    tensors = {prefix + k: v for k, v in plain.items() if not k.startswith("fc.")}
    tensors[f"{first}.weight"], tensors[f"{first}.bias"] = layer(hidden, CHANNELS)
    tensors[f"{second}.weight"], tensors[f"{second}.bias"] = layer(7, hidden)
    with pytest.raises(WeightsError, match=second):
        network_of(tensors)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_norm_beside_the_classifier_makes_it_another_network(plain, prefix):
    tensors = renamed(with_prefix(plain, prefix), f"{prefix}fc", "head.0")
    with pytest.raises(WeightsError, match=r"head\.1\.running_mean"):
        network_of(tensors | {"head.1.running_mean": np.ones(7)})


def test_a_backbone_without_classifier_names_what_is_missing(plain):
    tensors = {k: v for k, v in plain.items() if not k.startswith("fc.")}
    with pytest.raises(WeightsError, match=r"fc\.weight.*embedding\.weight"):
        network_of(tensors | {"embedding.weight": np.ones((7, 3, 3))})


def test_heads_of_other_classes_are_left_out_by_name():
    whole = to_torchvision(*narrow_torchvision())
    for head, classes in (("aux1", 1000), ("aux2", 1000)):
        inputs = whole[f"{head}.fc2.weight"].shape[1]
        whole[f"{head}.fc2.weight"], whole[f"{head}.fc2.bias"] = layer(classes, inputs)
    network, notes = find_network(whole, "memory")
    arch, _ = from_torchvision(network, "memory")
    assert (arch.num_classes, arch.aux_after) == (7, ())
    assert sum("aux1" in note or "aux2" in note for note in notes) == 2


def test_heads_of_the_same_classes_are_kept_also_if_there_is_only_one():
    whole = to_torchvision(*narrow_torchvision())
    arch, _ = from_torchvision(find_network(whole, "memory")[0], "memory")
    assert arch.aux_after == ("4a", "4d")
    one = {k: v for k, v in whole.items() if not k.startswith("aux1.")}
    arch, _ = from_torchvision(find_network(one, "memory")[0], "memory")
    assert arch.aux_after == ("4d",)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_every_floating_type_and_layout_is_read(tmp_path, plain, dtype):
    tensors = {
        name: np.asfortranarray(value.astype(dtype)) if value.ndim else value
        for name, value in plain.items()
    }
    save(tensors, tmp_path / "a.pth")
    variables = flatten(read(tmp_path / "a.pth").variables)
    expected = plain["fc.weight"].astype(dtype).astype(np.float32).T
    np.testing.assert_array_equal(variables["params/classifier/kernel"], expected)


def test_weights_that_are_integers_are_refused_by_name(plain):
    tensors = plain | {"conv2.conv.weight": plain["conv2.conv.weight"].astype(np.int64)}
    with pytest.raises(WeightsError, match=r"conv2\.conv\.weight .*int64"):
        network_of(tensors)


def test_an_object_that_can_run_is_refused_also_beside_the_weights(tmp_path, plain):
    save({"model": plain, "hook": Named("os", "system", ("true",))}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"os\.system"):
        read(tmp_path / "a.pth")


def test_one_output_is_refused_because_a_softmax_of_it_says_nothing(tmp_path, plain):
    weight, bias = layer(1, CHANNELS)
    save(plain | {"fc.weight": weight, "fc.bias": bias}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="1 output"):
        read(tmp_path / "a.pth")


# Caffe


def caffe_file(path, layers):
    path.write_bytes(caffemodel_bytes(layers))
    return path


@pytest.mark.parametrize("name", ["loss3/classifier_pets", "my_classifier"])
@pytest.mark.parametrize("form", ["linear", "convolution"])
@pytest.mark.parametrize("v1", [False, True])
def test_a_caffe_classifier_may_have_any_name_and_be_a_convolution(tmp_path, name, form, v1):
    layers = random_layers(aux_after=())
    weights, bias = layers.pop("loss3/classifier")
    layers[name] = [weights if form == "linear" else weights[:, :, None, None], bias]
    file = tmp_path / "net.caffemodel"
    file.write_bytes(caffemodel_bytes(layers, v1=v1))
    folder = read(file)
    kernel = folder.variables["params"]["classifier"]["kernel"]
    np.testing.assert_array_equal(kernel, weights.T)
    assert name in folder.source["notes"]


def test_renamed_caffe_heads_keep_their_places():
    usual = random_layers()
    names = {"loss1/classifier": "a", "loss2/classifier": "loss2/b", "loss3/classifier": "c"}
    layers = {names.get(name, name): blobs for name, blobs in usual.items()}
    network, notes = caffe.find_network(layers, "memory")
    assert_same(caffe.from_caffe(network, "memory")[1], caffe.from_caffe(usual, "memory")[1])
    assert len(notes) == 3


def test_a_caffe_prefix_is_dropped():
    usual = random_layers()
    network, _ = caffe.find_network({f"left/{n}": blobs for n, blobs in usual.items()}, "memory")
    assert_same(caffe.from_caffe(network, "memory")[1], caffe.from_caffe(usual, "memory")[1])


def test_caffe_heads_of_other_classes_are_left_out_by_name(tmp_path):
    layers = random_layers()
    layers["loss3/classifier"] = list(layer(365, layers["loss3/classifier"][0].shape[1]))
    folder = read(caffe_file(tmp_path / "places.caffemodel", layers))
    assert folder.model.arch.num_classes == 365
    assert folder.model.arch.aux_after == ()
    assert "loss1" in folder.source["notes"]
    assert "loss2" in folder.source["notes"]


def test_caffe_layers_that_cannot_be_told_are_named(tmp_path):
    layers = random_layers(aux_after=())
    blobs = layers.pop("loss3/classifier")
    file = caffe_file(tmp_path / "a.caffemodel", layers | {"colour": blobs, "shape": blobs})
    with pytest.raises(WeightsError, match="colour, shape"):
        read(file)
    file = caffe_file(tmp_path / "b.caffemodel", {"fc6": blobs, "fc7": blobs})
    with pytest.raises(WeightsError, match="fc6"):
        read(file)


# What a file does not say


def lines_of(capsys, file):
    """The lines about the file on standard error, without its name."""
    start, lines = f"{file}: ", capsys.readouterr().err.splitlines()
    return [line.removeprefix(start) for line in lines if line.startswith(start)]


@pytest.mark.parametrize(
    ("options", "mean"),
    [((), 123.675), (("--transform-input", "no"), 123.675), (("--transform-input", "yes"), 127.5)],
)
def test_transform_input_is_an_option_and_said_if_assumed(tmp_path, plain, capsys, options, mean):
    save(plain, tmp_path / "net.pth")
    file, out = tmp_path / "net.pth", tmp_path / "model"
    assert main(["convert", str(file), str(out), *options]) == 0
    said = [line for line in lines_of(capsys, file) if "transform_input" in line]
    assert len(said) == (0 if options else 1)
    assert read_folder(out).preprocessing.mean[0] == pytest.approx(mean)
    assert ("assumed training without" in (out / "README.md").read_text()) == (not options)


def test_what_a_torch_file_does_not_say_is_said_wherever_it_is_read(tmp_path, plain, capsys):
    file = tmp_path / "net.pth"
    save(plain, file)
    assert main(["predict", str(file), str(tmp_path / "no.jpg")]) == 1
    said = lines_of(capsys, file)
    assert len(said) == 3
    for line, words in zip(said, ("preprocessing", "transform_input", "class 6"), strict=True):
        assert words in line
    convert(file, tmp_path / "model")
    capsys.readouterr()
    read(tmp_path / "model")
    assert capsys.readouterr().err == ""  # the card says it


def test_what_a_caffe_file_does_not_say_is_said(tmp_path, capsys):
    file = caffe_file(tmp_path / "net.caffemodel", random_layers())
    convert(file, tmp_path / "model", class_names=list("abcde"))
    (line,) = lines_of(capsys, file)
    assert "assumed" in line
    assert "BGR" in line
    assert "(104.0, 117.0, 123.0)" in line
    assert "assumed the preprocessing" in (tmp_path / "model/README.md").read_text()


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize(
    ("transform", "mean", "std", "size"),
    [
        (number(3, 224) + floats(5, 91, 103, 114), (91, 103, 114), 1, 224),
        (floats(1, 0.0078125) + floats(5, 127.5), (127.5,) * 3, 128, 224),
        (number(2, 1) + number(3, 192), (0, 0, 0), 1, 192),
        (number(3, 299), (0, 0, 0), 1, 299),
        (number(3, 224) + message(4, b"data/pets_mean.binaryproto"), (104, 117, 123), 1, 224),
    ],
)
def test_the_data_layer_of_a_caffe_file_tells_the_preprocessing(
    tmp_path, capsys, v1, transform, mean, std, size
):
    file = tmp_path / "net.caffemodel"
    file.write_bytes(caffemodel_bytes(random_layers(aux_after=()), v1=v1, transform=transform))
    found = read(file).preprocessing
    assert (found.mean, found.std, found.image_size) == (mean, (std,) * 3, size)
    assert found.resize_to == (299 if size == 299 else 256)
    said, rest, _ = lines_of(capsys, file)
    assert "data layer data" in said
    assert "rest" in rest
    assert ("pets_mean.binaryproto" in said) == (b"pets" in transform)


def test_the_first_of_two_data_layers_tells_the_preprocessing(tmp_path):
    layers = random_layers(aux_after=())
    second = message(100, message(1, b"other") + message(100, number(3, 192)))
    file = tmp_path / "net.caffemodel"
    file.write_bytes(caffemodel_bytes(layers, transform=number(3, 128)) + second)
    assert read(file).preprocessing.image_size == 128


@pytest.mark.parametrize("transform", [floats(1, 0), floats(5, 1, 2), floats(5, np.nan)])
def test_a_data_layer_that_cannot_be_followed_is_refused_by_name(tmp_path, transform):
    file = tmp_path / "net.caffemodel"
    file.write_bytes(caffemodel_bytes(random_layers(aux_after=()), transform=transform))
    with pytest.raises(WeightsError, match="data layer data"):
        read(file)


def test_nothing_is_assumed_of_published_weights(tmp_path, plain, capsys, monkeypatch):
    file = tmp_path / "net.pth"
    save(plain, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(PUBLISHED, "torchvision", PUBLISHED["torchvision"]._replace(sha256=digest))
    folder = read(file, class_names=list("abcdefg"))
    assert folder.preprocessing.mean == (127.5, 127.5, 127.5)
    assert folder.source["origin"] == "torchvision"
    assert capsys.readouterr().err == ""
    with pytest.raises(WeightsError, match="published"):
        read(file, transform_input=False)


def test_imagenets_names_are_assumed_aloud_unless_the_file_is_known(tmp_path, capsys, monkeypatch):
    layers = random_layers(dataclasses.replace(NARROW, num_classes=1000), aux_after=())
    file = caffe_file(tmp_path / "net.caffemodel", layers)
    assert read(file).class_names[0] == "tench, Tinca tinca"
    assert any("ImageNet" in line for line in lines_of(capsys, file))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(PUBLISHED, "caffe", PUBLISHED["caffe"]._replace(sha256=digest))
    assert read(file).class_names[999] == "toilet tissue, toilet paper, bathroom tissue"
    assert lines_of(capsys, file) == []


def test_a_background_is_assumed_only_of_tf_slim(tmp_path):
    layers = random_layers(dataclasses.replace(NARROW, num_classes=1001), aux_after=())
    names = read(caffe_file(tmp_path / "net.caffemodel", layers)).class_names
    assert (names[0], names[1000], len(names)) == ("class 0", "class 1000", 1001)


def test_names_given_later_take_the_place_of_the_assumed(tmp_path):
    file = caffe_file(tmp_path / "net.caffemodel", random_layers())
    convert(file, tmp_path / "first")
    folder = convert(tmp_path / "first", tmp_path / "second", class_names=list("abcde"))
    assert "class_names" in read_folder(tmp_path / "first").source
    assert "class_names" not in folder.source


@pytest.mark.parametrize("kind", ["caffemodel", "folder"])
def test_transform_input_of_another_kind_of_model_is_refused(tmp_path, plain, kind, capsys):
    if kind == "folder":
        save(plain, tmp_path / "net.pth")
        convert(tmp_path / "net.pth", tmp_path / "net")
        src = tmp_path / "net"
    else:
        src = caffe_file(tmp_path / "net.caffemodel", random_layers())
    assert main(["convert", str(src), str(tmp_path / "x"), "--transform-input", "yes"]) == 2
    assert "transform_input" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_config_json_holds_what_was_assumed(tmp_path):
    file = caffe_file(tmp_path / "net.caffemodel", random_layers())
    convert(file, tmp_path / "model")
    source = json.loads((tmp_path / "model/config.json").read_text())["source"]
    assert "preprocessing" in source["notes"]
    assert "class 0 to class 4" in source["class_names"]
