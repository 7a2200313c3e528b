"""Trackers, with a fake one, and with Weights & Biases and Trackio, which write files offline."""

import importlib
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from gnet_jax.config import UserError
from gnet_jax.config.command import Launch, parse_command
from gnet_jax.training.observe import track as module
from gnet_jax.training.observe.console import Reporter
from gnet_jax.training.observe.track import Track, check_tracker
from tests.training.processes import start


class Fake:
    """A tracker that keeps what it gets, or raises an error in the method `broken`."""

    opened: list["Fake"]
    broken: str | None
    place = "nowhere"

    def __init__(self, run_id, workdir, config):
        self.run_id, self.config, self.rows, self.code = run_id, config, [], None
        self.opened.append(self)
        self._may("init")

    def log(self, step, values, pictures):
        self._may("log")
        drawn = {name: file.read_text() for name, file in pictures.items()}
        self.rows.append((step, dict(values), drawn))

    def close(self, exit_code):
        self._may("close")
        self.code = exit_code

    def _may(self, method):
        if method == self.broken:
            raise ConnectionError(f"no answer\nto {method}")


@pytest.fixture
def opened(monkeypatch):
    """The runs of a fake tracker, called wandb, in the order in which they were opened."""
    monkeypatch.setattr(Fake, "opened", [], raising=False)
    monkeypatch.setattr(Fake, "broken", None, raising=False)
    monkeypatch.setitem(module.TRACKERS, "wandb", Fake)
    return Fake.opened


def send(workdir, steps, *, killed=False):
    """A start that logs `steps`, each with a training and a validation metric."""
    track = Track("wandb", workdir, {"seed": 0}, print)
    for step in steps:
        track.log(step, {"train/loss": step / 10})
        track.log(step, {"val/top1": step / 100})
    if not killed:
        track.exit_code = 0
        track.__exit__()


def test_the_metrics_of_a_step_are_one_row_and_the_run_ends_with_the_exit_code(opened, tmp_path):
    send(tmp_path, [10, 20])
    (run,) = opened
    assert run.rows == [
        (10, {"train/loss": 1.0, "val/top1": 0.1}, {}),
        (20, {"train/loss": 2.0, "val/top1": 0.2}, {}),
    ]
    assert (run.config, run.code) == ({"seed": 0}, 0)


def test_a_step_whose_evaluation_a_signal_ends_is_sent_by_the_next_start(opened, tmp_path):
    with Track("wandb", tmp_path, {}, print) as track:
        track.log(10, {"train/loss": 1.0})
        track.log(20, {"train/loss": 2.0})
        track.exit_code = 128 + signal.SIGTERM
    send(tmp_path, [20])
    assert [row for run in opened for row in run.rows] == [
        (10, {"train/loss": 1.0}, {}),
        (20, {"train/loss": 2.0, "val/top1": 0.2}, {}),
    ]


def test_an_error_ends_the_run_with_exit_code_1(opened, tmp_path):
    with pytest.raises(KeyError), Track("wandb", tmp_path, {}, print):
        raise KeyError
    assert opened[0].code == 1


def test_a_resumed_run_has_the_same_id_and_sends_no_step_twice_and_leaves_none_out(
    opened, tmp_path
):
    send(tmp_path, [10, 20, 30, 40, 50], killed=True)
    send(tmp_path, [30, 40, 50, 60, 70], killed=True)  # resumes after step 20
    send(tmp_path, [80])  # after step 70
    assert len({run.run_id for run in opened}) == 1
    steps = [step for run in opened for step, _, _ in run.rows]
    # The row of a step is sent when the next one comes: 50 by the second start, 70 by none.
    assert steps == [10, 20, 30, 40, 50, 60, 80]


def reporter(workdir, start, track):
    return Reporter(workdir, start_step=start, total_steps=100, track=track)


