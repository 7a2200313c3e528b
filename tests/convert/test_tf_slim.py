"""TF-slim's Inception v1: its names, its files, and its arithmetic against TensorFlow's own."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from gnet_jax.convert.read import convert, read
from gnet_jax.convert.tf_checkpoint import find_index, is_checkpoint, read_checkpoint
from gnet_jax.convert.tf_slim import ARCHITECTURE, from_slim
from gnet_jax.convert.torchvision import to_torchvision
from gnet_jax.data.sources.classes import imagenet_classes
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model_folder import WeightsError, read_folder
from gnet_jax.model_folder.folder import expected_shapes, flatten
from tests.convert.caffe_files import message, number
from tests.convert.tf_files import checkpoint_v1, checkpoint_v2, dims, table

TABLE = bytes(40) + bytes.fromhex("57fb808b247547db")  # ends as a checkpoint does
BLOCKS = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "MaxPool_4a": 3,
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "MaxPool_5a": 2,
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


def inception_v1(x, ops):
    """slim's graph, layer by layer, as `ops` computes it; the scope "InceptionV1" is left out."""
    x = ops.conv(x, 64, 7, "Conv2d_1a_7x7", stride=2)
    x = ops.max_pool(x, 3, 2)
    x = ops.conv(x, 64, 1, "Conv2d_2b_1x1")
    x = ops.conv(x, 192, 3, "Conv2d_2c_3x3")
    x = ops.max_pool(x, 3, 2)
    for name, widths in BLOCKS.items():
        if isinstance(widths, int):
            x = ops.max_pool(x, widths, 2)
            continue
        b0, reduce1, b1, reduce2, b2, b3 = widths
        second = "Conv2d_0a_3x3" if name == "Mixed_5b" else "Conv2d_0b_3x3"  # as published
        branch0 = ops.conv(x, b0, 1, f"{name}/Branch_0/Conv2d_0a_1x1")
        branch1 = ops.conv(x, reduce1, 1, f"{name}/Branch_1/Conv2d_0a_1x1")
        branch1 = ops.conv(branch1, b1, 3, f"{name}/Branch_1/Conv2d_0b_3x3")
        branch2 = ops.conv(x, reduce2, 1, f"{name}/Branch_2/Conv2d_0a_1x1")
        branch2 = ops.conv(branch2, b2, 3, f"{name}/Branch_2/{second}")
        branch3 = ops.conv(ops.max_pool(x, 3, 1), b3, 1, f"{name}/Branch_3/Conv2d_0b_1x1")
        x = ops.concat([branch0, branch1, branch2, branch3])
    return ops.classifier(x, "Logits/Conv2d_0c_1x1")


class Shapes:
    """Notes the shape of every variable; a tensor is its number of channels."""

    def __init__(self, classes):
        self.classes, self.found = classes, {}

    def conv(self, x, features, kernel, scope, stride=1):
        self.found[f"InceptionV1/{scope}/weights"] = (kernel, kernel, x, features)
        for name in ("beta", "moving_mean", "moving_variance"):
            self.found[f"InceptionV1/{scope}/BatchNorm/{name}"] = (features,)
        return features

    def max_pool(self, x, window, stride):
        return x

    def concat(self, branches):
        return sum(branches)

    def classifier(self, x, scope):
        self.found[f"InceptionV1/{scope}/weights"] = (1, 1, x, self.classes)
        self.found[f"InceptionV1/{scope}/biases"] = (self.classes,)


class TensorFlow:
    """Computes the network for 224x224 images with the operations that slim's layers become."""

    def __init__(self, tf, tensors):
        self.tf, self.tensors = tf, tensors

    def of(self, name):
        return self.tensors[f"InceptionV1/{name}"]

    def conv(self, x, features, kernel, scope, stride=1):
        x = self.tf.nn.conv2d(x, self.of(f"{scope}/weights"), stride, "SAME")
        parts = ("moving_mean", "moving_variance", "beta")
        mean, variance, beta = (self.of(f"{scope}/BatchNorm/{part}") for part in parts)
        return self.tf.nn.relu(self.tf.nn.batch_normalization(x, mean, variance, beta, None, 1e-3))

    def max_pool(self, x, window, stride):
        return self.tf.nn.max_pool2d(x, window, stride, "SAME")

    def concat(self, branches):
        return self.tf.concat(branches, axis=3)

    def classifier(self, x, scope):
        x = self.tf.nn.avg_pool2d(x, 7, 1, "VALID")
        x = self.tf.nn.conv2d(x, self.of(f"{scope}/weights"), 1, "SAME")
        return self.tf.squeeze(x + self.of(f"{scope}/biases"), [1, 2])


