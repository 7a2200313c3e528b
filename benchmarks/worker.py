"""Time functions (cases) at a parent process's request; each message is one line of JSON.

A worker script calls `serve`. This module requires only the standard library. Between requests the
worker waits for input, so that other timers have the cores to themselves.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

Cases = dict[str, Callable[[], object]]


def timed(function: Callable[[], object], calls: int = 1) -> dict[str, float]:
    """Returns mean seconds per call: `wall`, and `cpu` summed over threads and child processes.

    The CPU time of a child process is added when it exits.
    """
    cpu, wall = _cpu_seconds(), time.perf_counter()
    for _ in range(calls):
        function()
    wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
    return {"wall": wall / calls, "cpu": cpu / calls}


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def serve(prepare: Callable[[dict[str, Any]], tuple[dict[str, Any], Cases]]) -> None:
    """Answer requests from the parent process until it closes the pipe.

    Args:
        prepare: maps the setup, which arrives first, to the facts to send back (versions, threads)
            and the cases that can be requested.
    """
    # Libraries print to stdout, so the answers use a stream of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: object) -> None:
        print(json.dumps(value), file=answers, flush=True)

    facts, cases = prepare(json.loads(sys.stdin.readline()))
    answer(facts | {"cases": list(cases)})
    for line in sys.stdin:
        request = json.loads(line)
        answer(timed(cases[request["case"]], request["calls"]))
