"""The .caffemodel reader against what Caffe computed, and against OpenCV's reader."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnet_jax.convert.caffe import PREPROCESSING, from_caffe, load, read_caffemodel
from gnet_jax.convert.read import read
from gnet_jax.model.googlenet import GoogLeNet, endpoints
from gnet_jax.model_folder import WeightsError
from gnet_jax.model_folder.folder import flatten, unflatten
from tests.convert.caffe_files import caffemodel_bytes, message, number, prototxt, random_layers
from tests.convert.conftest import shared


@pytest.fixture(scope="module")
def blobs_and_endpoints(caffemodel):
    blobs = dict(np.load(shared("caffe_blobs_227.npz")))
    arch, flat = from_caffe(read_caffemodel(caffemodel)[0], "file")
    images = jnp.asarray(blobs.pop("data"))[None]
    model = GoogLeNet(arch)
    found = jax.jit(lambda v, x: endpoints(model, v, x))(unflatten(flat), images)
    return blobs, {name.replace("/", "_"): np.asarray(x)[0] for name, x in found.items()}


def test_every_blob_is_what_caffe_computed(blobs_and_endpoints):
    blobs, found = blobs_and_endpoints
    assert len(blobs) == 84
    for name, blob in blobs.items():
        limit = 1e-4 * np.abs(blob).max()
        np.testing.assert_allclose(found[name].reshape(blob.shape), blob, atol=limit, err_msg=name)


def test_the_class_is_caffes(blobs_and_endpoints):
    _, found = blobs_and_endpoints
    assert found["prob"].argmax() == 967


def opencv_logits(model: bytes, text: bytes, x_BHWC: np.ndarray, names: list[str]):
    reason = "OpenCV 4 reads Caffe files and is the oracle; it is not installed"
    cv2 = pytest.importorskip("cv2", reason=reason)
    if int(cv2.__version__.split(".")[0]) >= 5:
        pytest.skip("OpenCV 5 no longer reads Caffe files")
    net = cv2.dnn.readNetFromCaffe(np.frombuffer(text, np.uint8), np.frombuffer(model, np.uint8))
    net.enableFusion(False)  # so that every named layer keeps its output
    net.setInput(np.ascontiguousarray(x_BHWC.transpose(0, 3, 1, 2)))
    return net.forward(names)


def test_opencv_reads_the_same_network(caffemodel):
    layers = read_caffemodel(caffemodel)[0]
    arch, flat = from_caffe(layers, "file")
    x = np.random.default_rng(0).uniform(-120, 130, (2, 224, 224, 3)).astype(np.float32)
    text = prototxt(layers, 224)
    (expected,) = opencv_logits(caffemodel.read_bytes(), text, x, ["loss3/classifier"])
    model = GoogLeNet(arch)
    found = jax.jit(lambda v, x: model.apply(v, x).logits)(unflatten(flat), x)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_opencv_computes_the_same_auxiliary_heads():
    layers = random_layers()
    x = np.random.default_rng(0).uniform(-2, 2, (1, 224, 224, 3)).astype(np.float32)
    names = ["loss3/classifier", "loss1/classifier", "loss2/classifier"]
    expected = opencv_logits(caffemodel_bytes(layers), prototxt(layers, 224), x, names)
    arch, flat = from_caffe(layers, "file")
    model = GoogLeNet(dataclasses.replace(arch, dropout=0.0, aux_dropout=0.0))
    found = jax.jit(lambda v, x: model.apply(v, x, train=True))(unflatten(flat), x)
    for ours, theirs in zip((found.logits, *found.aux_logits), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    "form",
    [{}, {"packed": False}, {"v1": True}, {"v1": True, "packed": False}, {"dtype": "<f8"},
     {"dtype": "<f8", "packed": False}],
    ids=str,
)  # fmt: skip
def test_every_form_of_the_format_reads_the_same(tmp_path, form):
    layers = random_layers()
    file = tmp_path / "any.caffemodel"
    file.write_bytes(caffemodel_bytes(layers, **form))
    arch, flat = from_caffe(read_caffemodel(file)[0], str(file))
    arch_direct, flat_direct = from_caffe(layers, "memory")
    assert arch == arch_direct
    for name, value in flat_direct.items():
        np.testing.assert_array_equal(flat[name], value, err_msg=name)


def test_the_v1_generation_of_the_published_weights_reads_the_same(caffemodel, tmp_path):
    layers = read_caffemodel(caffemodel)[0]
    file = tmp_path / "v1.caffemodel"
    file.write_bytes(caffemodel_bytes(layers, v1=True))
    arch, flat = from_caffe(layers, "new")
    arch_v1, flat_v1 = from_caffe(read_caffemodel(file)[0], "v1")
    assert arch == arch_v1
    assert all(np.array_equal(flat[name], flat_v1[name]) for name in flat | flat_v1)


def test_widths_classes_and_heads_are_told_by_the_file():
    arch, flat = from_caffe(random_layers(), "file")
    assert (arch.num_classes, arch.aux_after, arch.aux_widths) == (5, ("4a", "4d"), (7, 9))
    assert arch.widths["3b"].b1 == 4
    without, _ = from_caffe(random_layers(aux_after=()), "file")
    assert without.aux_after == ()
    assert flat["params/conv1/conv/kernel"].shape == (7, 7, 3, 6)


def test_blue_stays_first():
    p = PREPROCESSING
    assert (p.channels, p.mean, p.std) == ("BGR", (104, 117, 123), (1, 1, 1))
    assert (p.resize, p.resize_to, p.image_size) == ("warp", 256, 224)
    layers = random_layers()
    kernel = from_caffe(layers, "memory")[1]["params/conv1/conv/kernel"]
    for o, c, h, w in ((0, 0, 0, 0), (3, 1, 2, 6), (5, 2, 6, 1)):
        assert kernel[h, w, c, o] == layers["conv1/7x7_s2"][0][o, c, h, w]


def test_every_layer_has_its_place():
    layers = random_layers()
    _, flat = from_caffe(layers, "memory")
    for caffes, ours in {
        "conv2/3x3_reduce": "conv2_reduce",
        "conv2/3x3": "conv2",
        "inception_3a/1x1": "inception_3a/b1",
        "inception_4b/3x3_reduce": "inception_4b/reduce3",
        "inception_4c/3x3": "inception_4c/b3",
        "inception_4d/5x5_reduce": "inception_4d/reduce5",
        "inception_5a/5x5": "inception_5a/b5",
        "inception_5b/pool_proj": "inception_5b/pool_proj",
        "loss1/conv": "aux_4a/conv",
        "loss2/conv": "aux_4d/conv",
    }.items():
        weights, bias = layers[caffes]
        kernel = flat[f"params/{ours}/conv/kernel"]
        np.testing.assert_array_equal(kernel, np.moveaxis(weights, (0, 1), (3, 2)))
        np.testing.assert_array_equal(flat[f"params/{ours}/conv/bias"], bias)
    for loss, head in (("loss1", "aux_4a"), ("loss2", "aux_4d")):
        weights, kernel = layers[f"{loss}/fc"][0], flat[f"params/{head}/fc/kernel"]
        for o, c, h, w in ((0, 1, 0, 0), (8, 6, 2, 1), (3, 0, 1, 3)):  # 7 channels of 4x4
            assert kernel[(h * 4 + w) * 7 + c, o] == weights[o, (c * 4 + h) * 4 + w]
        np.testing.assert_array_equal(
            flat[f"params/{head}/classifier/kernel"], layers[f"{loss}/classifier"][0].T
        )
    weights, bias = layers["loss3/classifier"]
    np.testing.assert_array_equal(flat["params/classifier/kernel"], weights.T)
    np.testing.assert_array_equal(flat["params/classifier/bias"], bias)


def test_a_cut_file_names_the_layer(tmp_path):
    whole = caffemodel_bytes(random_layers())
    file = tmp_path / "cut.caffemodel"
    file.write_bytes(whole[: whole.index(b"inception_4c/3x3") + 60])
    with pytest.raises(WeightsError, match="after layer inception_4c/1x1;"):
        read_caffemodel(file)


def test_no_cut_goes_unnoticed(tmp_path):
    whole = caffemodel_bytes(random_layers())
    file = tmp_path / "cut.caffemodel"
    for length in np.linspace(0, len(whole) - 1, 60).astype(int):
        file.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=str(file)):
            from_caffe(read_caffemodel(file)[0], str(file))


def test_the_missing_layer_is_named():
    layers = random_layers()
    del layers["inception_4b/5x5_reduce"]
    with pytest.raises(WeightsError, match="inception_4b/5x5_reduce"):
        from_caffe(layers, "file")


def test_an_unknown_layer_is_named():
    layers = random_layers() | {"fc8": [np.zeros((2, 2), np.float32)] * 2}
    with pytest.raises(WeightsError, match="fc8"):
        from_caffe(layers, "file")


def test_a_blob_whose_shape_lies_is_named(tmp_path):
    data = caffemodel_bytes({"conv1/7x7_s2": [np.zeros(4, np.float32)]})
    file = tmp_path / "bad.caffemodel"
    file.write_bytes(data.replace(b"\x0a\x01\x04", b"\x0a\x01\x7f"))  # shape (4,) -> (127,)
    with pytest.raises(WeightsError, match=r"conv1/7x7_s2 .*\(127,\)"):
        read_caffemodel(file)


def test_a_blob_of_nothing_is_named(tmp_path):
    layers = random_layers()
    layers["loss3/classifier"] = [np.zeros((0, 5), np.float32), np.zeros(5, np.float32)]
    file = tmp_path / "bad.caffemodel"
    file.write_bytes(caffemodel_bytes(layers))
    with pytest.raises(WeightsError, match=r"loss3/classifier .*\(0, 5\)"):
        read_caffemodel(file)


@pytest.mark.parametrize("raw", [True, False])
def test_the_model_zoos_onnx_file_is_caffes_network(tmp_path, raw):
    onnx = pytest.importorskip("onnx", reason="onnx, which writes the file, is not installed")
    layers = random_layers(aux_after=())
    constants = [onnx.numpy_helper.from_array(np.array([1, 1024]), "OC2_DUMMY_1")]
    for name, blobs in layers.items():
        for part, blob in zip("wb", blobs, strict=True):
            data = blob.tobytes() if raw else blob.ravel()
            args = (f"{name}_{part}_0", onnx.TensorProto.FLOAT, blob.shape, data)
            constants.append(onnx.helper.make_tensor(*args, raw=raw))
    graph = onnx.helper.make_graph([], "bvlc_googlenet", [], [], constants)
    file = tmp_path / "googlenet-12.onnx"
    file.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    trained = read(file)
    arch, flat = from_caffe(layers, "memory")
    assert (trained.model.arch, trained.preprocessing) == (arch, PREPROCESSING)
    assert trained.source["format"] == "ONNX"
    found = flatten(trained.variables)
    assert found.keys() == flat.keys()
    for name, value in flat.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)

    whole = file.read_bytes()
    file.write_bytes(whole[:-1000])
    with pytest.raises(WeightsError, match=r"googlenet-12\.onnx is a corrupt ONNX file"):
        read(file)
    constants.append(onnx.numpy_helper.from_array(np.zeros(3, np.float32), "fc8_w_0"))
    graph = onnx.helper.make_graph([], "bvlc_googlenet", [], [], constants)
    file.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(WeightsError, match="fc8"):
        read(file)


def test_renamed_classifiers_of_an_onnx_file_are_used_in_the_files_order(tmp_path):
    names = {"loss1/classifier": "a", "loss2/classifier": "b", "loss3/classifier": "c"}
    graph = b""
    for name, (weights, bias) in random_layers().items():
        for part, blob in (("b", bias), ("w", weights)):  # either may come first
            dims = b"".join(number(1, size) for size in blob.shape)
            title = message(8, f"{names.get(name, name)}_{part}_0".encode())
            graph += message(5, dims + number(2, 1) + title + message(9, blob.tobytes()))
    file = tmp_path / "mine.onnx"
    file.write_bytes(number(1, 3) + message(7, graph))
    found, notes = load(file, "", onnx=True)
    arch, flat = from_caffe(random_layers(), "memory")
    assert found.model.arch == arch
    for name, value in flatten(found.variables).items():
        np.testing.assert_array_equal(value, flat[name], err_msg=name)
    assert "used the layer a as the classifier loss1/classifier" in notes
