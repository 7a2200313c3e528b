"""torchvision's names and layouts, against torchvision itself."""

import dataclasses

import jax
import numpy as np
import pytest

from gnet_jax.convert.torch_file import read_torch, write_torch
from gnet_jax.convert.torchvision import from_torchvision, preprocessing, to_torchvision
from gnet_jax.model.architecture import architecture
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model_folder import WeightsError
from gnet_jax.model_folder.variables import flatten, unflatten
from tests.convert.conftest import random_variables


@pytest.fixture(scope="module")
def own():
    model = GoogLeNet(architecture("torchvision", 7))
    return model, flatten(random_variables(model, 224))


@pytest.mark.parametrize("aux", [True, False])
def test_there_and_back_changes_nothing(own, aux):
    model, flat = own
    if not aux:
        model = GoogLeNet(dataclasses.replace(model.arch, aux_after=()))
        flat = {name: value for name, value in flat.items() if "/aux_" not in name}
    arch, again = from_torchvision(to_torchvision(model.arch, flat), "memory")
    assert arch == model.arch
    assert again.keys() == flat.keys()
    assert all(np.array_equal(again[name], flat[name]) for name in flat)


def test_the_missing_and_the_unknown_tensor_are_named(own):
    model, flat = own
    tensors = to_torchvision(model.arch, flat)
    part = {k: v for k, v in tensors.items() if k != "inception4b.branch3.1.bn.running_var"}
    with pytest.raises(WeightsError, match=r"no inception4b\.branch3\.1\.bn\.running_var"):
        from_torchvision(part, "file")
    with pytest.raises(WeightsError, match=r"has fc2\.weight"):
        from_torchvision(tensors | {"fc2.weight": np.zeros((2, 2))}, "file")
    with pytest.raises(WeightsError, match=r"conv1\.conv\.weight is \(3,\); it must have rank 4"):
        from_torchvision(tensors | {"conv1.conv.weight": np.zeros(3)}, "file")


@pytest.mark.parametrize(
    ("variant", "knobs", "field"),
    [("paper", {}, "norm"), ("batch_norm", {}, "branch5_kernel"),
     ("torchvision", {"width_multiplier": 0.5}, "widths"),
     ("torchvision", {"aux_after": ("4b",)}, "4a and 4d or none")],
)  # fmt: skip
def test_a_net_that_torchvision_does_not_have_is_refused(variant, knobs, field):
    with pytest.raises(WeightsError, match=field):
        to_torchvision(architecture(variant, 3, **knobs), {})


def test_transform_input_is_part_of_mean_and_std():
    """torchvision's own arithmetic on a pixel, in its two steps, is the folded one."""
    pixels = np.array([[0, 100, 255], [17, 200, 3]], np.float64)
    plain, folded = preprocessing(False), preprocessing(True)
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
    close(outputs.aux[0], trained.aux_logits1)
    close(outputs.aux[1], trained.aux_logits2)
    mean = updated["batch_stats"]["inception_5b"]["b3"]["norm"]["mean"]
    close(mean, net.state_dict()["inception5b.branch2.1.bn.running_mean"])

    write_torch(tmp_path / "back.pth", to_torchvision(arch, flat))
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    theirs().load_state_dict(back, strict=True)
    assert back.keys() == saved.keys()
    assert all(torch.equal(back[name], value) for name, value in saved.items())
