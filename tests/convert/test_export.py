"""Every export computes what the network computes, and nothing that does not is left behind."""

import builtins
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import gnet_jax
from gnet_jax.convert import export as export_room
from gnet_jax.convert.export import TOLERANCE, export
from gnet_jax.convert.read import convert
from gnet_jax.convert.torchvision import preprocessing
from gnet_jax.data.augment import preprocess
from gnet_jax.data.decode import central_crop, decode
from gnet_jax.errors import UserError
from gnet_jax.model.architecture import architecture
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model_folder import TrainedModel, WeightsError, write_folder
from tests.convert.conftest import photos, random_variables, small_folder

NEEDS = {".onnx": ("onnx", "onnxruntime"), ".stablehlo": ("flatbuffers",)}
NEEDS[".tflite"] = ("litert_converter", "ai_edge_litert")


def need(suffix: str) -> None:
    for package in NEEDS.get(suffix, ()):
        pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.mark.parametrize("suffix", [".onnx", ".stablehlo", ".tflite", ".safetensors"])
def test_what_is_written_agrees_and_stays_alone(tmp_path, small, suffix):
    need(suffix)
    assert export(small, tmp_path / f"net{suffix}") <= 1e-5
    assert [path.name for path in tmp_path.iterdir()] == [f"net{suffix}"]
    if suffix == ".stablehlo":
        program = jax.export.deserialize(bytearray((tmp_path / "net.stablehlo").read_bytes()))
        assert program.platforms == ("cpu", "cuda", "tpu")
        assert program.in_avals[0].shape[1:] == (32, 32, 3)


@pytest.mark.parametrize(
    ("variant", "knobs"),
    [
        ("paper", {"image_size": 33}),
        ("paper", {"stem": "imagenet", "image_size": 75}),
        ("paper", {"head": "fc"}),
        ("batch_norm", {}),
        ("torchvision", {"stem": "imagenet", "image_size": 65}),
        ("google_release", {}),
        ("naive", {}),
    ],
    ids=str,
)
def test_every_variant_goes_to_onnx(tmp_path, variant, knobs):
    need(".onnx")
    assert export(small_folder(variant, **knobs), tmp_path / "net.onnx") <= 1e-5


@pytest.mark.parametrize(
    ("variant", "knobs"),
    [
        ("paper", {"stem": "imagenet", "image_size": 75, "aux_after": ("4a",)}),
        ("paper", {"head": "fc"}),
        ("torchvision", {}),
        ("naive_batch_norm", {}),
    ],
    ids=str,
)
def test_networks_go_to_litert_for_one_image_at_a_time(tmp_path, variant, knobs):
    need(".tflite")
    from ai_edge_litert.interpreter import Interpreter

    folder = small_folder(variant, **knobs)
    assert export(folder, tmp_path / "net.tflite") <= 1e-5
    runner = Interpreter(str(tmp_path / "net.tflite")).get_signature_runner()
    side = folder.preprocessing.image_size
    assert runner.get_input_details()["input"]["shape"].tolist() == [1, side, side, 3]
    assert runner.get_output_details()["logits"]["shape"].tolist() == [1, 3]


@pytest.mark.parametrize("size", [64, 65])
def test_tensorflows_padding_goes_to_onnx(tmp_path, size):
    need(".onnx")
    folder = small_folder("torchvision", stem="imagenet", image_size=size)
    model = GoogLeNet(dataclasses.replace(folder.model.arch, stem_padding="same"))
    assert export(dataclasses.replace(folder, model=model), tmp_path / "net.onnx") <= 1e-5


