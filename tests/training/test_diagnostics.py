import dataclasses
import errno
import json
from functools import partial

import jax
import numpy as np
import pytest
from tensorboardX.event_file_writer import EventsWriter

from gnet_jax.config import AugmentConfig, LossConfig, OptimConfig, Preprocessing
from gnet_jax.data.augment import augment
from gnet_jax.training.loop import CompiledSteps, train
from gnet_jax.training.observe.console import Board
from gnet_jax.training.observe.diagnostics import Diagnostics, _activations, diagnose
from gnet_jax.training.optimizer import make_optimizer
from gnet_jax.training.step import create_state, train_step
from gnet_jax.training.workdir import MetricsFile
from tests.odd_nets import NestedThrees, Shared, with_block
from tests.tiny import Linear, linear_params, tiny_batch, tiny_run, tiny_variables, with_program


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory):
    """A run of four steps, diagnosed at steps 0 and 2: (run, workdir, lines, compiled)."""
    workdir = tmp_path_factory.mktemp("run")
    run = tiny_run(workdir, epochs=0.1, diagnose=2)
    compiled = CompiledSteps(run.program)
    train(run, workdir, compiled)
    text = (workdir / "diagnostics.jsonl").read_text()
    return run, workdir, [json.loads(line) for line in text.splitlines()], compiled


@pytest.mark.slow
def test_a_run_is_diagnosed_every_so_many_steps(diagnosed):
    _, workdir, lines, _ = diagnosed
    assert [line["step"] for line in lines] == [0, 2]
    assert list((workdir / "tensorboard" / "diagnostics").iterdir())
    names = lines[0].keys()
    assert {"grad_norm/conv1", "grad_norm_aux4a/inception_3a", "update_ratio/classifier"} <= names
    assert {"activation_rms/inception_5a/b5", "dead/conv2_reduce"} <= names
    assert all(np.isfinite(value) for line in lines for value in line.values())
    shares = [value for name, value in lines[1].items() if name.startswith("dead/")]
    assert all(0 <= share <= 1 for share in shares)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_training_step(diagnosed):
    run, _, _, compiled = diagnosed
    batch = tiny_batch(32)
    found = jax.device_get(compiled.diagnose(run.program.initial_state(), batch))["scalars"]
    norms = [value for name, value in found.items() if name.startswith("grad_norm/")]
    inputs = (batch, np.zeros(run.program.mesh.size, np.int32))
    placed = jax.device_put(inputs, compiled.train.input_shardings[0][1:])
    before = run.program.initial_state()
    old = jax.device_get(before.params)
    (after, metrics), _ = compiled.train(before, *placed)
    whole = float(metrics["grad_norm"])
    assert np.sqrt(np.sum(np.square(norms))) == pytest.approx(whole, rel=1e-4)
    new = jax.device_get(after.params)
    moved = np.linalg.norm(new["classifier"]["kernel"] - old["classifier"]["kernel"])
    ratio = moved / np.linalg.norm(old["classifier"]["kernel"])
    assert found["update_ratio/classifier"] == pytest.approx(ratio, rel=0.05)  # the bias is small


@pytest.mark.slow
def test_above_its_block_an_auxiliary_head_has_no_gradient(diagnosed):
    _, _, lines, _ = diagnosed
    assert lines[0]["grad_norm_aux4a/inception_5a"] == 0
    assert lines[0]["grad_norm_aux4a/inception_3a"] > 0
    assert lines[0]["grad_norm_main/aux_4a"] == 0


@pytest.mark.slow
def test_diagnosing_leaves_the_run_as_it_is(diagnosed, tmp_path):
    run, workdir, _, compiled = diagnosed
    config = dataclasses.replace(run.config, workdir=str(tmp_path), diagnose=None)
    train(with_program(run, config=config), tmp_path, compiled)
    assert not (tmp_path / "diagnostics.jsonl").exists()

    def losses(folder):
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [line.get("train/loss", line.get("val/loss")) for line in lines]

    assert losses(tmp_path) == losses(workdir)


