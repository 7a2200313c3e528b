"""Google's release of the network: the graph, its labels, and its arithmetic in torch-lucent."""

import contextlib
import dataclasses
import importlib.util
import io
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from gnet_jax.convert.inception5h import LABELS, PREPROCESSING, from_graph, is_graph, read_graph
from gnet_jax.convert.read import convert, read
from gnet_jax.convert.torch_file import write_torch
from gnet_jax.data.augment import preprocess
from gnet_jax.lab.look.objectives import channel, stack
from gnet_jax.lab.look.visualize import Plan, render, scores
from gnet_jax.model.architecture import VARIANTS
from gnet_jax.model.googlenet import GoogLeNet, endpoints, every_head
from gnet_jax.model.names import find_layer
from gnet_jax.model_folder import WeightsError, read_folder
from gnet_jax.model_folder.folder import expected_shapes
from tests.convert.caffe_files import (
    NARROW,
    caffemodel_bytes,
    floats,
    message,
    number,
    random_layers,
)
from tests.convert.tf_files import (
    GOOGLES_LRN,
    checkpoint_v1,
    dims,
    graph_bytes,
    node,
    random_weights,
)

PB = "tensorflow_inception_graph.pb"
ARCH = VARIANTS["google_release"]
LAYERS = ("conv2d0", "conv2d1", "conv2d2", *(f"mixed{block}" for block in ARCH.widths))


@pytest.fixture(scope="module")
def weights():
    """Those of a narrow network with both auxiliary heads."""
    return random_weights(NARROW.widths, NARROW.stem_widths, 5, NARROW.aux_widths)


def test_every_weight_has_its_place(weights):
    arch, flat = from_graph(weights, (), "memory")
    names = ("widths", "stem_widths", "num_classes", "aux_after", "aux_widths")
    assert all(getattr(arch, name) == getattr(NARROW, name) for name in names)
    assert arch == dataclasses.replace(ARCH, **{name: getattr(NARROW, name) for name in names})
    assert {name: v.shape for name, v in flat.items()} == expected_shapes(GoogLeNet(arch), 224)
    for ours, theirs in {
        "conv1/conv": "conv2d0",
        "conv2_reduce/conv": "conv2d1",
        "conv2/conv": "conv2d2",
        "inception_3a/b1/conv": "mixed3a_1x1",
        "inception_3b/reduce3/conv": "mixed3b_3x3_bottleneck",
        "inception_4a/b3/conv": "mixed4a_3x3",
        "inception_4c/reduce5/conv": "mixed4c_5x5_bottleneck",
        "inception_4e/b5/conv": "mixed4e_5x5",
        "inception_5b/pool_proj/conv": "mixed5b_pool_reduce",
        "aux_4a/conv/conv": "head0_bottleneck",
        "aux_4a/fc": "nn0",  # flattened in our order: height, width, channels
        "aux_4d/fc": "nn1",
        "aux_4d/classifier": "softmax1",
        "classifier": "softmax2",
    }.items():
        np.testing.assert_array_equal(flat[f"params/{ours}/kernel"], weights[f"{theirs}_w"])
        np.testing.assert_array_equal(flat[f"params/{ours}/bias"], weights[f"{theirs}_b"])


def test_both_forms_of_a_tensor_read_the_same(tmp_path, weights):
    weights = weights | {"mixed3a_1x1_b": np.full_like(weights["mixed3a_1x1_b"], 0.25)}
    file = tmp_path / PB
    file.write_bytes(graph_bytes(weights, typed=["mixed3a_1x1_b", "softmax2_w", "conv2d0_w"]))
    assert is_graph(file.read_bytes()[:32])
    tensors, lrns = read_graph(file)
    assert tensors.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)
    np.testing.assert_allclose(lrns, [GOOGLES_LRN] * 2, rtol=1e-7)


@pytest.mark.parametrize(
    ("lrns", "expected"), [((), ARCH.lrn), (((11, 2.0, 1e-4, 0.5),) * 2, (11, 2.0, 1e-4, 0.5))]
)
def test_the_lrn_is_that_of_the_graph(tmp_path, weights, lrns, expected):
    file = tmp_path / PB
    file.write_bytes(graph_bytes(weights, lrns))
    assert read(file).model.arch.lrn == expected


def test_an_lrn_without_values_has_tensorflows_defaults(tmp_path, weights):
    file = tmp_path / PB
    file.write_bytes(graph_bytes(weights, ()) + node("localresponsenorm0", "LRN"))
    assert read(file).model.arch.lrn == (11, 1.0, 1.0, 0.5)


