import dataclasses
import json
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnet_jax.cli.main import main
from gnet_jax.config import AugmentConfig, Config, UserError
from gnet_jax.lab.look import replay as replay_module
from gnet_jax.lab.look.replay import _loss, _place, _repeat_step
from gnet_jax.model.googlenet import GoogLeNet, Outputs
from gnet_jax.training.observe.faults import write_replay
from gnet_jax.training.program import Program
from gnet_jax.training.sharding import data_mesh
from gnet_jax.training.step import create_state
from tests.tiny import (
    Linear,
    linear_params,
    program_of,
    tiny_arch,
    tiny_batch,
    tiny_config,
    tiny_run,
    tiny_variables,
)

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


def test_a_replay_file_has_the_batch_and_the_state_before_the_step(replay, monkeypatch):
    given, make = [], replay_module.make_optimizer
    monkeypatch.setattr(replay_module, "make_optimizer", lambda *a: given.append(a) or make(*a))
    found = replay_module.read_replay(replay)
    program = found.program
    assert program.config == tiny_config(replay.parent)
    assert program.mesh.size == 1
    assert program.model == GoogLeNet(tiny_arch(), dtype=jnp.dtype("float32"))
    assert (found.step, found.state.step, program.optimizer.frozen) == (8, 7, ())
    kernel = found.state.params["conv1"]["conv"]["kernel"]
    assert (kernel.shape, kernel.dtype, kernel[0, 0, 0, 0]) == (
        (3, 3, 3, 4),
        np.float32,
        np.float32(1e38),
    )
    assert sorted(found.batch) == ["image", "label", "mask"]
    assert found.batch["image"].dtype == np.uint8
    assert found.batch["image"].max(axis=(1, 2, 3)).tolist() == [123] * 5 + [255] + [123] * 26
    assert found.batch["label"][:11].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert len(set(found.indices.tolist())) == 32
    assert np.isnan(found.metrics["loss"])
    assert found.metrics["skipped"] == 1
    # 0.2 epochs of 1,437 images in batches of 32 are 9 steps; no weights were loaded
    assert given == [(program.config.optim, 1437 / 32, 9, frozenset())]


@pytest.mark.parametrize(("share", "size"), [(0.9, 12), (0.8, None)])  # 8 or 7 of 9 steps
def test_a_batch_of_the_first_steps_is_examined_at_their_size(tmp_path, share, size):
    run = tiny_run(tmp_path, augment=AugmentConfig(early_size=12, early_share=share))
    metrics = {"loss": float("nan"), "grad_norm": float("nan"), "skipped": 1.0}
    state = create_state(tiny_variables(run.program.model), run.program.optimizer, 0)
    batch = {name: np.repeat(x, 2, 0) for name, x in tiny_batch().items()}
    file = write_replay(tmp_path, run, state.replace(step=state.step + 8), 8, batch, metrics)
    assert replay_module.read_replay(file).size == size


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


class TwoLayers:
    """Two linear layers, `zoom` and then `alpha`, whose outputs are recorded in this order."""

    arch = types.SimpleNamespace(aux_after=(), num_classes=10)

    def clone(self, **_):
        return self

    def apply(self, variables, images, **_):
        params = variables["params"]
        zoomed = images.reshape(len(images), -1) @ params["zoom"]["kernel"]
        logits = zoomed @ params["alpha"]["kernel"]
        recorded = {"zoom": {"output": (zoomed,)}, "alpha": {"output": (logits,)}}
        return Outputs(logits, ()), {"intermediates": recorded}


