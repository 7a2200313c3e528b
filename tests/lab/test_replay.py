import json
import types

import jax
import numpy as np
import pytest

from gnet_jax.cli.main import main
from gnet_jax.config import LossConfig
from gnet_jax.lab.look.replay import _loss, _place
from gnet_jax.training.observe.bad_steps import write_replay
from gnet_jax.training.step import create_state
from tests.tiny import Linear, linear_params, tiny_run, tiny_variables

MEAN = np.array([123, 117, 104], np.uint8)


@pytest.fixture
def replay(tmp_path):
    """Of a step in which the images are grey but one, on which the first layer overflows."""
    run = tiny_run(tmp_path)
    variables = tiny_variables(run.program.model)
    variables["params"]["conv1"]["conv"]["kernel"] = np.full((3, 3, 3, 4), 1e38, np.float32)
    state = create_state(variables, run.program.optimizer, 0)
    images = np.broadcast_to(MEAN, (32, 16, 16, 3)).copy()
    images[5] = 255
    batch = {
        "image": images,
        "label": np.arange(32, dtype=np.int32) % 10,
        "mask": np.ones(32, bool),
    }
    metrics = {"loss": float("nan"), "grad_norm": float("nan"), "skipped": 1.0}
    return write_replay(tmp_path, run, state.replace(step=state.step + 8), 8, batch, metrics)


@pytest.mark.slow
def test_a_replay_names_the_image_and_the_layer(replay, capsys):
    assert main(["replay", str(replay), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["step"], found["reproduced"], found["examples"]) == (8, True, 32)
    (bad,) = found["bad_examples"]
    assert (bad["place"], bad["label"], bad["layer"]) == (5, 5, "conv1")
    with np.load(replay) as arrays:
        assert bad["index"] == arrays["indices"][5]
    assert found["layer"] == "conv1"
    assert found["bad_params"] == []
    assert "conv1/conv" in found["bad_gradients"]


def test_parameters_are_placed_by_the_layer_around_them():
    order = {"input": 0, "conv1": 1, "inception_3a/b5/first": 2, "inception_3a/output": 3}
    placed = ("conv1/norm/group", "conv1/conv", "inception_3a/b5/first/conv", "classifier")
    assert [_place(name, order) for name in placed] == [1, 1, 2, 4]


def test_what_is_frozen_has_no_gradient():
    replay = types.SimpleNamespace(
        model=Linear(),
        config=types.SimpleNamespace(loss=LossConfig()),
        optimizer=types.SimpleNamespace(frozen=("main",)),
    )
    images, targets = np.ones((2, 16, 16, 3), np.float32), np.eye(2, 10, dtype=np.float32)
    grads, _ = jax.grad(_loss(replay), has_aux=True)(linear_params(), {}, images, targets, None)
    assert not grads["main"]["kernel"].any()
    assert grads["aux"]["kernel"].any()


def test_a_file_that_is_no_replay_is_one_sentence(replay, tmp_path, capsys):
    whole = replay.read_bytes()
    with np.load(replay) as arrays:
        largest = max((arrays[name].tobytes() for name in arrays.files), key=len)
    flipped = bytearray(whole)  # in an array: the zip archive's headers have bits without a meaning
    flipped[whole.index(largest) + len(largest) // 2] ^= 1
    for content, message in (
        (b"", "is no replay file, or damaged"),
        (b"{}", "it is not an npz file"),
        (whole[: len(whole) // 2], "is no replay file, or damaged"),
        (bytes(flipped), "is no replay file, or damaged"),
    ):
        replay.write_bytes(content)
        assert main(["replay", str(replay)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "pickle" not in error
    assert main(["replay", str(tmp_path / "none.npz")]) == 2
    assert "cannot read" in capsys.readouterr().err