def test_two_different_lrns_are_refused(tmp_path, weights):
    file = tmp_path / PB
    file.write_bytes(graph_bytes(weights, ((5, 1.0, 1e-4, 0.5), (9, 1.0, 1e-4, 0.5))))
    with pytest.raises(WeightsError, match=r"different LRNs.*\(5, .*\(9, "):
        read(file)


def test_a_missing_an_unknown_and_a_damaged_weight_are_named(tmp_path, weights):
    file = tmp_path / PB
    some = {name: value for name, value in weights.items() if name != "mixed4c_5x5_b"}
    for odd, words in (
        (some, "mixed4c_5x5_b is missing"),
        (weights | {"mixed6a_1x1_w": np.zeros(3, np.float32)}, "mixed6a_1x1_w, which is not part"),
        (weights | {"softmax2_w": np.zeros((2, 2, 2), np.float32)}, r"softmax2_w .*\(2, 2, 2\)"),
        ({"other": np.zeros(3, np.float32)}, "not Google's inception5h: it holds other"),
    ):
        file.write_bytes(graph_bytes(odd))
        with pytest.raises(WeightsError, match=words):
            read(file)
    whole = graph_bytes(weights)
    file.write_bytes(whole[:-3000])
    with pytest.raises(WeightsError, match=f"{PB} is a corrupt"):
        read(file)
    at = whole.index(b"\x12\x02\x08\x06", whole.index(b"conv2d0_b"))  # the dimension 6
    file.write_bytes(whole[: at + 3] + b"\x07" + whole[at + 4 :])
    with pytest.raises(WeightsError, match=r"conv2d0_b has 6 numbers for the shape \(7,\)"):
        read(file)


@pytest.mark.parametrize("shape", [(2**27 + 1,), (2**40,), (2**20, 2**20), (2**62, 4)])
def test_a_constant_larger_than_any_weight_is_refused_before_memory_is_used(tmp_path, shape):
    tensor = number(1, 1) + message(2, dims(shape)) + floats(5, 0.5)
    attributes = {"dtype": number(6, 1), "value": message(8, tensor)}
    (tmp_path / PB).write_bytes(node("conv2d0_w", "Const", **attributes))
    with pytest.raises(WeightsError, match=f"conv2d0_w has 1 numbers .*{shape[0]}"):
        read(tmp_path / PB)


def test_without_auxiliary_heads_the_network_has_none(tmp_path):
    file = tmp_path / PB
    file.write_bytes(graph_bytes(random_weights(NARROW.widths, NARROW.stem_widths, 5)))
    assert read(file).model.arch.aux_after == ()


def test_a_graph_alone_gets_numbers_as_names_and_notes_what_is_assumed(tmp_path, weights, capsys):
    file = tmp_path / PB
    file.write_bytes(graph_bytes(weights))
    model = convert(file, tmp_path / "model")
    assert model.class_names == tuple(f"class {i}" for i in range(5))
    assert model.preprocessing == PREPROCESSING
    assert (PREPROCESSING.channels, PREPROCESSING.mean) == ("RGB", (117, 117, 117))
    assert "preprocessing of Google" in capsys.readouterr().err
    assert read_folder(tmp_path / "model").model.arch == model.model.arch


def archived(file: Path, members: dict[str, bytes]) -> Path:
    """Writes `members` to a zip archive, or to a tar archive if the name of `file` says so."""
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return file
    with tarfile.open(file, "w:gz") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file


@pytest.mark.parametrize(("name", "folder"), [("inception5h.zip", ""), ("i.tar.gz", "a/b/")])
def test_an_archive_has_the_graph_and_its_labels(tmp_path, weights, name, folder):
    members = {
        f"{folder}{PB}": graph_bytes(weights),
        f"{folder}{LABELS}": b"dummy\nkit fox\nEnglish setter\n",
        f"{folder}LICENSE": b"...",
    }
    file = archived(tmp_path / name, members)
    model = read(file)
    assert model.class_names == ("dummy", "kit fox", "English setter", "class 3", "class 4")
    assert (model.source["file"], model.source["format"]) == (name, "TensorFlow graph")
    assert len(model.source["sha256"]) == 64
    members[f"{folder}{LABELS}"] = b"dummy\n" * 6
    with pytest.raises(WeightsError, match="6 names for 5 classes"):
        read(archived(tmp_path / name, members))
    members[f"{folder}{PB}"] = graph_bytes({"other": np.zeros(3, np.float32)})
    with pytest.raises(WeightsError, match=f"{name}/{folder}{PB} is not"):
        read(archived(tmp_path / name, members))