@pytest.fixture(scope="module")
def tensors():
    """Random variables of the whole network that keep activations of size one."""
    shapes = Shapes(1001)
    inception_v1(3, shapes)
    generator = np.random.default_rng(0)
    found = {}
    for name, shape in shapes.found.items():
        if name.endswith("/weights"):
            bound = (6 / np.prod(shape[:-1])) ** 0.5
            value = generator.uniform(-bound, bound, shape)
        elif name.endswith("/moving_variance"):
            value = generator.uniform(0.5, 2, shape)
        else:
            value = generator.normal(0, 0.3, shape)
        found[name] = value.astype(np.float32)
    return found


def test_every_variable_has_its_place(tensors):
    arch, flat = from_slim(tensors, "memory")
    assert arch == ARCHITECTURE
    assert (arch.norm, arch.branch5_kernel, arch.pool4_window) == ("batch_norm", 3, 2)
    assert (arch.stem_padding, arch.aux_after, arch.dropout) == ("same", (), 0.2)
    assert {name: v.shape for name, v in flat.items()} == expected_shapes(GoogLeNet(arch), 224)
    for module, theirs in {
        "conv1": "Conv2d_1a_7x7",
        "conv2_reduce": "Conv2d_2b_1x1",
        "conv2": "Conv2d_2c_3x3",
        "inception_3a/b1": "Mixed_3b/Branch_0/Conv2d_0a_1x1",
        "inception_3b/reduce3": "Mixed_3c/Branch_1/Conv2d_0a_1x1",
        "inception_4a/b3": "Mixed_4b/Branch_1/Conv2d_0b_3x3",
        "inception_4c/reduce5": "Mixed_4d/Branch_2/Conv2d_0a_1x1",
        "inception_4e/b5": "Mixed_4f/Branch_2/Conv2d_0b_3x3",
        "inception_5b/pool_proj": "Mixed_5c/Branch_3/Conv2d_0b_1x1",
    }.items():
        scope = f"InceptionV1/{theirs}"
        beta = tensors[f"{scope}/BatchNorm/beta"]
        for name, expected in {
            f"params/{module}/conv/kernel": tensors[f"{scope}/weights"],
            f"params/{module}/norm/bias": beta,
            f"params/{module}/norm/scale": np.ones(len(beta)),
            f"batch_stats/{module}/norm/mean": tensors[f"{scope}/BatchNorm/moving_mean"],
            f"batch_stats/{module}/norm/var": tensors[f"{scope}/BatchNorm/moving_variance"],
        }.items():
            np.testing.assert_array_equal(flat[name], expected, err_msg=name)
    weights = tensors["InceptionV1/Mixed_5b/Branch_2/Conv2d_0a_3x3/weights"]
    np.testing.assert_array_equal(flat["params/inception_5a/b5/conv/kernel"], weights)
    weights = tensors["InceptionV1/Logits/Conv2d_0c_1x1/weights"]
    np.testing.assert_array_equal(flat["params/classifier/kernel"], weights[0, 0])


def test_the_missing_and_the_unknown_tensor_are_named(tensors):
    name = "InceptionV1/Mixed_4c/Branch_3/Conv2d_0b_1x1/BatchNorm/moving_variance"
    with pytest.raises(WeightsError, match=name):
        from_slim({k: v for k, v in tensors.items() if k != name}, "file")
    with pytest.raises(WeightsError, match="InceptionV1/Mixed_6a/weights"):
        from_slim(tensors | {"InceptionV1/Mixed_6a/weights": np.zeros(3)}, "file")
    with pytest.raises(WeightsError, match=r"moving_variance .*\(2, 2\).* 1 "):
        from_slim(tensors | {name: np.zeros((2, 2))}, "file")
    classifier = "InceptionV1/Logits/Conv2d_0c_1x1/weights"
    with pytest.raises(WeightsError, match=r"weights .*\(3, 3, 1024, 7\)"):
        from_slim(tensors | {classifier: np.zeros((3, 3, 1024, 7))}, "file")


