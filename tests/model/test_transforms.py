"""JAX's transformations of the network: jvp, vmap over seeds, remat, gradients to the input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnet_jax.model.googlenet import googlenet, init

SMALL = {"width_multiplier": 1 / 16, "stem": "small", "blocks": ("3a",), "aux_after": ()}
IMAGES = np.random.default_rng(5).normal(size=(2, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def reference():
    model = googlenet("paper", 10, ops="reference", **SMALL)
    variables = init(model, jax.random.PRNGKey(3), 8)

    def loss(images):
        return jnp.sum(jnp.sin(model.apply(variables, images).logits))

    return loss, jax.jit(jax.grad(loss))(IMAGES)


def test_forward_mode_works_with_the_reference_operations(reference):
    loss, gradient = reference
    direction = np.random.default_rng(6).normal(size=IMAGES.shape).astype(np.float32)
    _, along = jax.jit(lambda x, d: jax.jvp(loss, (x,), (d,)))(IMAGES, direction)
    assert float(along) == pytest.approx(float(np.sum(gradient * direction)), rel=1e-3)
    assert np.abs(gradient).max() > 0


def test_forward_mode_with_the_fast_operations_is_an_error():
    model = googlenet("paper", 10, **SMALL)
    variables = init(model, jax.random.PRNGKey(3), 8)
    with pytest.raises(TypeError, match="jvp"):
        jax.jit(lambda x: jax.jvp(lambda x: model.apply(variables, x), (x,), (x,))).lower(IMAGES)


def test_rematerialised_gradients_are_the_same(reference):
    loss, gradient = reference
    found = jax.jit(jax.grad(jax.checkpoint(loss)))(IMAGES)
    np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-6)


def test_several_seeds_are_drawn_under_vmap():
    model = googlenet("paper", 10, ops="reference", **SMALL)
    keys = jnp.stack([jax.random.PRNGKey(seed) for seed in (1, 2)])
    drawn = jax.jit(jax.vmap(lambda key: model.init(key, IMAGES[:1])))(keys)
    for index, key in enumerate(keys):
        own = jax.tree.map(lambda x, i=index: x[i], drawn["params"])
        jax.tree.map(np.testing.assert_array_equal, own, init(model, key, 8)["params"])


def test_operations_are_picked_by_a_known_name():
    with pytest.raises(ValueError, match="'quick'"):
        googlenet(ops="quick")