def test_what_is_frozen_has_no_gradient_and_does_not_count_for_the_clipping():
    optimizer = make_optimizer(OptimConfig(freeze=("main",), clip_norm=1e-3), 10, 100)
    pixels = Preprocessing(image_size=16, mean=(127.0,) * 3, std=(64.0,) * 3)
    parts = {
        "model": Linear(),
        "optimizer": optimizer,
        "augment": partial(
            augment, preprocessing=pixels, augmentation=AugmentConfig(), num_classes=10
        ),
        "loss": LossConfig(),
    }
    params = jax.tree.map(lambda x: x / 10, linear_params())  # a norm below 1
    state = create_state({"params": params, "batch_stats": {}}, optimizer, 0)
    found = jax.jit(partial(diagnose, **parts))(state, tiny_batch())["scalars"]
    after, metrics = jax.jit(partial(train_step, **parts))(state, tiny_batch())
    assert found["grad_norm/main"] == found["grad_norm_main/main"] == 0
    assert found["grad_norm/aux"] == pytest.approx(float(metrics["grad_norm"]), rel=1e-5)
    old = state.params["aux"]["kernel"]
    moved = np.linalg.norm(after.params["aux"]["kernel"] - old) / np.linalg.norm(old)
    assert found["update_ratio/aux"] == pytest.approx(moved, rel=1e-2)


def test_each_head_has_its_own_gradient_with_the_weight_of_its_loss():
    """The gradient of x @ kernel, by hand: x' (softmax - target) / B, times the weight."""
    optimizer, batch, params = make_optimizer(OptimConfig(), 10, 100), tiny_batch(), linear_params()
    parts = {
        "model": Linear(),
        "optimizer": optimizer,
        "augment": lambda images, labels, _: (images / 255, jax.nn.one_hot(labels, 10)),
        "loss": LossConfig(aux_weight=0.6, label_smoothing=0.0),
    }
    state = create_state({"params": params, "batch_stats": {}}, optimizer, 0)
    found = jax.device_get(jax.jit(partial(diagnose, **parts))(state, batch))
    scalars, histograms = found["scalars"], found["histograms"]
    x = batch["image"].reshape(16, -1) / 255
    for head, own, other, weight in (("main", "main", "aux4a", 1.0), ("aux", "aux4a", "main", 0.6)):
        kernel = params[head]["kernel"]
        grown = np.exp(x @ kernel)
        errors = grown / grown.sum(axis=1, keepdims=True) - np.eye(10)[batch["label"]]
        gradient = weight * x.T @ errors / 16
        assert scalars[f"grad_norm/{head}"] == pytest.approx(np.linalg.norm(gradient), rel=1e-4)
        assert scalars[f"grad_norm_{own}/{head}"] == pytest.approx(scalars[f"grad_norm/{head}"])
        assert scalars[f"grad_norm_{other}/{head}"] == 0
        for what, values in (("gradients", gradient), ("parameters", kernel)):
            counts, edges = histograms[f"{what}/{head}"]
            assert (counts.shape, edges.shape, counts.sum()) == ((40,), (41,), 7680)
            np.testing.assert_allclose(edges[[0, -1]], [values.min(), values.max()], rtol=1e-4)


def found_at(state, batch):
    return {
        "scalars": {"grad_norm/conv1": np.float32(state)},
        "histograms": {"gradients/conv1": (np.ones(3, np.float32), np.linspace(-1, 1, 4))},
    }


