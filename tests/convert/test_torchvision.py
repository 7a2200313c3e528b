"""torchvision's names and layouts, against torchvision itself."""

import dataclasses

import jax
import numpy as np
import pytest

from gnet_jax.convert.export import export
from gnet_jax.convert.torch_file import read_torch, write_torch
from gnet_jax.convert.torchvision import from_torchvision, preprocessing, to_torchvision
from gnet_jax.errors import UserError
from gnet_jax.model.architecture import architecture
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model_folder import TrainedModel, WeightsError
from gnet_jax.model_folder.folder import unflatten
from tests.convert.conftest import narrow_torchvision


@pytest.fixture(scope="module")
def own():
    return narrow_torchvision()


@pytest.mark.parametrize("aux", [True, False])
def test_there_and_back_changes_nothing(own, aux):
    arch, flat = own
    if not aux:
        arch = dataclasses.replace(arch, aux_after=(), aux_pool="caffe")
        flat = {name: value for name, value in flat.items() if "/aux_" not in name}
    found, again = from_torchvision(to_torchvision(arch, flat), "memory")
    assert (found.widths["3a"], found.widths["4e"]) == ((4, 6, 8, 1, 2, 2), (16, 10, 20, 2, 8, 8))
    narrow = {"widths": found.widths, "stem_widths": (4, 4, 12)}
    narrow["aux_widths"] = (8, 64) if aux else (128, 1024)
    assert found == dataclasses.replace(arch, aux_pool="adaptive", **narrow)
    assert again.keys() == flat.keys()
    assert all(np.array_equal(again[name], flat[name]) for name in flat)


# Our module for torchvision's, one of each kind: stem, every branch, both heads.
CONVS = {
    "conv1": "conv1",
    "conv2": "conv2_reduce",
    "conv3": "conv2",
    "inception3a.branch1": "inception_3a/b1",
    "inception3b.branch2.0": "inception_3b/reduce3",
    "inception4a.branch2.1": "inception_4a/b3",
    "inception4b.branch3.0": "inception_4b/reduce5",
    "inception4e.branch3.1": "inception_4e/b5",
    "inception5b.branch4.1": "inception_5b/pool_proj",
    "aux1.conv": "aux_4a/conv",
    "aux2.conv": "aux_4d/conv",
}
LINEAR = {
    "aux1.fc1": "aux_4a/fc",
    "aux1.fc2": "aux_4a/classifier",
    "aux2.fc1": "aux_4d/fc",
    "aux2.fc2": "aux_4d/classifier",
    "fc": "classifier",
}


def test_every_number_has_its_place_in_torchvisions_state_dict(own):
    arch, flat = own
    tensors = to_torchvision(arch, flat)
    for theirs, ours in CONVS.items():
        weight, kernel = tensors[f"{theirs}.conv.weight"], flat[f"params/{ours}/conv/kernel"]
        outputs, inputs, height, width = weight.shape
        for o, i, h, w in (
            (0, 0, 0, 0),
            (1, 1, height - 1, 0),
            (outputs - 1, inputs - 1, 0, width - 1),
        ):
            assert weight[o, i, h, w] == kernel[h, w, i, o]
        for part, name in (
            ("weight", "params/{}/norm/scale"),
            ("bias", "params/{}/norm/bias"),
            ("running_mean", "batch_stats/{}/norm/mean"),
            ("running_var", "batch_stats/{}/norm/var"),
        ):
            np.testing.assert_array_equal(tensors[f"{theirs}.bn.{part}"], flat[name.format(ours)])
        assert tensors[f"{theirs}.bn.num_batches_tracked"].dtype == np.int64
    for theirs, ours in LINEAR.items():
        weight, kernel = tensors[f"{theirs}.weight"], flat[f"params/{ours}/kernel"]
        np.testing.assert_array_equal(tensors[f"{theirs}.bias"], flat[f"params/{ours}/bias"])
        if theirs.endswith("fc1"):  # 8 channels of 4x4, flattened C,H,W there and H,W,C here
            for o, c, h, w in ((0, 1, 0, 0), (5, 0, 2, 1), (63, 7, 1, 3)):
                assert weight[o, (c * 4 + h) * 4 + w] == kernel[(h * 4 + w) * 8 + c, o]
        else:
            np.testing.assert_array_equal(weight, kernel.T)


