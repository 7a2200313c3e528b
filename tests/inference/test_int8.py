"""A quantised file is small, and classifies as the network does."""

import json
import sys

import numpy as np
import pytest

from gnet_jax.cli.main import main
from gnet_jax.model_folder import write_folder
from tests.convert.conftest import small_folder

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model of three classes in a folder, and a data set of these classes."""
    root = tmp_path_factory.mktemp("int8")
    model = small_folder(width_multiplier=1 / 4)
    model.variables["params"]["classifier"]["bias"][:] = 0  # the image decides
    write_folder(root / "model", model)
    generator = np.random.default_rng(0)
    for split, count in (("train", 30), ("val", 40)):
        means = generator.integers(0, 256, (count, 1, 1, 3))
        images = (means + generator.integers(-60, 60, (count, 32, 32, 3))).clip(0, 255)
        names = {"class_names": np.array(model.class_names)}
        labels = np.arange(count) % 3
        np.savez(root / f"{split}.npz", images=images.astype(np.uint8), labels=labels, **names)
    return root


def test_int8_agrees_with_float32_in_less_than_half_the_size(place, capsys):
    out, exact = place / "int8.onnx", place / "float32.onnx"
    data = f"npz:{place}/{{split}}.npz"
    assert main(["export", str(place / "model"), str(out), "--int8", data]) == 0
    printed = capsys.readouterr().out
    assert main(["export", str(place / "model"), str(exact)]) == 0
    sizes = [file.stat().st_size for file in (exact, out)]
    assert sizes[1] < sizes[0] / 2
    images = np.load(place / "val.npz")
    model = onnx.load(out)
    config = json.loads({p.key: p.value for p in model.metadata_props}["config"])
    p = config["preprocessing"]
    x = (images["images"][..., ::-1] - np.float32(p["mean"])) / np.float32(p["std"])
    guesses = []
    for file in (exact, out):
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        guesses.append(session.run(["logits"], {"input": x.transpose(0, 3, 1, 2)})[0].argmax(1))
    assert len(set(guesses[0])) > 1
    # 35 of the 40 images agreed on a CPU without AVX-512.
    assert np.mean(guesses[0] == guesses[1]) >= 0.8
    for line, guess, size in zip(printed.splitlines(), guesses, sizes, strict=False):
        assert f"{np.mean(guess == images['labels']):.2%} of 40 images" in line
        assert f"{size:,} bytes" in line
    weights = [t for t in model.graph.initializer if t.name == "conv2/weight_quantized"]
    assert weights[0].data_type == onnx.TensorProto.INT8
    scales = [t for t in model.graph.initializer if t.name == "conv2/weight_scale"]
    assert scales[0].dims[0] == weights[0].dims[0] > 1  # one per output channel


@pytest.mark.parametrize(
    ("out", "data", "named"),
    [
        ("a.stablehlo", "npz:{}/{{split}}.npz", ".onnx"),
        ("a.onnx", "digits", "'0'"),  # classes that the model lacks
        ("a.onnx", "npz:{}/val.npz", "val.npz"),
        ("absent/a.onnx", "npz:{}/{{split}}.npz", "absent"),
    ],
)
def test_what_cannot_be_quantised_is_refused_and_leaves_nothing(place, capsys, out, data, named):
    before = sorted(place.iterdir())
    arguments = [str(place / "model"), str(place / out), "--int8", data.format(place)]
    assert main(["export", *arguments]) == 2
    assert named in capsys.readouterr().err
    assert sorted(place.iterdir()) == before


def test_a_missing_package_names_the_extra(place, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    arguments = [str(place / "model"), str(place / "a.onnx"), "--int8", "digits"]
    assert main(["export", *arguments]) == 2
    assert "[export]" in capsys.readouterr().err
