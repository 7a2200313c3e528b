import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnet_jax.errors import UserError
from gnet_jax.model.googlenet import abstract_variables, endpoints, googlenet
from gnet_jax.model.names import find_layer, google_name


@pytest.fixture(scope="module")
def outputs():
    """The shapes of all outputs of Google's network, by Caffe's names."""
    model = googlenet("google_release", aux_after=())
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = abstract_variables(model, 224)
    return jax.eval_shape(lambda v, x: endpoints(model, v, x), variables, images)


@pytest.mark.parametrize(
    ("name", "endpoint", "channel"),
    [
        ("inception_4a/5x5", "inception_4a/5x5", None),
        ("mixed4a_5x5", "inception_4a/5x5", None),
        ("mixed4a_5x5_bottleneck:3", "inception_4a/5x5_reduce", 3),
        ("mixed4a:476", "inception_4a/output", 476),
        ("inception_4a/output:476", "inception_4a/output", 476),
        ("mixed5b_pool_reduce", "inception_5b/pool_proj", None),
        ("mixed3b_pool", "inception_3b/pool", None),
        ("conv2d0:63", "conv1/7x7_s2", 63),
        ("maxpool10", "pool4/3x3_s2", None),
        ("softmax2_pre_activation:1007", "loss3/classifier", 1007),
    ],
)
def test_a_layer_has_a_name_of_caffe_and_one_of_google(outputs, name, endpoint, channel):
    assert find_layer(name, outputs) == (endpoint, channel)


def test_every_layer_has_a_name_of_google_and_no_two_the_same(outputs):
    names = [google_name(layer) for layer in outputs]
    assert len(set(names)) == len(outputs) == 84
    assert not any("/" in name for name in names)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mixed4a_5x", "did you mean mixed4a_5x5"),
        ("inception_4f", r"did you mean inception_4\w\?"),
        ("mixed4a:508", "channels 0 to 507"),
        ("mixed4a:-1", "'mixed4a:-1'"),
        ("mixed4a:", "channels 0 to 507"),
        ("mixed4d_3x3_bottleneck_pre_relu:139", "before the ReLU; use mixed4d_3x3_bottleneck"),
    ],
)
def test_an_unknown_layer_or_channel_is_refused(outputs, name, words):
    with pytest.raises(UserError, match=words):
        find_layer(name, outputs)


def test_shapes_of_arrays_serve_as_well():
    assert find_layer("mixed7x:1", {"inception_7x/output": np.zeros((3, 3, 2))}) == (
        "inception_7x/output",
        1,
    )
