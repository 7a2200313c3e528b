"""A run that is started again after a crash; nothing here touches a device or imports JAX."""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnet_jax.config.command import Launch

ACKNOWLEDGE = "GNET_JAX_ACKNOWLEDGE"  # names the pipe in which the run tells of a signal
RESTART = "GNET_JAX_RESTART"  # why the run was started again, as JSON, for its record
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED = tuple(128 + number for number in SIGNALS)  # exit codes of a run that saved and stopped
CRASHES = 3  # in a row, without a newer checkpoint, after which a restart would change nothing
LONGEST_DELAY = 300.0
# A job's end signals all of its processes, the run too, for which a second one means: at once.
# So the run is asked only if it has not heard by itself within this time.
GRACE_SECONDS = 0.5


class Supervisor:
    """Runs a command until it is done, and starts it again when it crashes.

    Args:
        command: to run; the same for every start.
        checkpoints: the folder in which a step that the run has saved is named by its number.
        launch: how often, and after what.
        prog: what the supervisor's messages begin with.
    """

    def __init__(
        self, command: Sequence[str], checkpoints: Path, launch: Launch, prog: str
    ) -> None:
        self._command, self._checkpoints, self._launch = list(command), checkpoints, launch
        self._prog = prog
        self._child: subprocess.Popen[bytes] | None = None
        self._asked = 0  # signals that came to this process
        self._heard, self._tell = os.pipe()

    def run(self) -> int:
        """The exit code of the last start."""
        old = {
            number: signal.signal(number, self._pass_on)
            for number in SIGNALS
            # under nohup it stays ignored, here and in the run
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        }
        try:
            return self._run()
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            os.close(self._heard)
            os.close(self._tell)

    def _run(self) -> int:
        number, crashes, delay, why = 0, 0, self._launch.restart_delay, None
        while True:
            before = newest_step(self._checkpoints)
            code = self._start(why)
            after = newest_step(self._checkpoints)
            preempted = code in STOPPED and self._launch.supervise_preempted
            if code in (0, 2) or self._asked or (code in STOPPED and not preempted):
                return code
            if after != before:
                crashes, delay = 0, self._launch.restart_delay
            crashes += not preempted
            what = f"{explained(code)}; newest checkpoint: {after or 'none'}"
            if crashes == CRASHES:
                where = f"after step {after}" if after else "before the first checkpoint"
                self._say(f"{what}. Crashed {CRASHES} times in a row {where}; giving up")
                return code
            number += 1
            self._say(f"{what}. Starting again in {delay:g} s (restart {number})")
            if self._wait(delay):
                return code
            delay = min(2 * delay, LONGEST_DELAY)
            why = {"number": number, "after": explained(code), "step": after}

    def _start(self, why: dict[str, Any] | None) -> int:
        while self._has_heard(0):  # what an earlier run has told counts no longer
            os.read(self._heard, 1)
        environment = os.environ | {ACKNOWLEDGE: str(self._tell)}
        if why is not None:
            environment[RESTART] = json.dumps(why)
        # A session of its own: a terminal's Ctrl-C comes to this process alone, which passes it on.
        with subprocess.Popen(
            self._command, env=environment, pass_fds=(self._tell,), start_new_session=True
        ) as child:
            self._child = child
            if self._asked:
                child.send_signal(signal.SIGTERM)
            code = child.wait()
            self._child = None
        return 128 - code if code < 0 else code

    def _pass_on(self, number: int, _frame: object) -> None:
        self._asked += 1
        child = self._child
        if child is None:
            return
        if self._asked == 1 and self._has_heard(GRACE_SECONDS):
            return
        child.send_signal(number)

    def _has_heard(self, seconds: float) -> bool:
        """Whether the run has told, within this time, that a signal came to it."""
        return bool(select.select([self._heard], [], [], seconds)[0])

    def _wait(self, seconds: float) -> bool:
        """Wait before a restart; whether a signal says that there shall be none."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._asked:
            time.sleep(0.1)
        return bool(self._asked)

    def _say(self, text: str) -> None:
        print(f"{self._prog}: supervisor: {text}", file=sys.stderr, flush=True)


def end_with_supervisor() -> None:
    """Let the kernel send this process SIGTERM when its supervisor dies, were it by SIGKILL.

    Without one it would train on, hold its devices, and keep the workdir from the next start.
    """
    if ACKNOWLEDGE in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def newest_step(checkpoints: Path) -> int:
    """The newest step that is saved in the folder; 0 where there is none."""
    names = [entry.name for entry in checkpoints.iterdir()] if checkpoints.is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def explained(code: int) -> str:
    """An exit code in words."""
    if code == 3:
        return "the run ended with exit code 3, as it lost another host"
    if code == 128 + signal.SIGABRT:
        return f"the run ended with exit code {code}: JAX ends it so when another host is gone"
    if 128 < code < 128 + signal.NSIG:
        name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else code - 128
        return f"the run ended with exit code {code} ({name})"
    return f"the run ended with exit code {code}"
