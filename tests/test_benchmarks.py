"""Each benchmark runs, in small: that it works is tested, what it measures there means nothing."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SMALL = {
    "scaling": "--batch 1 --size 96 --batches 1 --sizes 96 --widths 0.25 --repeats 1",
    "start_up": "--repeats 1 -- --epochs 1",
    "state_cost": "",
    "step_gap": "--epochs 1",
    "peers": "--repeats 1 --batches 1 --train-batch 2 --size 128",
    "input_pipeline": "--repeats 1 --images 32 --threads 1 --hosts 1 8 --global-batch 64",
    "visualize": "--repeats 1 --steps 1",
}
WITH_PEERS = {"peers": "torchvision", "input_pipeline": "torchvision", "visualize": "lucent"}
KEYS = {"scaling": "curves", "peers": "ratios", "visualize": "ratios"}
COMPILE = "--xla_backend_optimization_level=0"  # compile time is test time


@pytest.mark.slow
@pytest.mark.walkthrough
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_runs(name, tmp_path):
    peers = []
    if name in WITH_PEERS:
        peers = ["--peer-python", sys.executable]
        for package in ("torch", WITH_PEERS[name]):
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package}, the peer, is not installed")
    result = tmp_path / "result.json"
    keep = [] if name == "state_cost" else ["--json", str(result)]
    environment = os.environ | {"XLA_FLAGS": COMPILE, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *keep, *peers, *SMALL[name].split()],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if name in KEYS:
        assert json.loads(result.read_text())[KEYS[name]]


@pytest.mark.slow
@pytest.mark.walkthrough
@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_torchvision_trains_on_folders_and_files(kind, tmp_path):
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision, the peer, is not installed")
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        pixels = generator.integers(0, 256, (20, 32, 32, 3), np.uint8)
        labels = np.arange(20) % 2
        if kind == "npz":
            np.savez(tmp_path / f"{split}.npz", x=pixels, y=labels)
            continue
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            folder = tmp_path / split / f"class {label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.png")
    suffix = ".npz" if kind == "npz" else ""
    places = [f"--{split}={tmp_path / split}{suffix}" for split in ("train", "val")]
    options = ["--size=64", "--batch=4", "--minutes=0.2"]
    command = [sys.executable, "benchmarks/train_torchvision.py", *places, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["images"], result["batch"]) == (20, 4)
    assert result["steps"] >= 1
    assert 0 <= result["top1"] <= 1


@pytest.mark.slow
@pytest.mark.walkthrough
def test_the_plain_network_trains_on_files(tmp_path):
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision, whose script reads the files, is not installed")
    generator = np.random.default_rng(0)
    for split, size in (("train", 1024), ("val", 20)):  # 1024 are a batch
        pixels = generator.integers(0, 256, (size, 32, 32, 3), np.uint8)
        labels = np.arange(size) % 2
        pixels[labels == 1] //= 4
        np.savez(tmp_path / f"{split}.npz", x=pixels, y=labels)
    places = [f"--{split}={tmp_path / split}.npz" for split in ("train", "val")]
    command = [sys.executable, "benchmarks/train_plain.py", *places, "--epochs=10"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["steps"] == 10
    assert result["top1"] == result["top1_six_views"] == 1  # the images of one class are dark


@pytest.mark.slow
@pytest.mark.long
def test_torchvisions_compiled_network_is_compared_too(tmp_path):
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision, the peer, is not installed")
    if not any(shutil.which(name) for name in ("g++", "clang++")):
        pytest.skip("torch.compile needs a C++ compiler on CPUs; there is none")
    result = tmp_path / "result.json"
    options = [*SMALL["peers"].split(), "--compile-peer", "--dtype", "bfloat16"]
    command = [sys.executable, "benchmarks/peers.py", "--peer-python", sys.executable, *options]
    environment = os.environ | {"XLA_FLAGS": COMPILE, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--json", str(result)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text())
    assert [found["peers"][name]["compiled"] for name in ("peer", "compiled")] == [False, True]
    assert found["ratios_to_compiled"].keys() == {"train_b2", "forward_b1"}
    assert found["ratios"].keys() == {"train_b2", "forward_b1", "onnx_b1"}


def gpu_check(out, **variables):
    """Run the check; returns its exit code and its result by part."""
    done = subprocess.run(
        ["bash", "benchmarks/gpu_check.sh"],
        cwd=ROOT,
        env=os.environ | {"SMALL": "1", "OUT": str(out), "PYTHON": sys.executable} | variables,
        capture_output=True,
        text=True,
    )
    result = out / "result.json"
    assert result.exists(), done.stdout + done.stderr
    assert "| part | status |" in done.stdout
    return done.returncode, json.loads(result.read_text())["parts"]


def test_the_gpu_check_reports_failed_stopped_and_skipped_parts(tmp_path):
    stand_in = tmp_path / "python"
    stand_in.write_text(
        f"""#!/usr/bin/env bash
case $2 in
report) exec {sys.executable} "$@" ;;
memory) exec sleep 60 ;;
*) exit 3 ;;
esac
"""
    )
    stand_in.chmod(0o755)
    code, parts = gpu_check(tmp_path / "out", PYTHON=str(stand_in), LIMITS="1 1 1 9 9")
    assert code == 1
    assert parts["peers"]["skipped"] == "PEER_PYTHON is not set"
    assert parts["memory"]["code"] == 124
    assert parts["modern"]["code"] == parts["cifar10"]["code"] == 3


@pytest.mark.slow
@pytest.mark.walkthrough
def test_the_gpu_check_runs_in_small_on_a_cpu(tmp_path):
    generator = np.random.default_rng(0)
    for split, count in (("train", 128), ("test", 20)):
        pixels = generator.integers(0, 256, (count, 32, 32, 3), np.uint8)
        np.savez(tmp_path / f"cifar_{split}.npz", x=pixels, y=np.arange(count) % 10)
    code, parts = gpu_check(
        tmp_path / "out",
        CIFAR=f"npz:{tmp_path}/cifar_{{split}}.npz",
        XLA_FLAGS=COMPILE,
        LIMITS="900 900 900 900 900",
    )
    assert code == 0, parts
    assert parts["memory"]["result"]["planned_bytes"] > 0
    assert parts["modern"]["result"]["steps"] == 3
    assert parts["cifar10"]["result"]["steps"] == 2
    assert 0 <= parts["cifar10"]["result"]["top1"] <= 1
