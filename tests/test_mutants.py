"""`benchmarks/mutants.py` on a package of four functions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cosmic_ray", reason="cosmic-ray is not installed: pip install -e '.[mutants]'")
pytest.importorskip("coverage", reason="coverage is not installed: pip install -e '.[mutants]'")

ROOT = Path(__file__).parents[1]
# Line 8 has two mutants, of which one is drawn; the other lines of OUTCOMES have one.
MODULE = '''\
"""Returns 1 + 1 < 3 and not True."""

LIMIT = 0.5


def add(a: "int < 2", b):
    print("the sum of " + a, flush=True)
    if a is None:
        raise ValueError(str(a * b) + " is wrong")
    return a + b


def is_less(a, b):
    return a < b


def multiply(a, b):
    return a * b


def limit():
    return LIMIT
'''
TEST = """\
from gnet_jax.model.toy import add, is_less, limit


def test_numbers():
    assert limit() == 0.5
    assert is_less(1, 2) and not is_less(2, 1)


def test_add(monkeypatch):
    monkeypatch.setattr("builtins.print", lambda *args, **kwargs: None)
    assert add("a", "b") == "ab"


def test_that_fails_without_a_mutant():
    assert add is None
"""
# Passes alone, as every test file is measured; fails beside the other one, mutant or not.
TEST_THAT_WANTS_TO_BE_ALONE = """\
import sys

from gnet_jax.model.toy import is_less


def test_alone():
    assert is_less(1, 2)
    assert "test_toy" not in sys.modules
"""
OUTCOMES = {3: "killed", 8: "killed", 10: "killed", 14: "survived", 18: "uncovered"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkout")
    files = {
        "gnet_jax/__init__.py": "",
        "gnet_jax/model/toy.py": MODULE,
        "tests/test_toy.py": TEST,
        "tests/test_other.py": TEST_THAT_WANTS_TO_BE_ALONE,
    }
    for file, text in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    return root


def run(checkout, *options):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks/mutants.py", "--root", checkout, *options],
        env=environment,
        capture_output=True,
        text=True,
    )


def test_mutants_are_killed_survive_or_are_not_covered(checkout, tmp_path):
    result = tmp_path / "result.json"
    done = run(checkout, "--json", result, "--fail-under", "95", "--only", "gnet_jax/model")
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads(result.read_text())
    assert {mutant["line"]: mutant["outcome"] for mutant in found["mutants"]} == OUTCOMES
    assert found["score"] == pytest.approx(60)
    killers = {mutant["line"]: mutant["killer"] for mutant in found["mutants"]}
    assert killers[10] == "tests/test_toy.py::test_add"
    assert "-    return a < b\n+    return a <= b" in done.stdout
    assert (checkout / "gnet_jax/model/toy.py").read_text() == MODULE


def test_a_sample_depends_on_its_seed_alone(checkout):
    listed = [run(checkout, "--list", "--sample", "2", "--seed", seed) for seed in "112"]
    assert [done.returncode for done in listed] == [0, 0, 0]
    assert listed[0].stdout == listed[1].stdout != listed[2].stdout