def test_a_reporter_first_sends_what_earlier_starts_have_logged_but_not_sent(opened, tmp_path):
    """A start without a tracker, a start with one that is killed, and a start that finishes."""
    for after, steps, name in ((0, [10, 20], None), (20, [30, 40], "wandb"), (40, [50], "wandb")):
        track = Track(name, tmp_path, {}, print)
        with reporter(tmp_path, after, track) as own:
            for step in steps:
                own._log(step, {"train/loss": step / 10})
        if after == 40:
            track.__exit__()
    assert [[step for step, _, _ in run.rows] for run in opened] == [[10, 20, 30], [40, 50]]
    assert opened[0].rows[0] == (10, {"train/loss": 1.0}, {})


def test_pictures_belong_to_the_last_step_and_are_not_drawn_if_it_was_sent(opened, tmp_path):
    drawn = []

    def draw(file):
        drawn.append(file.name)
        file.write_text("a picture")

    for _ in range(2):
        with Track("wandb", tmp_path, {}, print) as track:
            track.log(10, {"train/loss": 1.0})
            track.picture("curves", draw)
    assert drawn == ["curves.png"]
    rows = [(10, {"train/loss": 1.0}, {"curves": "a picture"})]
    assert [run.rows for run in opened] == [rows, []]


@pytest.mark.parametrize("broken", ["init", "log", "close"])
def test_a_tracker_that_fails_is_left_out_after_one_warning(broken, opened, monkeypatch, tmp_path):
    monkeypatch.setattr(Fake, "broken", broken)
    said = []
    with Track("wandb", tmp_path, {}, said.append) as track:
        for step in (10, 20, 30):
            track.log(step, {"train/loss": 1.0})
            track.picture("curves", Path.touch)
    warnings = [line for line in said if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert f"wandb failed (ConnectionError: no answer to {broken})" in warnings[0]
    assert len(opened[0].rows) == (3 if broken == "close" else 0)


def test_a_full_disk_or_a_bad_record_only_costs_the_tracker(opened, tmp_path):
    (tmp_path / "track.json").write_text("{")
    said = []
    with Track("wandb", tmp_path, {}, said.append) as track:
        track.log(10, {"train/loss": 1.0})
    assert len(said) == 1
    assert "JSONDecodeError" in said[0]
    assert not opened


def test_without_a_tracker_nothing_is_written(tmp_path):
    with Track(None, tmp_path, {}, print) as track:
        track.log(10, {"train/loss": 1.0})
        track.picture("curves", Path.touch)
    assert not list(tmp_path.iterdir())


def test_the_tracker_is_no_part_of_the_config_so_a_resume_may_add_or_drop_it():
    command = parse_command(["digits", "--track", "wandb"], "train.py", Launch())
    assert command.options == Launch(track="wandb")
    assert command.config == parse_command(["digits"], "train.py", Launch()).config


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_package_is_an_error_with_the_command_that_installs_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"--track {name} .*pip install .*\[{name}\]"):
        check_tracker(name)
    check_tracker(None)


