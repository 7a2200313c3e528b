"""The supervisor, over commands that take no time."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import psutil
import pytest

from gnet_jax.config.command import Launch
from gnet_jax.training.hosts.supervise import ACKNOWLEDGE, Supervisor, newest_step
from gnet_jax.training.workdir import RESTART

ROOT = Path(__file__).parents[2]
# Ends with the next code of the list, after saving the step beside it; notes why it was started.
SCRIPT = """
import json, os, pathlib, sys
assert os.getsid(0) == os.getpid()  # Ctrl-C in the supervisor's terminal does not reach it
folder, plan = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
starts = folder / "starts"
done = starts.read_text().splitlines() if starts.exists() else []
starts.write_text("\\n".join([*done, os.environ.get("{restart}", "null")]))
code, step = plan[len(done)]
(folder / str(step)).mkdir(exist_ok=True)
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
""".replace("{restart}", RESTART)


def supervise(folder, plan, **launch):
    """(exit code, why each start was made) for a command that ends as `plan` says."""
    command = [sys.executable, "-S", "-c", SCRIPT, str(folder), json.dumps(plan)]
    launch = Launch(supervise=True, **{"restart_delay": 0.0} | launch)
    code = Supervisor(command, folder, launch, "gnet train").run()
    return code, [json.loads(line) for line in (folder / "starts").read_text().splitlines()]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_a_run_is_told_to_stop_when_its_supervisor_is_killed(tmp_path):
    child = (
        "import os, pathlib, signal, sys, time\n"
        "from gnet_jax.training.hosts.supervise import end_with_supervisor\n"
        "end_with_supervisor()\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit((folder / 'stopped').touch()))\n"
        "(folder / 'pid').write_text(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    parent = (
        "import pathlib, sys\n"
        "from gnet_jax.config.command import Launch\n"
        "from gnet_jax.training.hosts.supervise import Supervisor\n"
        f"command = [sys.executable, '-c', {child!r}, sys.argv[1]]\n"
        "Supervisor(command, pathlib.Path(sys.argv[1]), Launch(supervise=True), 'train.py').run()\n"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", parent, str(tmp_path)], cwd=ROOT)
    wait_until((tmp_path / "pid").exists)
    supervisor.kill()
    supervisor.wait()
    wait_until((tmp_path / "stopped").exists)


def wait_until(holds, seconds=60):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_crash_is_followed_by_a_restart_that_is_told_why(tmp_path, capfd):
    code, starts = supervise(tmp_path, [(1, 5), (-9, 7), (3, 8), (-6, 9), (0, 10)])
    assert code == 0
    assert starts[0] is None
    assert [(each["number"], each["step"]) for each in starts[1:]] == [
        (1, 5),
        (2, 7),
        (3, 8),
        (4, 9),
    ]
    assert "SIGKILL" in starts[2]["after"]
    assert "lost another host" in starts[3]["after"]
    assert "another host is gone" in starts[4]["after"]
    told = [line for line in capfd.readouterr().err.splitlines() if "supervisor:" in line]
    assert len(told) == 4
    for part in ("gnet train: ", "code 1", "newest checkpoint: 5", "Restart 1 in 0 s"):
        assert part in told[0]


@pytest.mark.parametrize(
    ("first", "plan", "delays"),
    [
        # doubled after a crash without a newer checkpoint, and reset by one
        (5, [(1, 6), (1, 6), (1, 7), (1, 7), (0, 8)], [5, 10, 5, 10]),
        (200, [(1, 6), (1, 6), (0, 7)], [200, 300]),  # at most five minutes
    ],
)
def test_the_delay_grows_until_there_is_a_newer_checkpoint(
    tmp_path, monkeypatch, first, plan, delays
):
    waited = []
    monkeypatch.setattr(Supervisor, "_sleep", lambda _, seconds: waited.append(seconds))
    assert supervise(tmp_path, plan, restart_delay=float(first))[0] == 0
    assert waited == delays


def test_three_crashes_after_the_same_step_end_it(tmp_path, capfd):
    code, starts = supervise(tmp_path, [(1, 5), (1, 6), (1, 6), (1, 6), (0, 7)])
    assert code == 1
    assert len(starts) == 4
    assert "3 times in a row after step 6" in capfd.readouterr().err


@pytest.mark.parametrize("code", [0, 2, 129, 130, 143])
def test_success_mistakes_and_signals_are_not_followed_by_a_restart(tmp_path, code, capfd):
    assert supervise(tmp_path, [(code, 5), (0, 6)]) == (code, [None])
    assert "supervisor:" not in capfd.readouterr().err


def test_a_preempted_run_is_started_again_where_that_was_asked_for(tmp_path):
    plan = [(143, 5), (143, 5), (143, 5), (143, 5), (0, 6)]
    code, starts = supervise(tmp_path, plan, supervise_preempted=True)
    assert (code, len(starts)) == (0, 5)


# Waits for signals as a run does; prints how many came.
WAITING = f"""
import os, pathlib, signal, sys, time
came = []
def asked(number, frame):
    came.append(number)
    os.write(int(os.environ["{ACKNOWLEDGE}"]), b".")
