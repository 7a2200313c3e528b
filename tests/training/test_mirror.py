import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnet_jax.config import ConfigError, ModelConfig, OptimConfig
from gnet_jax.model.googlenet import GoogLeNet, init
from gnet_jax.training.mirror import in_pairs, mirrored
from gnet_jax.training.program import prepare
from gnet_jax.training.step import create_state
from tests.tiny import tiny_batch, tiny_config

ODD_MAPS = 31  # pixels; the maps have 31, 15, 7 and 3, so no window of a max pool exceeds an edge
NETWORK = ModelConfig(
    variant="batch_norm",
    num_classes=10,
    blocks=("3a", "4a", "5b"),
    width_multiplier=1 / 8,
    stem="small",
    aux_after=("4a",),
)


def paired_config(workdir, **changes):
    optim = OptimConfig(optimizer="muon", mirrored_pairs=True, averaging="ema")
    return tiny_config(workdir, **{"model": NETWORK, "optim": optim} | changes)


@pytest.mark.parametrize("variant", ["batch_norm", "naive_batch_norm"])
def test_an_image_and_its_mirror_image_have_the_same_logits(variant):
    model = GoogLeNet(dataclasses.replace(NETWORK, variant=variant).build())
    variables = init(model, jax.random.PRNGKey(0), ODD_MAPS)
    keys = iter(jax.random.split(jax.random.PRNGKey(1), len(jax.tree.leaves(variables))))
    # Away from the first values of batch norm, which are the same for all channels.
    params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape) if x.ndim == 1 else x,
        variables["params"],
    )
    images = jax.random.normal(next(keys), (4, ODD_MAPS, ODD_MAPS, 3))

    def difference(params):
        both = jnp.concatenate([images, images[:, :, ::-1]])
        logits = model.apply({**variables, "params": params}, both, train=False).logits
        return float(jnp.abs(logits[:4] - logits[4:]).max() / jnp.abs(logits).max())

    assert difference(in_pairs(params)) < 1e-5
    assert difference(params) > 1e-2


def test_mirroring_twice_changes_nothing_and_pairs_are_their_own_mirror_image(tmp_path):
    params = prepare(paired_config(tmp_path)).program.initial_state().params
    jax.tree.map(np.testing.assert_array_equal, mirrored(params), params)
    other = jax.tree.map(lambda x: jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape), params)
    jax.tree.map(np.testing.assert_array_equal, mirrored(mirrored(other)), other)


@pytest.mark.parametrize("optimizer", ["nesterov", "muon"])
def test_training_keeps_the_pairs(optimizer, tmp_path):
    def asymmetry(mirrored_pairs):
        """The largest difference of a change from its mirror image, divided by the change."""
        optim = OptimConfig(optimizer=optimizer, clip_norm=1.0, mirrored_pairs=mirrored_pairs)
        program = prepare(paired_config(tmp_path, optim=optim)).program
        state = create_state({**variables, "params": paired}, program.optimizer, 0)
        step, batch = jax.jit(program.train_step()), tiny_batch(32)
        for _ in range(3):
            state, _ = step(state, batch)
        change = jax.tree.map(jnp.subtract, state.params, paired)
        gap = jax.tree.map(lambda x, image: jnp.abs(x - image).max(), change, mirrored(change))
        size = jax.tree.map(lambda x: jnp.abs(x).max(), change)
        return max(float(a / b) for a, b in zip(*map(jax.tree.leaves, (gap, size)), strict=True))

    variables = init(GoogLeNet(NETWORK.build()), jax.random.PRNGKey(0), 16)
    paired = in_pairs(variables["params"])
    assert asymmetry(True) < 1e-3
    assert asymmetry(False) > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width_multiplier": 1 / 16}, "even numbers of channels"),
        ({"variant": "paper"}, "cannot be used with LRN"),
        ({"norm": "tests/odd_nets.py:group_norm"}, "treat the channels of a pair differently"),
    ],
)
def test_networks_without_pairs_are_refused(changes, message, tmp_path):
    config = paired_config(tmp_path, model=dataclasses.replace(NETWORK, **changes))
    with pytest.raises(ConfigError, match=message):
        prepare(config)