def run_python(code, *arguments, **environment):
    """Run `code` in another process, in which nobody is logged in to W&B."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=clean | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


TRAIN = """
import sys
from gnet_jax.cli.train import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_missing_login_is_one_sentence_before_the_workdir_exists(tmp_path):
    pytest.importorskip("wandb")
    options = ("digits", "--track", "wandb", "--workdir", tmp_path / "run")
    done = run_python(TRAIN, *options, HOME=str(tmp_path), NETRC=str(tmp_path / "netrc"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "wandb login" in line
    assert "WANDB_MODE=offline" in line
    assert not (tmp_path / "run").exists()


START = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from matplotlib.image import imsave
from gnet_jax.training.observe.track import Track, check_tracker

name, workdir, kill, *steps = sys.argv[1:]
check_tracker(name)
before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
with Track(name, Path(workdir), {"optim": {"power": 0.5}}, print) as track:
    for step in steps:
        track.log(int(step), {"train/loss": float(step)})
        track.log(int(step), {"val/top1": 0.5})
    if kill == "kill":
        time.sleep(4)  # W&B writes its file every second
        os.kill(os.getpid(), signal.SIGKILL)
    track.picture("curves", lambda file: imsave(file, np.eye(3)))
    track.exit_code = 0
assert before == [signal.getsignal(e) for e in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
"""


def wandb_records(file):
    """The records of an offline run, which are in LevelDB's log format (wandb has no reader)."""
    record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record.FromString(parts)
            parts = b""


def wandb_runs(workdir):
    """For each start: the run's id, its rows, and the exit code (None if it was killed)."""
    found = []
    for file in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
        ids, rows, code = set(), [], None
        for record in wandb_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                ids.add(record.run.run_id)
            elif kind == "exit":
                code = record.exit.exit_code
            elif kind == "history":
                items = ((i.key or ".".join(i.nested_key), i) for i in record.history.item)
                rows.append({key: json.loads(item.value_json) for key, item in items})
        found.append((ids, rows, code))
    return found


def test_wandb_offline_has_one_run_over_a_kill_and_a_resume_and_every_step_once(tmp_path):
    pytest.importorskip("wandb")
    workdir = tmp_path / "run"
    workdir.mkdir()
    offline = {"HOME": str(tmp_path), "WANDB_MODE": "offline"}
    killed = run_python(START, "wandb", workdir, "kill", 10, 20, 30, 40, 50, **offline)
    assert killed.returncode == -9
    done = run_python(START, "wandb", workdir, "no", 30, 40, 50, 60, **offline)  # after step 20
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (first, rows, code), (second, later, end) = wandb_runs(workdir)
    assert first == second == {json.loads((workdir / "track.json").read_text())["wandb"]["id"]}
    assert (code, end) == (None, 0)
    assert [row["_step"] for row in rows] == [10, 20, 30, 40]
    assert [row["_step"] for row in later] == [50, 60]
    assert [row["train/loss"] for row in rows + later] == [10, 20, 30, 40, 50, 60]
    assert later[-1]["curves._type"] == "image-file"


@pytest.fixture
def offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.mark.slow
def test_a_training_run_is_one_wandb_run_over_a_kill_and_a_resume(offline, tmp_path):
    options = ("--epochs", "0.5", "--save-every-steps", "7", "--track", "wandb")
    run = start(tmp_path / "a" / "run", *options, devices=1)
    run.wait_for_step(14)
    run.end()
    again = start(tmp_path / "a" / "run", *options, devices=1)
    assert again.wait(600) == [0]
    (first, rows, code), (second, later, end) = wandb_runs(run.workdir)
    assert first == second
    assert len(first) == 1
    assert (code, end) == (None, 0)
    steps = [row["_step"] for row in rows + later]
    assert steps == sorted(set(steps))
    assert steps[-1] == 45
    assert {"train/loss", "val/top1", "curves._type"} <= later[-1].keys()


@pytest.mark.slow
def test_a_signal_to_the_run_and_to_wandbs_own_process_saves_and_ends_as_without(offline, tmp_path):
    run = start(tmp_path / "a" / "run", "--epochs", "50", "--track", "wandb", devices=1)
    run.wait_for("step 10/")
    (process,) = run.processes
    for child in psutil.Process(process.pid).children():
        child.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert run.wait() == [143]
    assert "is saved in" in run.text()
    assert "Traceback" not in run.text()
    assert run.text().count("wandb failed") <= 1


def test_trackio_has_one_run_over_a_kill_and_a_resume_and_every_step_once(tmp_path):
    pytest.importorskip("trackio")
    workdir = tmp_path / "run"
    workdir.mkdir()
    local = {"HOME": str(tmp_path), "TRACKIO_DIR": str(tmp_path / "trackio")}
    killed = run_python(START, "trackio", workdir, "kill", 10, 20, 30, 40, 50, **local)
    assert killed.returncode == -9
    done = run_python(START, "trackio", workdir, "no", 30, 40, 50, 60, **local)
    assert done.returncode == 0, done.stderr
    code = """
import json
from trackio.sqlite_storage import SQLiteStorage
runs = SQLiteStorage.get_runs("gnet_jax")
print(json.dumps([SQLiteStorage.get_logs("gnet_jax", run) for run in runs]))
"""
    (rows,) = json.loads(run_python(code, **local).stdout)
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50, 60]
    assert [row["train/loss"] for row in rows] == [10, 20, 30, 40, 50, 60]
    assert rows[-1]["curves"]["_type"] == "trackio.image"