@pytest.fixture
def two_layers(tmp_path, monkeypatch):
    """A replay of four grey images and two bright ones, on which `zoom` overflows."""
    repeated = {"loss": 2.0, "grad_norm": 3.0, "skipped": 1.0}
    monkeypatch.setattr(replay_module, "_repeat_step", lambda _: repeated)
    images = np.broadcast_to(MEAN, (6, 16, 16, 3)).copy()
    images[[1, 4]] = 255
    alpha = np.random.default_rng(0).normal(size=(4, 10)).astype(np.float32)
    params = {"alpha": {"kernel": alpha}, "zoom": {"kernel": np.full((768, 4), 1e38, np.float32)}}
    state = types.SimpleNamespace(rng=jax.random.PRNGKey(0), step=8, params=params, batch_stats={})
    return replay_module.Replay(
        program=program_of(tiny_config(tmp_path), TwoLayers(), types.SimpleNamespace(frozen=())),
        size=None,
        state=state,
        batch={"image": images, "label": np.array([9, 8, 7, 6, 5, 4], np.int32)},
        indices=np.array([10, 11, 12, 13, 14, 15]),
        step=8,
        metrics=dict(repeated),
    )


def test_the_first_bad_layer_is_found_for_the_batch_and_for_each_image(two_layers):
    found = replay_module.examine(two_layers)
    assert (found.step, found.examples, found.reproduced) == (8, 6, True)
    assert found.metrics == {"loss": 2.0, "grad_norm": 3.0, "skipped": 1.0}
    assert (found.layer, found.bad_params) == ("zoom", ())
    assert found.bad_gradients == ("alpha", "zoom")
    assert [(bad.place, bad.index, bad.label) for bad in found.bad_examples] == [
        (1, 11, 8), (4, 14, 5),
    ]  # fmt: skip
    assert [bad.layer for bad in found.bad_examples] == ["zoom", "zoom"]
    assert all(np.isnan(bad.loss) for bad in found.bad_examples)


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_another_loss_or_norm_than_in_the_run_is_not_reproduced(two_layers, name):
    two_layers.metrics[name] *= 1.01
    two_layers.state.params["zoom"]["kernel"] = np.zeros((768, 4), np.float32)
    found = replay_module.examine(two_layers)
    assert not found.reproduced
    assert (found.layer, found.bad_examples, found.bad_gradients) == (None, (), ())


@pytest.mark.parametrize("values", [(2.001, 3.0), (2.0, 2.999)])
def test_a_difference_of_rounding_is_reproduced(two_layers, values):
    two_layers.metrics.update(zip(("loss", "grad_norm"), values, strict=True))
    assert replay_module.examine(two_layers).reproduced


def test_a_loss_that_is_nan_in_both_is_reproduced(two_layers, monkeypatch):
    bad = {"loss": float("nan"), "grad_norm": float("inf")}
    monkeypatch.setattr(replay_module, "_repeat_step", lambda _: dict(bad))
    assert replay_module.examine(dataclasses.replace(two_layers, metrics=bad)).reproduced


def test_parameters_that_are_not_finite_before_the_step_are_named(two_layers):
    two_layers.state.params["alpha"]["kernel"][0, 0] = np.inf
    two_layers.state.params["zoom"]["kernel"] = np.zeros((768, 4), np.float32)
    found = replay_module.examine(two_layers)
    assert (found.bad_params, found.layer) == (("alpha/kernel",), "alpha")
    assert len(found.bad_examples) == 6


@pytest.mark.parametrize("numerics", ["fast", "canonical"])
def test_the_step_is_repeated_as_in_the_run(two_layers, tmp_path, monkeypatch, numerics):
    def make(program, size):
        assert (program, size) == (replay.program, 12)
        return lambda state, batch: (state, {"loss": batch["label"].sum() + 100 * state["step"]})

    compiled, compile_step = [], replay_module.compile_train_step

    def compile_noted(mesh, *arguments, manual):
        compiled.append((mesh.size, manual))
        return compile_step(mesh, *arguments, manual=manual)

    monkeypatch.setattr(Program, "train_step", make)
    monkeypatch.setattr(replay_module, "compile_train_step", compile_noted)
    config = tiny_config(tmp_path, numerics=numerics)
    mesh, state = data_mesh(jax.devices()[:1]), {"step": jnp.int32(8)}
    program = dataclasses.replace(two_layers.program, config=config, mesh=mesh)
    replay = dataclasses.replace(two_layers, program=program, state=state, size=12)
    assert _repeat_step(replay) == {"loss": 9 + 8 + 7 + 6 + 5 + 4 + 800}
    assert compiled == [(1, numerics == "canonical")]