signal.signal(signal.SIGTERM, asked)
if len(sys.argv) > 2 and not pathlib.Path(sys.argv[2]).exists():
    pathlib.Path(sys.argv[2]).touch()
    asked(signal.SIGTERM, None)
    sys.exit(143)
pathlib.Path(sys.argv[1]).touch()
while not came:
    time.sleep(0.01)
time.sleep(0.4)
sys.exit(40 + len(came))
"""


@pytest.mark.parametrize("also_the_run", [False, True])
@pytest.mark.parametrize("preempted_before", [False, True])
def test_a_signal_comes_to_the_run_once_even_where_all_processes_get_it(
    tmp_path, also_the_run, preempted_before, monkeypatch
):
    # Long if the run hears by itself, however long that takes.
    grace = 20 if also_the_run else 0.1
    monkeypatch.setattr("gnet_jax.training.hosts.supervise.GRACE_SECONDS", grace)
    ready = tmp_path / "ready"
    command = [sys.executable, "-S", "-c", WAITING, str(ready)]
    command += [str(tmp_path / "preempted")] if preempted_before else []
    launch = Launch(supervise_preempted=True, restart_delay=0.0)
    supervisor = Supervisor(command, tmp_path, launch, "train.py")

    def signals():
        while not ready.exists():
            time.sleep(0.01)
        if also_the_run:
            (run,) = (each for each in psutil.Process().children() if str(ready) in each.cmdline())
            run.terminate()
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=signals)
    sender.start()
    code = supervisor.run()
    sender.join()
    assert code == 41  # one signal; and no restart, for a signal came to the supervisor itself
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_before_the_run_has_started_ends_it(tmp_path):
    command = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    supervisor = Supervisor(command, tmp_path, Launch(supervise=True), "train.py")
    supervisor._pass_on(signal.SIGTERM, None)
    began = time.monotonic()
    assert supervisor.run() == 143
    assert time.monotonic() < began + 50


def test_the_newest_step_is_the_largest_number_among_the_folders(tmp_path):
    assert newest_step(tmp_path / "none") == 0
    for name in ("9", "10", "11.orbax-checkpoint-tmp", "notes"):
        (tmp_path / name).mkdir()
    assert newest_step(tmp_path) == 10


def test_a_second_signal_is_passed_on_even_to_a_run_that_knows_of_the_first(tmp_path, monkeypatch):
    supervisor = Supervisor([], tmp_path, Launch(), "train.py")
    monkeypatch.setattr(supervisor, "_acknowledges", lambda seconds: seconds == 0.5)
    supervisor._child = mock.Mock()
    supervisor._pass_on(signal.SIGTERM, None)
    assert supervisor._child.mock_calls == []
    supervisor._pass_on(signal.SIGINT, None)
    assert supervisor._child.mock_calls == [mock.call.send_signal(signal.SIGINT)]


def test_the_wait_before_a_restart_ends_in_time_or_at_a_signal(tmp_path, monkeypatch):
    supervisor, slept = Supervisor([], tmp_path, Launch(), "train.py"), []
    monkeypatch.setattr(time, "monotonic", lambda: 100 + sum(slept))
    monkeypatch.setattr(time, "sleep", slept.append)
    supervisor._sleep(0.45)
    assert slept == [0.1] * 5
    supervisor._signals = 1
    supervisor._sleep(0.45)
    assert len(slept) == 5


def test_an_acknowledgement_is_what_the_run_writes_to_the_pipe(tmp_path):
    supervisor = Supervisor([], tmp_path, Launch(), "train.py")
    assert not supervisor._acknowledges(0)
    os.write(supervisor._acknowledge, b".")
    assert supervisor._acknowledges(0)
    os.read(supervisor._acknowledged, 1)
    assert not supervisor._acknowledges(0)
