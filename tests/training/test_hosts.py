"""Runs over several processes, for real."""

import dataclasses
import io
import json
import platform
import shutil
import signal
import sys
import time

import jax
import numpy as np
import psutil
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import train
from gnet_jax.config import Config
from gnet_jax.data.batches import _order
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.training.checkpoints.save import Checkpoints
from gnet_jax.training.checkpoints.verify import digest
from gnet_jax.training.hosts.supervise import newest_step
from gnet_jax.training.program import prepare
from gnet_jax.training.sharding import data_mesh
from tests.tiny import tiny_arch, with_program
from tests.training.host_evaluation import counts
from tests.training.processes import RECIPE, joined, launch, load, start

SHORT = ("--epochs", "0.375", "--save-every-steps", "3")  # 6 steps
ENDLESS = ("--epochs", "9000", "--save-every-steps", "4", "--eval-every-epochs", "9000")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the runs of this module are: two folders below the programs that they share."""
    return tmp_path_factory.mktemp("hosts") / "runs"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The option that names 256 digits to train on and 103 to validate."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) * 15.9).astype(np.uint8).repeat(2, 1).repeat(2, 2)
    file = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(
        file,
        x_train=images[:256],
        y_train=labels[:256],
        x_val=images[256:359],
        y_val=labels[256:359],
    )
    return "--data.source", f"npz:{file}"


def restored(workdir, *arguments):
    """The newest checkpoint's step and the digest of its state, with no value that is no number."""
    config = train.parse(["--workdir", str(workdir), *RECIPE, *arguments])
    run = with_program(prepare(config), model=GoogLeNet(tiny_arch()))
    with Checkpoints(workdir / "checkpoints", config.keep_latest) as checkpoints:
        step = checkpoints.latest
        assert step is not None
        state = checkpoints.restore(step, run.program.abstract_state())
    assert int(state.step) == step
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    return step, digest(state)


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
    return {line["step"]: line["train/loss"] for line in metrics(workdir) if "train/loss" in line}


def without_newest(workdir, other):
    """A copy of a run as it was when its older checkpoint was the newest."""
    shutil.copytree(workdir, other)
    shutil.rmtree(other / "checkpoints" / str(newest_step(other / "checkpoints")))
    return other


SHAPES = {"1x8": (1, 8), "2x4": (2, 4)}


@pytest.fixture(scope="module")
def finished(folder, data):
    """The same run of six steps on one process of eight devices, and on two of four."""
    for name, (processes, devices) in SHAPES.items():
        run = start(folder / name, *SHORT, *data, processes=processes, devices=devices)
        codes = run.wait()
        assert codes == [0] * processes, run.text()
        for host in range(1, processes):
            assert run.lines(host) == []  # only the first one speaks
    return folder


def assert_same_run(workdir, other):
    ours, theirs = losses(workdir), losses(other)
    assert list(ours) == list(theirs) == [1, 2, 3, 4, 5, 6]
    for step, loss in ours.items():
        assert loss == pytest.approx(theirs[step], abs=1e-6, rel=1e-6)
    ours, theirs = metrics(workdir)[-1], metrics(other)[-1]
    assert ours["val/count"] == theirs["val/count"] == 103
    assert ours["val/top1"] == theirs["val/top1"]


def test_two_processes_of_four_devices_train_as_one_process_of_eight(finished):
    assert_same_run(finished / "1x8", finished / "2x4")
    starts = json.loads((finished / "2x4/run.json").read_text())["starts"]
    assert [(each["processes"], len(each["devices"])) for each in starts] == [(2, 8)]


def test_host_0_compiles_nothing_again_on_another_port(finished, data):
    programs = {file.name for file in (finished.parent / "xla").iterdir()}
    run = start(finished / "again", *SHORT, *data, processes=2, devices=4)
    assert run.wait() == [0, 0], run.text()
    assert {file.name for file in (finished.parent / "xla").iterdir()} == programs


@pytest.mark.parametrize(("saved_by", "restored_by"), [("1x8", "2x4"), ("2x4", "1x8")])
def test_a_checkpoint_of_either_shape_goes_on_in_the_other(finished, data, saved_by, restored_by):
    workdir = without_newest(finished / saved_by, finished / f"{saved_by} to {restored_by}")
    processes, devices = SHAPES[restored_by]
    run = start(workdir, *SHORT, *data, processes=processes, devices=devices)
    assert run.wait() == [0] * processes, run.text()
    assert "resuming after step 3" in run.text()
    assert_same_run(workdir, finished / restored_by)


