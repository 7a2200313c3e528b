import jax.numpy as jnp
import pytest

from gnet_jax.config import UserError
from gnet_jax.model.googlenet import GoogLeNet, abstract_variables
from gnet_jax.model.layers import roles_by_path
from tests.odd_nets import gain, group_norm, with_norm
from tests.tiny import tiny_arch

X = jnp.zeros(2)


def test_names_of_modules_play_no_part():
    norm = {"scale": X, "bias": X}
    tree = {"a": {"kernel": X, "bias": X}, "conv": {"group": norm}, "norm": {"kernel": X}}
    tree["rms"] = {"scale": X}
    assert roles_by_path(tree) == {
        ("a", "kernel"): "kernel",
        ("a", "bias"): "bias",
        ("conv", "group", "scale"): "norm",
        ("conv", "group", "bias"): "norm",
        ("norm", "kernel"): "kernel",
        ("rms", "scale"): "norm",
    }


@pytest.mark.parametrize("variant", ["paper", "batch_norm", "naive"])
def test_every_parameter_of_the_published_networks_has_a_role(variant):
    params = abstract_variables(GoogLeNet(tiny_arch(variant)), 16)["params"]
    assert set(roles_by_path(params).values()) == (
        {"kernel", "bias", "norm"} if variant == "batch_norm" else {"kernel", "bias"}
    )


def test_a_group_norm_is_a_norm():
    params = abstract_variables(with_norm(group_norm), 16)["params"]
    roles = roles_by_path(params)
    assert roles["conv1", "norm", "group", "bias"] == "norm"
    assert roles["classifier", "bias"] == "bias"


@pytest.mark.parametrize(
    ("tree", "name"),
    [
        ({"act": {"negative_slope": X}}, "act/negative_slope"),
        ({"conv": {"kernel": X, "bias": X, "gain": X}}, "conv/gain"),
        ({"conv": {"kernel": X, "scale": X}}, "conv/scale"),  # of a layer, or of a norm in it
        ({"norm": {"bias": X}}, "norm/bias"),
        ({"temperature": X}, "temperature"),
    ],
)
def test_a_parameter_of_unknown_role_is_refused_by_name(tree, name):
    with pytest.raises(UserError, match=repr(name)) as caught:
        roles_by_path(tree)
    assert "\n" not in str(caught.value)


def test_the_gain_of_a_network_is_refused_by_name():
    params = abstract_variables(with_norm(gain), 16)["params"]
    with pytest.raises(UserError, match="norm/gain"):
        roles_by_path(params)
