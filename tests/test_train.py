import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import train
from gnet_jax.training.checkpoint import Checkpoints, digest
from gnet_jax.training.run import prepare

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no config file nowhere; the recipes in configs/ are: digits"),
        (["--workdir", "/proc/no/run"], "cannot write to the workdir /proc/no/run"),
        (["--batch-size", "30"], "batch_size 30 does not divide over 8 devices; use 24 or 32"),
        (["--data.source", "nothing"], "data source 'nothing' is none of"),
        (["--data.image-size", "8"], "data.image_size 8 is too small"),
        (["--model.num-classes", "5"], "model.num_classes is 5, but the data has 10 classes"),
        (["--model.aux-after", "9z"], "model.aux_after names '9z'"),
        (["--optim.learning-rate", "0"], "optim.learning_rate is 0.0; it must be above 0"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, message, capsys, tmp_path):
    if "--workdir" not in arguments:
        arguments = [*arguments, "--workdir", str(tmp_path / "run")]
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"train.py: error: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--optim.learnig-rate", "1"], "--optim.learning-rate"),
        (["--model.variant", "papr"], "'paper', 'batch_norm'"),
        (["--epochs", "many"], "--epochs"),
    ],
)
def test_a_typo_gets_a_suggestion_and_exit_code_2(arguments, hint, capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(arguments)
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert hint in output.out + output.err


def test_help_names_every_recipe_and_field(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in ("digits", "--workdir", "--model.aux-after", "--optim.averaging", "--data.source"):
        assert word in text


def start(workdir, *arguments):
    """`python train.py` on one device, as a user starts it."""
    environment = os.environ | {"XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(workdir.parent)}
    return subprocess.Popen(
        [sys.executable, "train.py", "--workdir", str(workdir), *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, seconds=600):
    output, _ = process.communicate(timeout=seconds)
    return process.returncode, output


def wait_for_checkpoint(process, workdir):
    """Return once a first checkpoint is committed."""
    deadline = time.monotonic() + 300
    while not any((workdir / "checkpoints").glob("[0-9]*")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def digest_of(workdir, *arguments):
    run = prepare(train.parse(["--workdir", str(workdir), *arguments]))
    with Checkpoints(workdir / "checkpoints", keep_latest=2) as checkpoints:
        assert checkpoints.latest is not None
        return digest(checkpoints.restore(checkpoints.latest, run.abstract_state()))


@pytest.mark.slow
def test_the_first_command_trains_to_97_per_cent_with_both_heads_learning(tmp_path):
    code, output = finish(start(tmp_path / "run"))
    assert code == 0, output
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["val/count"] == 360
    assert lines[-1]["val/top1"] >= 0.97
    last_training = next(line for line in reversed(lines) if "train/loss" in line)
    assert last_training["train/aux4a_top1"] > 0.9
    assert last_training["train/aux4d_top1"] > 0.9
    for word in ("parameters", "multiply-adds", "compiling", "aux4a head", "checkpoint:", "next:"):
        assert word in output


SHORT = ("--epochs", "3", "--save-every-steps", "5")


@pytest.mark.slow
def test_kill_9_at_random_moments_ends_with_the_bits_of_the_uninterrupted_run(tmp_path):
    """Shuffling, random crops and dropout are on, and saves are often under way."""
    code, output = finish(start(tmp_path / "whole", *SHORT))
    assert code == 0, output
    generator = np.random.default_rng()
    workdir = tmp_path / "killed"
    for _ in range(3):
        process = start(workdir, *SHORT)
        wait_for_checkpoint(process, workdir)
        time.sleep(generator.uniform(0, 4))
        process.kill()
        finish(process)
    code, output = finish(start(workdir, *SHORT))
    assert code == 0, output
    assert digest_of(workdir, *SHORT) == digest_of(tmp_path / "whole", *SHORT)
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]
    assert steps == sorted(steps)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, number):
    workdir = tmp_path / "run"
    process = start(workdir, *SHORT)
    wait_for_checkpoint(process, workdir)
    process.send_signal(number)
    code, output = finish(process, 60)
    assert code == 128 + number, output
    assert f"stopped by {number.name}" in output
    assert "Go on with:" in output
    code, output = finish(start(workdir, *SHORT))
    assert code == 0, output
    assert "resuming behind step" in output
    code, output = finish(start(workdir, *SHORT))
    assert "already finished" in output
    code, output = finish(start(workdir, *SHORT, "--seed", "1"))
    assert code == 2
    assert "seed: 0 there, 1 now" in output
