"""Each benchmark runs, in small: that it works is tested, what it measures there means nothing."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = {
    "scaling": "--batch 1 --size 96 --batches 1 --sizes 96 --widths 0.25 --repeats 1",
    "start_up": "--repeats 1 -- --epochs 1",
    "state_cost": "",
    "peers": "--repeats 1 --batches 1 --train-batch 2 --size 128",
    "input_pipeline": "--repeats 1 --images 32 --threads 1",
    "visualize": "--repeats 1 --steps 1",
}
WITH_PEERS = {"peers": "torchvision", "input_pipeline": "torchvision", "visualize": "lucent"}
KEYS = {"scaling": "curves", "peers": "ratios", "visualize": "ratios"}


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
    environment = os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compile time is test time
        "PYTHONPATH": str(ROOT),
    }
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