def test_other_formats_are_read_from_an_archive_too(tmp_path, plain):
    network = caffemodel_bytes(random_layers(aux_after=()))
    model = read(archived(tmp_path / "caffe.tar.gz", {"net.caffemodel": network}))
    assert model.source["format"] == "caffemodel"
    write_torch(tmp_path / "net.pth", plain)
    save_file(plain, tmp_path / "net.safetensors")
    for name, kind in (("net.pth", "torch"), ("net.safetensors", "safetensors")):
        for archive in ("a.zip", "a.tar.gz"):
            file = archived(tmp_path / archive, {name: (tmp_path / name).read_bytes()})
            assert read(file).source["format"] == f"{kind} state dict"
    slim = checkpoint_v1({"resnet/weights": np.ones(3, np.float32)})
    with pytest.raises(WeightsError, match=r"slim\.tar\.gz/m\.ckpt .*resnet/weights"):
        read(archived(tmp_path / "slim.tar.gz", {"m.ckpt": slim}))


def test_a_damaged_archive_is_refused(tmp_path, weights):
    file = archived(tmp_path / "inception5h.tar.gz", {PB: graph_bytes(weights)})
    file.write_bytes(file.read_bytes()[:-20000])
    with pytest.raises(WeightsError, match=r"inception5h\.tar\.gz is a corrupt archive"):
        read(file)


def test_an_error_in_stored_weights_is_found_by_the_checksum_of_gzip(tmp_path, weights):
    file = tmp_path / "inception5h.tar.gz"
    with tarfile.open(file, "w:gz", compresslevel=0) as archive:
        member, data = tarfile.TarInfo(PB), graph_bytes(weights)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    read(file)
    whole, value = file.read_bytes(), weights["conv2d1_w"].tobytes()[:64]
    at = whole.index(value) + 20
    file.write_bytes(whole[:at] + bytes(b ^ 1 for b in whole[at : at + 3]) + whole[at + 3 :])
    with pytest.raises(WeightsError, match=r"inception5h\.tar\.gz is a corrupt archive.*CRC"):
        read(file)


