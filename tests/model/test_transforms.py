"""Forward-mode differentiation of the network; docs/library.md has JAX's other transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnet_jax.model.googlenet import googlenet, init

SMALL = {"width_multiplier": 1 / 16, "stem": "small", "blocks": ("3a",), "aux_after": ()}
IMAGES = np.random.default_rng(5).normal(size=(2, 8, 8, 3)).astype(np.float32)


def test_forward_mode_works_with_the_reference_operations():
    model = googlenet("paper", 10, ops="reference", **SMALL)
    variables = init(model, jax.random.PRNGKey(3), 8)

    def loss(images):
        return jnp.sum(jnp.sin(model.apply(variables, images).logits))

    direction = np.random.default_rng(6).normal(size=IMAGES.shape).astype(np.float32)
    _, along = jax.jit(lambda x, d: jax.jvp(loss, (x,), (d,)))(IMAGES, direction)
    gradient = jax.jit(jax.grad(loss))(IMAGES)
    assert float(along) == pytest.approx(float(np.sum(gradient * direction)), rel=1e-3)
    assert np.abs(gradient).max() > 0


def test_forward_mode_with_the_fast_operations_is_an_error():
    model = googlenet("paper", 10, **SMALL)
    variables = init(model, jax.random.PRNGKey(3), 8)
    with pytest.raises(TypeError, match="jvp"):
        jax.jit(lambda x: jax.jvp(lambda x: model.apply(variables, x), (x,), (x,))).lower(IMAGES)


@pytest.mark.parametrize(
    "choice", [lambda: googlenet(ops="quick"), lambda: googlenet().clone(ops="quick")]
)
def test_operations_are_picked_by_a_known_name(choice):
    with pytest.raises(ValueError, match="'quick'"):
        choice()