@pytest.mark.long
def test_evaluation_counts_103_examples_alike_at_any_batch_on_any_shape(folder, data):
    found = {}
    for devices in (1, 8):
        mesh = data_mesh(jax.devices()[:devices])
        found |= {(f"1x{devices}", size): sums for size, sums in counts([*data], mesh).items()}
    run = start(
        folder / "evaluation",
        *data,
        processes=2,
        devices=2,
        module="tests.training.host_evaluation",
    )
    assert run.wait() == [0, 0], run.text()
    lines = [line for line in run.text().splitlines() if line.startswith("{")]
    found |= {("2x2", size): sums for size, sums in json.loads(lines[-1]).items()}
    assert len(found) == 9
    assert {sums["count"] for sums in found.values()} == {103}
    assert len({(sums["top1"], sums["top5"]) for sums in found.values()}) == 1


@pytest.mark.parametrize(
    ("of_host", "told", "by_others"),
    [
        (
            ("--optim.learning-rate", "0.02"),
            "host 1 differs: optim.learning_rate is 0.02 there, 0.01 on host 0; start every host",
            "host 1 differs: optim.learning_rate is 0.02 there, 0.01 on host 0; start every host",
        ),
        (("--data.source", "npz:nowhere.npz"), "nowhere.npz", "host 1 stopped: "),
        (
            ("--workdir", "{elsewhere}"),
            "is not the folder that host 0 sees",
            "host 1 stopped: the workdir ",
        ),
    ],
    ids=["config", "data", "workdir"],
)
def test_what_differs_between_hosts_ends_all_of_them_in_one_sentence(
    folder, data, tmp_path, of_host, told, by_others
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    own = [each.format(elsewhere=elsewhere) for each in of_host]
    workdir = folder / f"differing {of_host[0]}"
    run = start(workdir, *SHORT, *data, processes=2, devices=1, of_host=[(), own])
    assert run.wait() == [2, 2], run.text(0) + run.text(1)
    for host, sentence in enumerate((by_others, told)):
        errors = run.lines(host)
        assert len(errors) == 1
        assert errors[0].startswith("train.py: error: ")
        assert sentence in errors[0]
    assert not (workdir / "checkpoints").exists()


def test_a_process_whose_others_do_not_come_ends_in_one_sentence(folder, data):
    # The first coordinates, and must not be gone while the other still waits.
    waits = ("20", "10")
    of_host = [
        ("--process-id", str(number), "--num-processes", "3", "--start-timeout", seconds)
        for number, seconds in enumerate(waits)
    ]
    run = start(folder / "waiting", *data, processes=2, devices=1, of_host=of_host)
    assert run.wait(120) == [3, 3]
    for host, seconds in enumerate(waits):
        (sentence,) = run.lines(host)
        assert sentence.startswith(f"error: process {host} of 3 at localhost:")
        assert f"waited {seconds} s for the others" in sentence
    name = platform.node()
    assert f"; started: 0 ({name}), 1 ({name}); not heard from: 2; " in run.text(0)
    assert "; process 0 answers at localhost:" in run.text(1)


def test_a_process_without_a_coordinator_says_where_nothing_answers(folder):
    _, command = joined([sys.executable, "train.py", "--start-timeout", "2"], 2)
    run = launch([command], folder / "absent", devices=1)
    assert run.wait(120) == [3]
    (sentence,) = run.lines()
    assert "error: process 1 of 2 at localhost:" in sentence
    assert "process 0 does not answer at localhost:" in sentence
    assert "Connection refused" in sentence


@pytest.mark.parametrize(
    ("fault", "host", "codes", "told"),
    [
        ("restore", 1, ([2], [2]), "error: host 1 stopped: no such file"),
        ("rename", 0, ([2], [2]), "error: checkpoint 3 is corrupt and cannot be renamed"),
        ("full", 1, ([1], [1]), "stopped: step 6 could not be saved (host 1 stopped: no room)"),
        # The first process also coordinates: JAX ends those that it leaves.
        ("write", 0, ([1], [1, 3, -signal.SIGABRT]), "stopped: step 6 could not be saved (Inp"),
    ],
)
def test_what_one_host_meets_alone_in_a_checkpoint_ends_all_of_them_soon(
    finished, data, monkeypatch, fault, host, codes, told
):
    workdir = without_newest(finished / "2x4", finished / f"fault {fault}")
    if fault == "rename":
        (workdir / "checkpoints" / "3" / "digests" / "digests.json").unlink()
    monkeypatch.setenv("HOST_FAULT", f"{fault} {host}")
    options = {"processes": 2, "devices": 4, "module": "tests.training.host_faults"}
    run = start(workdir, *SHORT, *data, **options)
    ended = run.wait(180)  # and not after JAX's barriers of 20 minutes
    assert ended[0] in codes[0], run.text(0) + run.text(1)
    assert ended[1] in codes[1], run.text(0) + run.text(1)
    assert told in run.text(0)


def encoded_digits(data, file, damaged):
    """The digits as PNG files in one array a split, one training image cut short."""
    with np.load(data[1].removeprefix("npz:")) as arrays:
        for split in ("train", "val"):
            files = [io.BytesIO() for _ in arrays[f"x_{split}"]]
            for each, pixels in zip(files, arrays[f"x_{split}"], strict=True):
                Image.fromarray(pixels).save(each, "png")
            images = [each.getvalue() for each in files]
            if split == "train":
                images[damaged] = images[damaged][:40]
            np.savez(
                f"{file}_{split}.npz",
                jpeg=np.frombuffer(b"".join(images), np.uint8),
                offsets=np.cumsum([0, *map(len, images)]),
                labels=arrays[f"y_{split}"],
            )
    return "--data.source", f"npz:{file}_{{split}}.npz"


@pytest.mark.long
def test_a_damaged_image_of_one_host_stops_all_of_them_after_the_same_step(folder, data, tmp_path):
    # the 13th image of the fourth step: the second half of a batch is the second host's
    damaged = encoded_digits(data, tmp_path / "encoded", int(_order(256, 0, range(60, 61))[0]))
    workdir = folder / "damaged"
    run = start(workdir, *SHORT, *damaged, "--data.bad-limit", "0", processes=2, devices=2)
    assert run.wait() == [2, 2], run.text(0) + run.text(1)
    assert "train.py: error: host 1 stopped: image " in run.text(0)
    assert "mend it, take it out of the data" in run.text(1)
    assert newest_step(workdir / "checkpoints") == 3


@pytest.fixture(scope="module")
def preempted(folder, data):
    """A run of which the second process got SIGTERM: (workdir, codes, texts, seconds)."""
    workdir = folder / "preempted"
    run = start(workdir, *ENDLESS, *data, processes=2, devices=2)
    run.wait_for_step(4)
    sent = time.monotonic()
    run.processes[1].send_signal(signal.SIGTERM)
    codes = run.wait(60)
    return workdir, codes, (run.text(0), run.text(1)), time.monotonic() - sent


def test_sigterm_to_one_of_two_makes_both_save_the_same_step_within_10_s(preempted, data):
    workdir, codes, texts, seconds = preempted
    print(f"SIGTERM to the exit of both: {seconds:.1f} s")
    assert codes == [143, 143], texts
    assert seconds < 10 * load()
    step = newest_step(workdir / "checkpoints")
    received = f"SIGTERM on host 1 ({platform.node()})"
    assert f"stopped by {received}; step {step} is saved" in texts[0]
    assert f"SIGTERM received by host 1 ({platform.node()}): saving" in texts[1]
    for host in (0, 1):
        log = (workdir / "logs" / f"host-{host}.log").read_text().splitlines()
        assert f"host {host} of 2 ({platform.node()}), process " in log[0]
        assert any(line.endswith(f"Z stopping and saving: {received}") for line in log)
        assert log[-1].endswith(f"Z exit code 143: stopped by {received}; step {step} is saved")
    assert restored(workdir, *ENDLESS, *data)[0] == step


def going_on(workdir, data):
    """The run over two processes again, once it has trained and saved further."""
    before = newest_step(workdir / "checkpoints")
    run = start(workdir, *ENDLESS, *data, processes=2, devices=2)
    run.wait_for_step(before + 1)
    assert f"resuming after step {before} " in run.text()
    return run


@pytest.mark.long
def test_a_second_signal_ends_a_host_at_once_and_the_other_notices(preempted, data):
    run = going_on(preempted[0], data)
    run.processes[1].send_signal(signal.SIGTERM)
    run.wait_for("a second signal exits at once", host=1)
    sent = time.monotonic()
    run.processes[1].send_signal(signal.SIGTERM)
    assert run.processes[1].wait(5) in (-signal.SIGTERM, 143)
    print(f"second SIGTERM to exit: {time.monotonic() - sent:.1f} s")
    code = run.wait(60)[0]
    assert code != 0


@pytest.mark.parametrize(
    ("number", "host"),
    [
        ("SIGKILL", 1),
        ("SIGKILL", 0),
        pytest.param("SIGSTOP", 1, marks=pytest.mark.long),
        pytest.param("SIGSTOP", 0, marks=pytest.mark.long),
    ],
)
def test_a_killed_or_stopped_process_ends_the_other_within_35_s(preempted, data, number, host):
    run = going_on(preempted[0], data)
    sent = time.monotonic()
    run.processes[host].send_signal(signal.Signals[number])
    code = run.processes[1 - host].wait(120)
    seconds = time.monotonic() - sent
    print(f"{number} of process {host} to the exit of the other, with {code}: {seconds:.1f} s")
    run.end()
    # 1 where it was saving, and its save failed for want of the other.
    assert code in (1, 3, -signal.SIGABRT), run.text(1 - host)
    assert seconds < 35 * load()
    text = run.text(1 - host)
    # Whoever notices first: this project, JAX, Gloo in the middle of a collective, or a save.
    noticed = (
        *("lost contact with the others", "another task died", "collective mismatch"),
        "could not be saved",
    )
    assert any(words in text for words in noticed), text
    restored(preempted[0], *ENDLESS, *data)


@pytest.mark.long
def test_supervised_hosts_start_again_when_one_is_killed_and_stop_when_one_is_told(folder, data):
    workdir = folder / "supervised"
    supervised = ("--supervise", "--restart-delay", "0.1")
    run = start(workdir, *ENDLESS, *data, *supervised, processes=2, devices=2)
    run.wait_for_step(4)
    (supervised_run,) = psutil.Process(run.processes[1].pid).children()
    supervised_run.kill()
    ended = "train.py: supervisor: the run exited with code"
    run.wait_for(f"{ended} 137 (SIGKILL); newest checkpoint: ", host=1)
    run.wait_for(ended, host=0)
    run.wait_for("resuming after step")
    run.wait_for_step(newest_step(workdir / "checkpoints") + 1)
    run.processes[0].send_signal(signal.SIGTERM)
    assert run.wait(60) == [143, 143], run.text()
    first, second = json.loads((workdir / "run.json").read_text())["starts"]
    assert first["restart"] is None
    assert second["restart"]["number"] == 1
    assert second["restart"]["step"] == second["step"] >= 4
    assert "another host" in second["restart"]["after"]  # exit code 3 or 134
    assert f"; step {newest_step(workdir / 'checkpoints')} is saved in " in run.text()


CHAIN = ("--numerics", "canonical", "--epochs", "1", "--save-every-steps", "2")


@pytest.mark.long
@pytest.mark.skipif(
    "numerics" not in {field.name for field in dataclasses.fields(Config)},
    reason="no canonical numerics",
)
def test_a_canonical_run_ends_with_the_same_bits_over_any_chain_of_shapes(folder, data):
    whole = folder / "whole"
    run = start(whole, *CHAIN, *data, devices=1)
    assert run.wait() == [0], run.text()
    workdir = folder / "chain"
    for processes, devices in ((1, 8), (2, 2), (1, 2)):
        before = newest_step(workdir / "checkpoints")
        run = start(workdir, *CHAIN, *data, processes=processes, devices=devices)
        run.wait_for_step(before + 1)
        run.end()
        assert before < newest_step(workdir / "checkpoints") < 16
    run = start(workdir, *CHAIN, *data, devices=1)
    assert run.wait() == [0], run.text()
    assert restored(workdir, *CHAIN, *data) == restored(whole, *CHAIN, *data)
