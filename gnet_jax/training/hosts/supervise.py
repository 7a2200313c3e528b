"""Restart a run after a crash (--supervise)."""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from gnet_jax.config import UserError
from gnet_jax.config.bucket import Place
from gnet_jax.config.command import Launch
from gnet_jax.training.checkpoints.storage import open_storage
from gnet_jax.training.hosts.start import SIGNALS, handle_stop_signals
from gnet_jax.training.workdir import ACKNOWLEDGE, RESTART

PR_SET_PDEATHSIG = 1  # from Linux's prctl.h
STOPPED = tuple(128 + number for number in SIGNALS)  # exit codes of a run that saved and stopped
CRASHES = 3  # give up after this many crashes in a row without a newer checkpoint
LONGEST_DELAY = 300.0
# A scheduler that ends a job signals all its processes, and a second signal kills a run. So the
# supervisor forwards its signal only if the run has not acknowledged one within this time.
GRACE_SECONDS = 0.5


class Supervisor:
    """Runs a command, and restarts it when it crashes. The supervisor itself uses no device."""

    def __init__(
        self, command: Sequence[str], checkpoints: Place, launch: Launch, prog: str
    ) -> None:
        self._command, self._checkpoints, self._launch = list(command), checkpoints, launch
        self._prog = prog  # the prefix of messages
        self._child: subprocess.Popen[bytes] | None = None
        self._signals = 0  # number of signals that this process received
        self._acknowledged, self._acknowledge = os.pipe()

    def run(self) -> int:
        """Run the command until no restart is needed, and return its last exit code."""
        number, crashes, delay, reason = 1, 0, self._launch.restart_delay, None
        with handle_stop_signals(self._pass_on):
            while True:
                before = newest_step(self._checkpoints)
                code = self._start(reason)
                after = newest_step(self._checkpoints)
                preempted = code in STOPPED and self._launch.supervise_preempted
                if code in (0, 2) or self._signals or (code in STOPPED and not preempted):
                    return code
                if after is not None and after != before:
                    crashes, delay = 0, self._launch.restart_delay
                crashes += not preempted
                newest = "unknown" if after is None else after or "none"
                ended = f"{describe_exit(code)}; newest checkpoint: {newest}"
                if crashes == CRASHES:
                    where = f"after step {after}" if after else "before the first checkpoint"
                    self._print(f"{ended}. Crashed {CRASHES} times in a row {where}; giving up")
                    return code
                self._print(f"{ended}. Restart {number} in {delay:g} s")
                self._sleep(delay)
                if self._signals:
                    return code
                delay = min(2 * delay, LONGEST_DELAY)
                reason = {"number": number, "after": describe_exit(code), "step": after}
                number += 1

    def _start(self, reason: dict[str, Any] | None) -> int:
        while self._acknowledges(0):  # discard the acknowledgement of an earlier start
            os.read(self._acknowledged, 1)
        environment = os.environ | {ACKNOWLEDGE: str(self._acknowledge)}
        if reason is not None:
            environment[RESTART] = json.dumps(reason)
        # In its own session, the run gets no Ctrl-C from the terminal; this process forwards it.
        with subprocess.Popen(
            self._command, env=environment, pass_fds=(self._acknowledge,), start_new_session=True
        ) as child:
            self._child = child
            if self._signals:
                child.send_signal(signal.SIGTERM)
            code = child.wait()
            self._child = None
        return 128 - code if code < 0 else code

    def _pass_on(self, number: int, _frame: object) -> None:
        self._signals += 1
        child = self._child
        if child is not None and (self._signals > 1 or not self._acknowledges(GRACE_SECONDS)):
            child.send_signal(number)

    def _acknowledges(self, seconds: float) -> bool:
        return bool(select.select([self._acknowledged], [], [], seconds)[0])

    def _sleep(self, seconds: float) -> None:
        """Wait before a restart; a signal ends the wait."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._signals:
            time.sleep(0.1)

    def _print(self, text: str) -> None:
        print(f"{self._prog}: supervisor: {text}", file=sys.stderr, flush=True)


def end_with_supervisor() -> None:
    """Make the kernel send this process SIGTERM when its supervisor dies, even by SIGKILL."""
    if ACKNOWLEDGE in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def newest_step(checkpoints: Place) -> int | None:
    """Returns the newest step saved in the folder, or 0; None if it cannot be listed now."""
    try:
        return max(open_storage(checkpoints).list_steps(), default=0)
    except UserError:
        return None


def describe_exit(code: int) -> str:
    """Returns a description of a run's exit code."""
    reasons = {128 + number: f" ({number.name})" for number in signal.Signals} | {
        3: " because it lost another host",
        128 + signal.SIGABRT: " (JAX aborts when another host is gone)",
    }
    return f"the run exited with code {code}{reasons.get(code, '')}"