def test_a_resumed_run_is_diagnosed_as_an_uninterrupted_one(tmp_path):
    told = []
    with Diagnostics(tmp_path, found_at, 2, 0, told.append) as diagnose:
        for finished in range(6):
            diagnose(finished, finished, {})
    assert len(told) == 1  # it compiles once
    # killed, and resumed after step 4: what was found from there on is found again
    with Diagnostics(tmp_path, found_at, 2, 4, print) as diagnose:
        for finished in range(4, 8):
            diagnose(finished, finished, {})
    lines = MetricsFile(tmp_path / "diagnostics.jsonl").read()
    assert [(line["step"], line["grad_norm/conv1"]) for line in lines] == [
        (0, 0.0), (2, 2.0), (4, 4.0), (6, 6.0),
    ]  # fmt: skip
    assert list((tmp_path / "tensorboard" / "diagnostics").iterdir())
    assert diagnose._board._writer is None
    assert Diagnostics(tmp_path, found_at, 2, 4, print)._board._purge_step == 4


def test_a_full_disk_is_told_and_the_run_goes_on(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    told = []
    with Diagnostics(tmp_path, found_at, 2, 0, told.append) as diagnose:
        monkeypatch.setattr(MetricsFile, "append", full)
        monkeypatch.setattr(EventsWriter, "close", full)
        diagnose(0, 0, {})
    assert len(told) == 2
    assert "compiling" in told[0]
    for part in ("step 0", "No space left on device"):
        assert part in told[1]


@pytest.mark.parametrize(
    ("block", "layers"),
    [
        (NestedThrees, {"inception_3a/b5/first", "inception_3a/b5/second"}),
        (Shared, {"inception_3a/b5", "inception_3a/b5 (2)", "inception_3a/widen"}),
    ],
)
def test_layers_that_are_not_known_are_diagnosed_under_their_own_names(block, layers):
    model = with_block(block)
    optimizer = make_optimizer(OptimConfig(), 10, 100)
    pixels = Preprocessing(image_size=16, mean=(127.0,) * 3, std=(64.0,) * 3)
    step = partial(
        diagnose,
        model=model,
        optimizer=optimizer,
        augment=partial(
            augment, preprocessing=pixels, augmentation=AugmentConfig(), num_classes=10
        ),
        loss=LossConfig(),
    )
    state = create_state(tiny_variables(model), optimizer, 0)
    found = jax.eval_shape(step, state, tiny_batch(4))["scalars"]
    assert {name.partition("/")[2] for name in found if name.startswith("dead/")} >= layers
    blocks = {name.partition("/")[2] for name in found if name.startswith("grad_norm/")}
    assert blocks == set(state.params)


def test_a_channel_is_dead_if_it_is_zero_in_every_image_and_place():
    x = np.ones((2, 2, 2, 4), np.float32)
    x[..., 0] = 0
    x[0, ..., 1] = 0  # in one image only
    x[:, 0, :, 2] = 0  # in one row only
    x[..., 3] = -3
    found = _activations({"conv1": {"output": (x,)}, "classifier": {"output": (np.ones((2, 4)),)}})
    assert found.keys() == {"activation_rms/conv1", "dead/conv1"}
    assert found["dead/conv1"] == 0.25
    assert found["activation_rms/conv1"] == pytest.approx(np.sqrt((0 + 4 + 4 + 8 * 9) / 32))


def test_a_histogram_without_finite_edges_is_left_out(tmp_path, monkeypatch):
    def diverged(state, batch):
        edges = np.array([0.0, np.nan])
        return {
            "scalars": {"grad_norm/conv1": np.float32(2)},
            "histograms": {
                "gradients/conv1": (np.ones(1), edges),
                "gradients/conv2": (np.ones(1), np.arange(2)),
            },
        }

    added = []
    monkeypatch.setattr(Board, "add", lambda *arguments: added.append(arguments[1:]))
    with Diagnostics(tmp_path, diverged, 3, 0, print) as diagnose:
        for finished in range(5):
            diagnose(finished, None, {})
    assert [(step, list(histograms)) for step, _, histograms in added] == [
        (0, ["gradients/conv2"]),
        (3, ["gradients/conv2"]),
    ]