def test_auxiliary_heads_are_left_out_of_graphs(tmp_path):
    need(".onnx")
    import onnx

    export(small_folder(aux_after=("4a",)), tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx")
    assert ([each.version for each in graph.opset_import], graph.ir_version) == ([13], 8)
    assert not [node.name for node in graph.graph.node if "aux" in node.name]
    assert [output.name for output in graph.graph.output] == ["logits"]
    config = json.loads({p.key: p.value for p in graph.metadata_props}["config"])
    assert config["preprocessing"]["channels"] == "BGR"


def onnx_parts(folder, tmp_path):
    """The nodes of the exported graph by name, with their attributes, and its constants."""
    import onnx

    export(folder, tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    nodes = {
        node.name: {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for node in graph.node
    }
    return nodes, {c.name: onnx.numpy_helper.to_array(c) for c in graph.initializer}


def test_the_graph_has_the_papers_layers(tmp_path):
    need(".onnx")
    folder = small_folder(stem="imagenet", image_size=75)
    nodes, constants = onnx_parts(folder, tmp_path)
    for name in ("norm1", "norm2"):
        assert nodes[name]["size"] == 5
        assert nodes[name]["alpha"] == pytest.approx(1e-4)
        assert (nodes[name]["beta"], nodes[name]["bias"]) == (0.75, 1.0)
    # 75 -> conv1 38 -> pool1 ceil(35 / 2) + 1 = 19 -> pool2 9: one pixel is missing behind 38
    for name, pads in {
        "pool1": [0, 0, 1, 1],
        "pool2": [0, 0, 0, 0],
        "inception_3a/pool": [1, 1, 1, 1],
    }.items():
        assert nodes[name]["pads"] == pads
        assert nodes[name]["kernel_shape"] == [3, 3]
        assert nodes[name]["strides"] == ([1, 1] if name.startswith("inception") else [2, 2])
        assert nodes[name].get("ceil_mode", 0) == 0
    assert nodes["conv1/conv"]["strides"] == [2, 2]
    assert nodes["conv1/conv"]["pads"] == [3, 3, 3, 3]
    assert nodes["inception_4a/b5/conv"]["kernel_shape"] == [5, 5]
    kernel = folder.variables["params"]["conv1"]["conv"]["kernel"]
    assert constants["conv1/weight"][1, 2, 6, 3] == kernel[6, 3, 2, 1]


def test_a_graph_states_who_wrote_it_and_which_versions_it_needs(tmp_path):
    need(".onnx")
    import onnx

    export(small_folder(), tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    assert (model.producer_name, model.producer_version) == ("gnet_jax", gnet_jax.__version__)
    # onnxruntime reads these since version 1.6 and 1.13.
    assert (model.opset_import[0].version, model.ir_version) == (13, 8)


def test_batch_norm_is_folded_with_an_epsilon_of_a_thousandth(tmp_path):
    need(".onnx")
    folder = small_folder("batch_norm")
    conv = folder.variables["params"]["conv1"]
    conv["norm"]["scale"][:], conv["norm"]["bias"][:] = 2.0, 0.5
    stats = folder.variables["batch_stats"]["conv1"]["norm"]
    stats["mean"][:], stats["var"][:] = 3.0, 0.003
    _, constants = onnx_parts(folder, tmp_path)
    factor = 2 / 0.004**0.5
    np.testing.assert_allclose(constants["conv1/bias"], 0.5 - 3 * factor, rtol=1e-6)
    expected = conv["conv"]["kernel"][2, 0, 1] * factor
    np.testing.assert_allclose(constants["conv1/weight"][:, 1, 2, 0], expected, rtol=1e-6)


def test_a_safetensors_file_keeps_the_auxiliary_heads(tmp_path):
    folder = small_folder(aux_after=("4a",))
    assert export(folder, tmp_path / "net.safetensors") == 0
    tensors = load_file(tmp_path / "net.safetensors")
    expected = folder.variables["params"]["aux_4a"]["fc"]["kernel"]
    np.testing.assert_array_equal(tensors["params/aux_4a/fc/kernel"], expected)


def test_a_network_in_bfloat16_is_exported_in_float32(tmp_path, small):
    need(".onnx")
    model = GoogLeNet(small.model.arch, dtype=jax.numpy.bfloat16)
    assert export(dataclasses.replace(small, model=model), tmp_path / "net.onnx") <= 1e-5


@pytest.mark.parametrize(
    ("factor", "difference"),
    [(0.0, r"1\.0e\+00"), (np.nan, "nan"), (1 + 2e-4, r"2\.0e-04"), (1 + 5e-5, None)],
)
def test_a_file_that_computes_something_else_is_removed(
    tmp_path, small, monkeypatch, factor, difference
):
    def wrong(folder, out):
        out.write_bytes(b"...")
        apply = jax.jit(small.model.apply)
        return lambda x_BHWC: factor * np.asarray(apply(small.variables, x_BHWC).logits, "f8")

    monkeypatch.setitem(export_room._WRITERS, ".onnx", wrong)
    if difference is None:
        assert export(small, tmp_path / "net.onnx") == pytest.approx(5e-5, rel=0.05)
        return
    with pytest.raises(UserError, match=difference):
        export(small, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_an_unknown_suffix_and_a_missing_folder_are_named(tmp_path, small):
    with pytest.raises(UserError, match=r"net\.pb.*\.onnx"):
        export(small, tmp_path / "net.pb")
    with pytest.raises(UserError, match="missing"):
        export(small, tmp_path / "missing" / "net.safetensors")


@pytest.mark.parametrize(
    ("suffix", "package", "extra"),
    [
        (".onnx", "onnx", "export"),
        (".stablehlo", "flatbuffers", "export"),
        (".tflite", "ai_edge_litert", "litert"),
    ],
)
def test_a_missing_package_names_the_extra(tmp_path, small, monkeypatch, suffix, package, extra):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=rf"{package}.*\[{extra}\]"):
        export(small, tmp_path / f"net{suffix}")


def test_the_weights_of_a_model_folder_are_not_replaced(tmp_path, small):
    write_folder(tmp_path / "model", small)
    weights = tmp_path / "model" / "model.safetensors"
    before = weights.read_bytes()
    with pytest.raises(UserError, match=str(weights)):
        export(small, weights)
    assert weights.read_bytes() == before


def test_only_torchvisions_own_variant_becomes_a_pth(tmp_path, small):
    with pytest.raises(WeightsError, match="torchvision"):
        export(small, tmp_path / "net.pth")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_pth_is_what_torchvision_computes(tmp_path):
    model = GoogLeNet(architecture("torchvision", 5))
    names = tuple("abcde")
    folder = TrainedModel(model, random_variables(model, 224), preprocessing(False), names, {})
    assert export(folder, tmp_path / "net.pth") == 0
    reason = "torch and torchvision, the oracles, are not installed"
    torch = pytest.importorskip("torch", reason=reason)
    models = pytest.importorskip("torchvision.models", reason=reason)
    net = models.googlenet(init_weights=False, aux_logits=True, num_classes=5).eval()
    net.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True))
    x = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    found = jax.jit(model.apply)(folder.variables, x).logits
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.fixture(scope="module")
def published(tmp_path_factory, caffemodel):
    """The published Caffe weights, and what they say about three photos."""
    folder = convert(caffemodel, tmp_path_factory.mktemp("published") / "model")
    p = folder.preprocessing
    crops = np.stack([central_crop(decode(photo), p) for photo in photos(3)])
    images = np.asarray(preprocess(crops, preprocessing=p))
    return folder, images, np.asarray(jax.jit(folder.model.apply)(folder.variables, images).logits)


@pytest.mark.slow
def test_onnx_agrees_on_real_photos(tmp_path, published):
    need(".onnx")
    import onnxruntime

    folder, images, expected = published
    assert export(folder, tmp_path / "net.onnx") <= TOLERANCE
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (found,) = session.run(None, {"input": images.transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    for i in range(3):  # the batch is free
        (alone,) = session.run(None, {"input": images[i : i + 1].transpose(0, 3, 1, 2)})
        np.testing.assert_allclose(alone[0], expected[i], atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("resize", "size"), [("warp", (61, 47)), ("shorter_side", (47, 60))])
def test_the_pages_code_gives_the_models_logits_for_a_turned_photo(
    tmp_path, small, monkeypatch, resize, size
):
    need(".onnx")
    p = dataclasses.replace(small.preprocessing, resize=resize, resize_to=37)
    folder = dataclasses.replace(small, preprocessing=p)
    export(folder, tmp_path / "googlenet.onnx")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif)
    crop = central_crop(decode((tmp_path / "photo.jpg").read_bytes()), p)
    image = preprocess(crop[None], preprocessing=p)
    page = (Path(__file__).parents[2] / "docs" / "pretrained.md").read_text()
    (code,) = re.findall(r"```python no-run\n([^`]*InferenceSession[^`]*)```", page)
    found = {}
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "pretrained.md", "exec"), found)
    np.testing.assert_allclose(found["x"], image[0], rtol=1e-6, atol=1e-6)
    expected = np.asarray(jax.jit(folder.model.apply)(folder.variables, image).logits)
    np.testing.assert_allclose(found["logits"], expected, atol=1e-5 * np.abs(expected).max())


STRANGER = """
import sys
sys.modules["flax"] = sys.modules["gnet_jax"] = None  # an import of either fails
import jax.export
import numpy as np

program = jax.export.deserialize(bytearray(open("net.stablehlo", "rb").read()))
assert set(program.platforms) == {"cpu", "cuda", "tpu"}
np.save("found.npy", program.call(np.load("images.npy")))
"""


@pytest.mark.slow
def test_stablehlo_runs_where_neither_flax_nor_this_package_is(tmp_path, published):
    need(".stablehlo")
    folder, images, expected = published
    assert export(folder, tmp_path / "net.stablehlo") <= TOLERANCE
    np.save(tmp_path / "images.npy", images)
    subprocess.run([sys.executable, "-c", STRANGER], cwd=tmp_path, check=True)
    found = np.load(tmp_path / "found.npy")
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_a_nan_in_any_batch_is_no_agreement(small):
    def nan_in_the_larger(x_BHWC):
        return np.full((len(x_BHWC), 3), 1.0 if len(x_BHWC) == 1 else np.nan)

    assert not export_room._largest_difference(small, nan_in_the_larger) <= 1


def test_a_model_that_is_read_back_must_be_identical(small):
    other = GoogLeNet(dataclasses.replace(small.model.arch, dropout=0.1))
    params = small.variables["params"]
    more = {"params": params | {"more": {"bias": np.zeros(1, np.float32)}}}
    assert export_room._largest_difference(small, small) == 0
    for change in ({"model": other}, {"variables": more}):
        assert export_room._largest_difference(small, dataclasses.replace(small, **change)) > 1


def test_a_difference_at_the_tolerance_is_accepted(tmp_path, small, monkeypatch):
    assert TOLERANCE == 1e-4
    out, differences = tmp_path / "net.safetensors", iter([1.1e-4, 1e-4])
    monkeypatch.setattr(export_room, "_largest_difference", lambda *_: next(differences))
    with pytest.raises(UserError, match=r"1\.1e-04"):
        export(small, out)
    assert not out.exists()
    assert export(small, out) == 1e-4
    assert out.exists()