def test_a_training_checkpoint_gives_its_averages_and_nothing_of_its_optimiser(tensors):
    name = "InceptionV1/Conv2d_1a_7x7/weights"
    average = tensors[name] / 2
    more = {
        f"{name}/RMSProp": average,
        f"{name}/ExponentialMovingAverage": average,
        "global_step": np.int64(7),
    }
    arch, flat = from_slim(tensors | more, "memory")
    _, plain = from_slim(tensors, "memory")
    assert arch == ARCHITECTURE
    assert flat.keys() == plain.keys()
    np.testing.assert_array_equal(flat["params/conv1/conv/kernel"], average)
    np.testing.assert_array_equal(
        flat["params/conv2/conv/kernel"], plain["params/conv2/conv/kernel"]
    )


def test_what_a_checkpoint_does_not_say_is_said(tmp_path, tensors, monkeypatch, capsys):
    bias = "InceptionV1/Logits/Conv2d_0c_1x1/biases"
    averaged = tensors | {f"{bias}/ExponentialMovingAverage": tensors[bias] + 1}
    monkeypatch.setattr("gnet_jax.convert.tf_slim.read_checkpoint", lambda _: averaged)
    (tmp_path / "m.index").write_bytes(TABLE)
    folder = read(tmp_path / "m.index")
    p = folder.preprocessing
    assert (p.resize, p.resize_to, p.image_size, p.channels) == ("warp", 256, 224, "RGB")
    assert p.mean == p.std == (127.5, 127.5, 127.5)
    assert folder.class_names == ("background", *imagenet_classes().values())
    np.testing.assert_array_equal(
        folder.variables["params"]["classifier"]["bias"], averaged[bias] + 1
    )
    said = capsys.readouterr().err.splitlines()
    for line, words in zip(said, ("preprocessing", "averages", "background"), strict=True):
        assert words in line


def test_torchvisions_format_cannot_hold_the_padding():
    with pytest.raises(WeightsError, match="stem_padding"):
        to_torchvision(ARCHITECTURE, {})


SMALL = {
    "scalar": np.float32(2.5),
    "net/conv/weights": np.random.default_rng(0).normal(size=(3, 2, 1, 4)).astype(np.float32),
    "net/conv/biases": np.zeros(4, np.float32),
    "net/fc/weights": np.ones((0, 3), np.float32),
    "net/global_step": np.arange(2),
    "net/last": np.full(300, 7, np.float32),
}


def write(folder, version, tensors=SMALL):
    """Writes a checkpoint and returns the path that a user gives."""
    if version == 1:
        (folder / "m.ckpt").write_bytes(checkpoint_v1(tensors))
    else:
        index, data = checkpoint_v2(tensors)
        (folder / "m.ckpt.index").write_bytes(index)
        (folder / "m.ckpt.data-00000-of-00001").write_bytes(data)
    return folder / "m.ckpt"


@pytest.mark.parametrize("version", [1, 2])
def test_both_versions_of_a_checkpoint_hold_the_floats_by_name(tmp_path, version):
    file = find_index(write(tmp_path, version))
    assert is_checkpoint(file)
    found = read_checkpoint(file)
    assert found.keys() == SMALL.keys() - {"net/global_step"}
    for name, value in found.items():
        assert value.shape == SMALL[name].shape
        np.testing.assert_array_equal(value, SMALL[name])