def test_the_command_prints_at_most_ten_images(monkeypatch, capsys):
    bad = [
        replay_module.BadExample(n, 100 + n, 3, float("nan"), "conv1" if n else None)
        for n in range(12)
    ]
    found = replay_module.Findings(
        7, {"loss": 1.5, "grad_norm": 2.5, "skipped": 1.0}, False, ("conv1/kernel",), "conv1",
        ("conv2", "conv1"), tuple(bad), 32,
    )  # fmt: skip
    monkeypatch.setattr(replay_module, "read_replay", lambda _: None)
    monkeypatch.setattr(replay_module, "examine", lambda _: found)
    assert main(["replay", "any.npz"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "step 7" in lines[0]
    assert "1.5" in lines[0]
    assert "2.5" in lines[0]
    assert "NOT" in lines[0]
    assert "conv1/kernel" in lines[1]
    assert "example 100," in lines[2]
    assert "only in its gradients" in lines[2]
    assert "example 109," in lines[11]
    assert "first in layer conv1" in lines[11]
    assert "2 more of the batch's 32" in lines[12]
    assert lines[13].endswith("conv1")
    assert lines[14].endswith("conv2, conv1")
    assert len(lines) == 15
    fine = dataclasses.replace(
        found, bad_examples=(), bad_gradients=(), layer=None, bad_params=(), reproduced=True
    )
    monkeypatch.setattr(replay_module, "examine", lambda _: fine)
    assert main(["replay", "any.npz"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "NOT" not in lines[0]
    assert "optim.learning_rate" in lines[-1]


def test_parameters_are_placed_by_the_layer_around_them():
    layers = ["input", "conv1", "inception_3a/b5/first", "inception_3a/output"]
    placed = ("conv1/norm/group", "conv1/conv", "inception_3a/b5/first/conv", "classifier")
    assert [_place(name, layers) for name in placed] == [1, 1, 2, 4]


def test_what_is_frozen_has_no_gradient():
    program = program_of(Config(), Linear(), types.SimpleNamespace(frozen=("main",)))
    replay = types.SimpleNamespace(program=program)
    images, targets = np.ones((2, 16, 16, 3), np.float32), np.eye(2, 10, dtype=np.float32)
    loss = partial(_loss, replay, [])
    gradient = jax.jit(jax.grad(loss, has_aux=True))
    grads, _ = gradient(linear_params(), {}, None, images, targets)
    assert not grads["main"]["kernel"].any()
    assert grads["aux"]["kernel"].any()


def test_a_file_that_is_no_replay_is_one_sentence(tmp_path, capsys):
    replay, array = tmp_path / "replay-8.npz", np.arange(1000)
    np.savez(replay, array=array)
    whole = replay.read_bytes()
    flipped = bytearray(whole)  # in an array: the zip archive's headers have bits without a meaning
    flipped[whole.index(array.tobytes()) + 4000] ^= 1
    for content, message in (
        (b"", "not an npz file"),
        (b"{}", "not an npz file"),
        (whole, "not a replay file"),
        (whole[: len(whole) // 2], "corrupt"),
        (bytes(flipped), "corrupt"),
    ):
        replay.write_bytes(content)
        assert main(["replay", str(replay)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "pickle" not in error
    assert main(["replay", str(tmp_path / "none.npz")]) == 2
    assert "cannot read" in capsys.readouterr().err


class Trap:
    """An object that leaves a file behind if it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def test_a_file_with_pickled_objects_is_refused_and_executes_nothing(tmp_path):
    file, sprung = tmp_path / "replay.npz", tmp_path / "sprung"
    np.savez(file, notes=np.array([Trap(sprung)], dtype=object))
    with pytest.raises(UserError, match=str(tmp_path)):
        replay_module.read_replay(file)
    assert not sprung.exists()
