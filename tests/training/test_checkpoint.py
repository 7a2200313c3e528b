import dataclasses

import jax
import numpy as np
import pytest

from gnet_jax.config import ConfigError, OptimConfig
from gnet_jax.model import GoogLeNet
from gnet_jax.training.checkpoint import Checkpoints, digest
from gnet_jax.training.optimizer import make_optimizer
from gnet_jax.training.sharding import data_mesh, put_state, replicated
from gnet_jax.training.step import create_state
from tests.tiny import tiny_arch, tiny_variables


@pytest.fixture(scope="module")
def state():
    optimizer = make_optimizer(OptimConfig(averaging="ema"), 10, 100)
    variables = tiny_variables(GoogLeNet(tiny_arch("batch_norm")))
    return put_state(create_state(variables, optimizer, seed=0), data_mesh())


def abstract(state, devices=8):
    whole = replicated(data_mesh(jax.devices()[:devices]))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), state)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_state_comes_back_with_the_same_bits_on_any_number_of_devices(state, tmp_path, devices):
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        checkpoints.save(3, state)
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        assert checkpoints.latest == 3
        restored = checkpoints.restore(3, abstract(state, devices))
    assert digest(restored) == digest(state)
    assert len(restored.step.sharding.device_set) == devices


def test_the_newest_and_the_best_are_kept(state, tmp_path):
    small = {"step": state.step}
    scores = {1: 0.3, 2: 0.9, 3: None, 4: 0.5, 5: None, 6: 0.6}
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        for step, top1 in scores.items():
            checkpoints.save(step, small, top1)
        checkpoints.save(6, small, 0.1)  # already saved: nothing changes
        checkpoints.wait()
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        assert (checkpoints.latest, checkpoints.best) == (6, 2)
        assert checkpoints.top1() == {2: 0.9, 6: 0.6}
        checkpoints.save(7, small, 0.1)
        checkpoints.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "6", "7"]


def test_an_empty_folder_has_no_step(tmp_path):
    with Checkpoints(tmp_path / "new", keep_latest=1) as checkpoints:
        assert checkpoints.latest is None
        assert checkpoints.best is None


def test_a_state_of_another_shape_dtype_or_tree_is_refused_by_name(state, tmp_path):
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        wanted = abstract(state)

        def but(**changes):
            return dataclasses.replace(wanted, **changes)

        scalar = jax.ShapeDtypeStruct((), np.float32, sharding=replicated(data_mesh()))
        with pytest.raises(ConfigError, match=r"step is \(\(\), dtype\('int32'\)\) there"):
            checkpoints.restore(1, but(step=scalar))
        unbiased = dict(wanted.params, classifier={"kernel": wanted.params["classifier"]["kernel"]})
        with pytest.raises(ConfigError, match=r"classifier/bias is .* there, absent here"):
            checkpoints.restore(1, but(params=unbiased))
        with pytest.raises(ConfigError, match="params/more is absent there"):
            checkpoints.restore(1, but(params=dict(wanted.params, more=scalar)))


def test_the_digest_tells_bits_dtypes_and_names_apart(state):
    tree = {"a": np.zeros(3, np.float32)}
    flipped = {"a": np.array([0, -0.0, 0], np.float32)}
    assert digest(tree) == digest({"a": np.zeros(3, np.float32)})
    others = [flipped, {"b": tree["a"]}, {"a": np.zeros(3, np.int32)}, {"a": np.zeros((3, 1), "f")}]
    assert len({digest(other) for other in [tree, *others]}) == 5


def test_a_damaged_checkpoint_is_named_with_the_step_to_go_on_from(state, tmp_path):
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.save(2, state)
        checkpoints.wait()
        (tmp_path / "2" / "state" / "_METADATA").unlink()
        with pytest.raises(ConfigError, match=r"checkpoint 2 in .* damaged: .* from step 1"):
            checkpoints.restore(2, abstract(state))