def test_a_pth_is_read_back_and_must_be_the_same(tmp_path, own, monkeypatch):
    arch = dataclasses.replace(own[0], aux_after=(), dropout=0.1, aux_dropout=0.2)
    flat = {name: value for name, value in own[1].items() if "/aux_" not in name}
    narrow, _ = from_torchvision(to_torchvision(arch, flat), "memory")
    narrow = dataclasses.replace(narrow, dropout=0.1, aux_dropout=0.2)
    monkeypatch.setattr(
        "gnet_jax.convert.export.to_torchvision", lambda _, flat: to_torchvision(arch, flat)
    )
    pixels, names = preprocessing(False), tuple("abcdefg")
    folder = TrainedModel(GoogLeNet(narrow), unflatten(flat), pixels, names, {})
    assert export(folder, tmp_path / "net.pth") == 0
    assert (tmp_path / "net.pth").is_file()
    for lost in ("params/classifier/bias", "batch_stats/conv1/norm/var"):
        other = {name: v + (name == lost) for name, v in flat.items()}
        monkeypatch.setattr(
            "gnet_jax.convert.export.to_torchvision", lambda *_, o=other: to_torchvision(arch, o)
        )
        with pytest.raises(UserError, match="inf"):
            export(folder, tmp_path / "other.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]


def test_a_kernel_that_is_not_square_keeps_height_and_width(own):
    arch, flat = own
    tensors = to_torchvision(arch, flat)
    tensors["conv1.conv.weight"] = np.random.default_rng(1).normal(size=(4, 3, 7, 5))
    kernel = from_torchvision(tensors, "memory")[1]["params/conv1/conv/kernel"]
    assert kernel.shape == (7, 5, 3, 4)
    assert kernel[6, 4, 2, 3] == np.float32(tensors["conv1.conv.weight"][3, 2, 6, 4])


def test_a_head_for_another_map_is_refused_by_name(own):
    arch, flat = own
    tensors = to_torchvision(arch, flat)
    tensors["aux2.fc1.weight"] = tensors["aux2.fc1.weight"][:, 1:]
    with pytest.raises(WeightsError, match=r"aux2\.fc1\.weight"):
        from_torchvision(tensors, "memory")


def test_the_missing_and_the_unknown_tensor_are_named(own):
    arch, flat = own
    tensors = to_torchvision(arch, flat)
    part = {k: v for k, v in tensors.items() if k != "inception4b.branch3.1.bn.running_var"}
    with pytest.raises(WeightsError, match=r"inception4b\.branch3\.1\.bn\.running_var"):
        from_torchvision(part, "file")
    with pytest.raises(WeightsError, match=r"fc2\.weight"):
        from_torchvision(tensors | {"fc2.weight": np.zeros((2, 2))}, "file")
    with pytest.raises(WeightsError, match=r"conv1\.conv\.weight .*\(3,\).* 4 "):
        from_torchvision(tensors | {"conv1.conv.weight": np.zeros(3)}, "file")


@pytest.mark.parametrize(
    ("variant", "knobs", "field"),
    [("paper", {}, "norm"), ("batch_norm", {}, "branch5_kernel"),
     ("torchvision", {"width_multiplier": 0.5}, "widths"),
     ("torchvision", {"aux_after": ("4b",)}, "aux_after")],
)  # fmt: skip
def test_a_net_that_torchvision_does_not_have_is_refused(variant, knobs, field):
    with pytest.raises(WeightsError, match=field):
        to_torchvision(architecture(variant, 3, **knobs), {})


def test_transform_input_is_part_of_mean_and_std():
    """torchvision's own arithmetic on a pixel, in its two steps, equals the folded one."""
    pixels = np.array([[0, 100, 255], [17, 200, 3]], np.float64)
    plain, folded = preprocessing(False), preprocessing(True)
    assert plain.mean == pytest.approx((123.675, 116.28, 103.53))
    assert plain.std == pytest.approx((58.395, 57.12, 57.375))
    assert folded.mean == folded.std == (127.5, 127.5, 127.5)
    for p in (plain, folded):
        assert (p.resize, p.resize_to, p.image_size) == ("shorter_side", 256, 224)
        assert p.channels == "RGB"
    normalised = (pixels - plain.mean) / plain.std
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    transformed = normalised * (std / 0.5) + (mean - 0.5) / 0.5
    np.testing.assert_allclose((pixels - folded.mean) / folded.std, transformed, atol=1e-12)


@pytest.mark.slow
def test_torchvision_computes_the_same_in_both_modes_and_takes_it_back(tmp_path):
    reason = "torch and torchvision, the oracles, are not installed"
    torch = pytest.importorskip("torch", reason=reason)
    models = pytest.importorskip("torchvision.models", reason=reason)

    def theirs():
        return models.googlenet(
            init_weights=False, aux_logits=True, num_classes=10, dropout=0.0, dropout_aux=0.0
        )

    torch.manual_seed(0)
    net = theirs()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    file = tmp_path / "net.pth"
    torch.save(net.state_dict(), file)
    saved = {name: value.clone() for name, value in net.state_dict().items()}

    arch, flat = from_torchvision(read_torch(file), str(file))
    variables = unflatten(flat)
    model = GoogLeNet(dataclasses.replace(arch, dropout=0.0, aux_dropout=0.0))
    x = np.random.default_rng(0).normal(size=(4, 224, 224, 3)).astype(np.float32)
    x_torch = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())

    def close(ours, tensor):
        expected = tensor.numpy()
        np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())

    with torch.no_grad():
        close(model.apply(variables, x).logits, net.eval()(x_torch))
        trained = net.train()(x_torch)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    outputs, updated = apply(variables, x)
    close(outputs.logits, trained.logits)
    close(outputs.aux_logits[0], trained.aux_logits1)
    close(outputs.aux_logits[1], trained.aux_logits2)
    mean = updated["batch_stats"]["inception_5b"]["b3"]["norm"]["mean"]
    close(mean, net.state_dict()["inception5b.branch2.1.bn.running_mean"])

    write_torch(tmp_path / "back.pth", to_torchvision(arch, flat))
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    theirs().load_state_dict(back, strict=True)
    assert back.keys() == saved.keys()
    assert all(torch.equal(back[name], value) for name, value in saved.items())