@pytest.mark.parametrize("version", [1, 2])
def test_a_checkpoint_of_another_network_is_named(tmp_path, version):
    given = write(tmp_path, version, {"resnet_v1_50/conv1/weights": np.ones(9, np.float32)})
    with pytest.raises(WeightsError, match=r"Inception v1: it holds resnet_v1_50/conv1"):
        convert(given, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_data_file_that_is_cut_or_missing_is_named(tmp_path):
    index = find_index(write(tmp_path, 2))
    data = tmp_path / "m.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"net/last in m\.ckpt\.data-00000-of-00001"):
        read_checkpoint(index)
    data.unlink()
    with pytest.raises(WeightsError, match=r"m\.ckpt\.data-00000-of-00001"):
        read_checkpoint(index)


def test_a_compressed_or_damaged_table_is_refused(tmp_path):
    file = tmp_path / "m.ckpt"
    file.write_bytes(checkpoint_v1(SMALL, compression=1))
    with pytest.raises(WeightsError, match="compressed"):
        read_checkpoint(file)
    whole = checkpoint_v1(SMALL)
    generator = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole) - 8)] ^= generator.integers(1, 256)
        file.write_bytes(damaged)
        with contextlib.suppress(WeightsError):  # unless the byte has no meaning
            found = read_checkpoint(file)
            assert found.keys() == {n for n, v in SMALL.items() if v.dtype == np.float32}
            for name, value in found.items():
                np.testing.assert_array_equal(value, SMALL[name])
    file.write_bytes(table({b"a": b""}))
    with pytest.raises(WeightsError, match=r"m\.ckpt .*header"):
        read_checkpoint(file)


def test_a_partitioned_variable_is_refused(tmp_path):
    index, _ = checkpoint_v2({})
    entry = number(1, 1) + message(2, dims((4,))) + message(7, b"")
    index = table({b"": number(1, 1), b"net/weights": entry})
    (tmp_path / "m.index").write_bytes(index)
    with pytest.raises(WeightsError, match="net/weights is partitioned"):
        read_checkpoint(tmp_path / "m.index")


def test_a_file_that_is_there_is_not_taken_for_a_part_of_a_checkpoint(tmp_path):
    for name in ("m.index", "m.data-final.pth", "m.data-00000-of-00001"):
        (tmp_path / name).touch()
    assert find_index(tmp_path / "m.data-final.pth").name == "m.data-final.pth"
    assert find_index(tmp_path / "m.data-00000-of-00001").name == "m.index"


def write_checkpoint(tf, prefix, tensors):
    """As slim's Saver writes them today: an index, and one file of data."""
    names = list(tensors)
    values = [tf.constant(value) for value in tensors.values()]
    tf.raw_ops.SaveV2(
        prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=values
    )


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip("tensorflow", reason="tensorflow, the oracle, is not installed")


@pytest.mark.slow
def test_tensorflow_computes_the_same_from_its_own_checkpoint(tmp_path, tf, tensors):
    write_checkpoint(tf, tmp_path / "inception_v1.ckpt", tensors | {"global_step": np.int64(7)})
    folder = convert(tmp_path / "inception_v1.ckpt", tmp_path / "model")
    assert folder.class_names == ("background", *imagenet_classes().values())
    assert folder.source["file"] == "inception_v1.ckpt.index"
    assert read_folder(tmp_path / "model").model.arch == ARCHITECTURE

    x = np.random.default_rng(1).uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32)
    expected = inception_v1(tf.constant(x), TensorFlow(tf, tensors)).numpy()
    scale = np.abs(expected).max()

    def difference(arch):
        found = jax.jit(GoogLeNet(arch).apply)(folder.variables, x).logits
        return np.abs(found - expected).max() / scale

    assert difference(ARCHITECTURE) <= 1e-4
    for wrong in ({"stem_padding": "caffe"}, {"pool4_window": 3}):  # the test can tell
        assert difference(dataclasses.replace(ARCHITECTURE, **wrong)) > 1e-2


@pytest.mark.slow
def test_a_checkpoint_of_one_file_holds_the_same(tmp_path, tf, tensors):
    values = [tf.constant(value) for value in tensors.values()]
    file = tmp_path / "inception_v1.ckpt"
    tf.raw_ops.Save(filename=str(file), tensor_names=list(tensors), data=values)
    folder = convert(file, tmp_path / "model")
    _, expected = from_slim(tensors, "memory")
    found = flatten(folder.variables)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