@pytest.mark.parametrize(
    "kind", ["w:gz", "w:bz2", "w:xz", zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
@pytest.mark.parametrize("place", [0.3, 0.6])
def test_an_archive_of_any_compression_is_refused_if_corrupt(tmp_path, weights, kind, place):
    (tmp_path / PB).write_bytes(graph_bytes(weights))
    file = tmp_path / "inception5h"
    if isinstance(kind, str):
        with tarfile.open(file, kind) as archive:
            archive.add(tmp_path / PB, PB)
    else:
        with zipfile.ZipFile(file, "w", kind) as archive:
            archive.write(tmp_path / PB, PB)
    assert read(file).model.arch.num_classes == 5
    whole = file.read_bytes()
    at = int(place * len(whole))
    file.write_bytes(whole[:at] + bytes(b ^ 255 for b in whole[at : at + 40]) + whole[at + 40 :])
    # A single damaged block of bzip2 hides that it contains a tar archive.
    with pytest.raises(WeightsError, match=r"inception5h is (a corrupt archive|.*cut short)"):
        read(file)


@pytest.mark.parametrize(
    ("local", "central", "value", "words"), [(6, 8, 1, "encrypted"), (8, 10, 9, "compression")]
)
def test_a_zip_that_python_cannot_extract_is_refused(
    tmp_path, weights, local, central, value, words
):
    file = archived(tmp_path / "inception5h.zip", {PB: graph_bytes(weights)})
    data = bytearray(file.read_bytes())
    for at in (local, data.rindex(b"PK\x01\x02") + central):
        data[at : at + 2] = value.to_bytes(2, "little")
    file.write_bytes(data)
    with pytest.raises(WeightsError, match=rf"inception5h\.zip cannot be extracted.*{words}"):
        read(file)


@pytest.mark.parametrize("name", ["inception5h.zip", "inception5h.tar.gz"])
def test_the_attributes_that_macos_adds_to_an_archive_are_ignored(tmp_path, weights, name):
    members = {PB: graph_bytes(weights), LABELS: b"dummy\n"}
    members |= {f"__MACOSX/._{each}": b"\0\5\x16\7" for each in list(members)}
    assert read(archived(tmp_path / name, members)).class_names[0] == "dummy"


@pytest.fixture(scope="module")
def lucent():
    """The class of the network in torch-lucent, and torch.

    The package's other dependencies are for notebooks, so the class is imported from its file.
    """
    torch = pytest.importorskip("torch", reason="torch, of the oracle, is not installed")
    spec = importlib.util.find_spec("lucent")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("torch-lucent, the oracle, is not installed")
    folder = Path(spec.submodule_search_locations[0], "modelzoo", "inceptionv1")
    for name in ("lucent", "lucent.modelzoo", "lucent.modelzoo.inceptionv1"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["lucent.modelzoo.inceptionv1"].__path__ = [str(folder)]
    try:
        module = importlib.import_module("lucent.modelzoo.inceptionv1.InceptionV1")
    finally:
        for name in [name for name in sys.modules if name.startswith("lucent")]:
            del sys.modules[name]
    return module.InceptionV1, torch


def in_lucent(network, torch, weights):
    """Lucent's network with our weights."""
    theirs, state = network(redirected_ReLU=False).eval(), {}
    for name in theirs.state_dict():
        node, _, part = name.rpartition(".")
        for end in ("_pre_relu_conv", "_pre_activation_matmul"):
            node = node.removesuffix(end)
        array = weights[f"{node}_{part[0]}"]  # of weight or bias
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim]
        state[name] = torch.from_numpy(np.ascontiguousarray(array.transpose(axes)))
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.slow
def test_a_step_of_visualisation_is_lucents(tmp_path, lucent):
    """The objective, and its gradient to the Fourier parameters, of a channel of mixed4a."""
    network, torch = lucent
    weights = random_weights(ARCH.widths, ARCH.stem_widths, ARCH.num_classes, ARCH.aux_widths)
    (tmp_path / PB).write_bytes(graph_bytes(weights, ()))
    trained, size, shift = read(tmp_path / PB), 64, 5
    params = np.random.default_rng(2).normal(0, 0.1, (1, 1, size, size // 2 + 1, 3, 2))
    params = params.astype(np.float32)
    plan = Plan(trained.model, trained.preprocessing, size, robust=False)

    def score(params, index):
        x = jax.numpy.roll(render(params, size), shift, axis=2)  # the transform: a jitter
        objectives = stack([channel("mixed4a", index)])
        return scores(plan, trained.variables, objectives, x)[0]

    own = endpoints(
        trained.model,
        trained.variables,
        preprocess(255 * render(params, size)[0], preprocessing=PREPROCESSING),
    )
    index = int(np.argmax(np.asarray(own["inception_4a/output"]).mean(axis=(0, 1, 2))))
    value, gradient = jax.value_and_grad(score)(params, index)

    def module(name):
        folder = Path(importlib.util.find_spec("lucent").submodule_search_locations[0])
        file = folder / "optvis" / "param" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, file)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded

    (spectrum,), image = module("spatial").fft_image((1, 3, size, size))
    with torch.no_grad():
        spectrum.copy_(torch.from_numpy(params[0].transpose(0, 3, 1, 2, 4).copy()))
    pixels = module("color").to_valid_rgb(image, decorrelate=True)()
    theirs, found = in_lucent(network, torch, weights), []
    theirs.mixed4a.register_forward_hook(lambda _, __, y: found.append(y))
    with contextlib.suppress(RuntimeError):  # its last pool needs 224 pixels
        theirs(255 * torch.roll(pixels, shift, 2) - 117)
    expected = found[0][0, index].mean()
    expected.backward()
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-4)
    slope = spectrum.grad.numpy().transpose(0, 2, 3, 1, 4)[None]
    assert np.abs(gradient - slope).max() <= 1e-4 * np.abs(slope).max()


@pytest.mark.slow
def test_every_block_is_what_lucent_computes(tmp_path, lucent):
    network, torch = lucent
    weights = random_weights(ARCH.widths, ARCH.stem_widths, ARCH.num_classes, ARCH.aux_widths)
    (tmp_path / PB).write_bytes(graph_bytes(weights, ()))
    trained = read(tmp_path / PB)
    assert trained.model.arch == ARCH
    x = np.random.default_rng(1).uniform(-117, 138, (1, 224, 224, 3)).astype(np.float32)

    theirs, expected = in_lucent(network, torch, weights), {}
    for name, module in theirs.named_modules():
        module.register_forward_hook(lambda _, __, y, name=name: expected.update({name: y}))
    with torch.no_grad():
        theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    expected["softmax2_pre_activation"] = expected.pop("softmax2_pre_activation_matmul")

    def differences(arch):
        model = GoogLeNet(arch)
        found = jax.jit(lambda v, x: endpoints(model, v, x))(trained.variables, x)
        for name in (*LAYERS, "softmax2_pre_activation"):
            ours, blob = np.asarray(found[find_layer(name, found)[0]]), expected[name].numpy()
            blob = blob.transpose(0, 2, 3, 1) if blob.ndim == 4 else blob
            yield name, np.abs(ours - blob).max() / np.abs(blob).max()

    for name, difference in differences(ARCH):
        assert difference <= 1e-4, name
    for wrong in ({"stem_padding": "caffe"}, {"lrn": VARIANTS["paper"].lrn}):  # the test can tell
        assert dict(differences(dataclasses.replace(ARCH, **wrong)))["mixed5b"] > 1e-3


class Graph:
    """Google's graph as TensorFlow builds it, with the names of the public listing."""

    def __init__(self, tf, weights, lrn):
        self.tf, self.weights, self.radius = tf, weights, lrn[0] // 2
        self.lrn = dict(zip(("bias", "alpha", "beta"), lrn[1:], strict=True))

    def affine(self, x, name, product, stride=1):
        tf, names = self.tf, (f"{name}_w", f"{name}_b")
        w, b = (tf.constant(self.weights[each], name=each) for each in names)
        if product == "conv":
            x = tf.nn.conv2d(x, w, stride, "SAME", name=f"{name}_pre_relu/conv")
        else:
            x = tf.matmul(tf.reshape(x, [-1, w.shape[0]]), w, name=f"{name}_pre_relu/matmul")
        return tf.nn.bias_add(x, b, name=f"{name}_pre_relu")

    def conv(self, x, name, stride=1):
        return self.tf.nn.relu(self.affine(x, name, "conv", stride), name=name)

    def pool(self, x, name, stride):
        return self.tf.nn.max_pool2d(x, 3, stride, "SAME", name=name)

    def norm(self, x, name):
        return self.tf.nn.lrn(x, self.radius, **self.lrn, name=name)

    def build(self, x):
        """Returns the logits of the three heads, the main one first."""
        tf, heads = self.tf, []
        x = self.norm(self.pool(self.conv(x, "conv2d0", 2), "maxpool0", 2), "localresponsenorm0")
        x = self.conv(self.conv(x, "conv2d1"), "conv2d2")
        x = self.pool(self.norm(x, "localresponsenorm1"), "maxpool1", 2)
        for block in NARROW.widths:
            at = f"mixed{block}"
            if block in ("4a", "5a"):
                x = self.pool(x, {"4a": "maxpool4", "5a": "maxpool10"}[block], 2)
            three, five = (
                self.conv(self.conv(x, f"{at}_{n}_bottleneck"), f"{at}_{n}") for n in ("3x3", "5x5")
            )
            pooled = self.conv(self.pool(x, f"{at}_pool", 1), f"{at}_pool_reduce")
            x = tf.concat([self.conv(x, f"{at}_1x1"), three, five, pooled], 3, name=at)
            if block in ("4a", "4d"):
                i = len(heads)
                y = tf.nn.avg_pool2d(x, 5, 3, "VALID", name=f"head{i}_pool")
                y = self.conv(y, f"head{i}_bottleneck")
                y = tf.nn.relu(self.affine(y, f"nn{i}", "matmul"), name=f"nn{i}")
                heads.append(self.affine(y, f"softmax{i}", "matmul"))
        x = tf.nn.avg_pool2d(x, 7, 1, "VALID", name="avgpool0")
        return [self.affine(x, "softmax2", "matmul"), *heads]


@pytest.mark.slow
@pytest.mark.parametrize("lrn", [GOOGLES_LRN, (11, 2.0, 1e-4, 0.5)])
def test_tensorflow_computes_the_same_from_its_own_graph(tmp_path, weights, lrn):
    tf = pytest.importorskip("tensorflow", reason="tensorflow, the oracle, is not installed")
    weights = weights | {"conv2d2_b": np.full_like(weights["conv2d2_b"], 0.25)}
    x = np.random.default_rng(1).uniform(-117, 138, (2, 224, 224, 3)).astype(np.float32)
    with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
        images = tf.compat.v1.placeholder(tf.float32, [None, 224, 224, 3], name="input")
        expected = session.run(Graph(tf, weights, lrn).build(images), {images: x})
        (tmp_path / PB).write_bytes(graph.as_graph_def().SerializeToString())
    trained = read(tmp_path / PB)
    assert trained.model.arch.lrn == pytest.approx(lrn)
    found = jax.jit(lambda v, x: every_head(trained.model, v, x))(trained.variables, x)
    for ours, theirs in zip((found.logits, *found.aux_logits), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
