"""Time programs in turns, so that other load on the machine affects all alike; take medians."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from worker import timed

from gnet_jax.training.sharding import cpu_features

HERE = Path(__file__).parent
VECTORS = ("avx512_bf16", "avx512f", "avx2", "sve", "asimd")  # vector instructions, best first
SETTLING = 0.05  # seconds for the threads of the previous timer to go idle

Timer = Callable[[int], dict[str, float]]  # from a number of calls to seconds per call, see `timed`


class Peer:
    """A worker script in another interpreter. `facts`: what it reported about itself."""

    def __init__(self, python: str, script: str, setup: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [python, str(HERE / script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts = self._ask(setup)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the worker exited with {self._process.wait()}; its output is above")
        return json.loads(line)

    def timer(self, case: str) -> Timer:
        """Returns a timer of the worker's case with this name."""
        return lambda calls: self._ask({"case": case, "calls": calls})

    def close(self) -> None:
        """Stop the worker."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def timer(function: Callable[[], object]) -> Timer:
    """Returns a timer of a function of this process."""
    return lambda calls: timed(function, calls)


def in_turns(
    timers: dict[str, Timer], repeats: int, calls: Callable[[str], int] = lambda _: 1
) -> dict[str, dict[str, float]]:
    """Returns median `wall` and `cpu` seconds per call of each timer, after an untimed round."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in timers}
    for repeat in range(repeats + 1):
        for name, run in timers.items():
            time.sleep(SETTLING)
            seconds = run(1 if repeat == 0 else calls(name))
            if repeat:
                found[name].append(seconds)
        print(f"\rround {repeat} of {repeats}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {
        name: {kind: statistics.median(each[kind] for each in rows) for kind in ("wall", "cpu")}
        for name, rows in found.items()
    }


def machine() -> dict[str, Any]:
    """Returns the processor and its vector instructions, the cores available to this process, the
    load and Python's version.
    """
    names = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "processor": names[0].split(":")[1].strip() if names else platform.processor(),
        "vectors": next((name for name in VECTORS if name in cpu_features()), "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
    }


def show(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(str(cell) for cell in row) + " |")


def keep(path: Path | None, result: dict[str, Any]) -> None:
    """Write `result` as JSON if `path` is given."""
    if path is not None:
        path.write_text(json.dumps(result, indent=2) + "\n")
        print(f"saved to {path}")
