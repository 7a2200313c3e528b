"""What a run's time went into, over all of its starts: the share that trained is its goodput."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

KINDS: tuple[str, ...] = (
    "training",
    "compiling",
    "waiting for data",
    "saving",
    "evaluating",
    "diagnosing",
    "starting",
)
LOST = "lost to restarts"
_KEPT_SAVES = 20


class Stopwatch:
    """The seconds of this start, by kind; what nothing else claims is training.

    Devices work while the host waits for data or saves, so those count only what they held up.
    """

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._spent = dict.fromkeys(KINDS, 0.0)
        self._saves: dict[int, float] = {}
        self.committed = 0  # the newest checkpoint that this start has brought to disk

    @contextlib.contextmanager
    def spent(self, kind: str) -> Iterator[None]:
        """Count the time within as `kind`."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self._spent[kind] += time.perf_counter() - before

    def saved(self, step: int) -> None:
        """Note that everything up to `step` is about to be safe."""
        self._saves[step] = time.perf_counter() - self._began

    def record(self, step: int) -> dict[str, Any]:
        """What `run.json` keeps of this start, which has reached `step`."""
        total = time.perf_counter() - self._began
        seconds = self._spent | {"training": total - sum(self._spent.values())}
        saves = sorted(self._saves.items())[-_KEPT_SAVES:]
        return {
            "reached": step,
            "newest_checkpoint": self.committed,
            "seconds": {kind: round(seconds[kind], 6) for kind in KINDS},
            "seconds_at_save": {str(step): round(at, 6) for step, at in saves},
        }


def total_seconds(starts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds by kind over all starts of a run, and `LOST`.

    Lost is the time after the checkpoint that a later start went on from: its steps are done
    again. What lies between the end of one start and the next is nobody's.

    Args:
        starts: as in `run.json`: `step`, and what `Stopwatch.record` gives where it got so far.
    """
    sums = dict.fromkeys((*KINDS, LOST), 0.0)
    for number, start in enumerate(starts):
        if "seconds" not in start:
            continue
        # A start of another version may have counted other kinds.
        seconds = dict.fromkeys(KINDS, 0.0) | dict(start["seconds"])
        seconds = {kind: seconds[kind] for kind in KINDS}
        total = sum(seconds.values())
        back = min((later["step"] for later in starts[number + 1 :]), default=start["reached"])
        if number + 1 < len(starts):
            saves = start["seconds_at_save"]
            safe = max((at for step, at in saves.items() if int(step) <= back), default=0.0)
            lost = total - safe
            for kind in KINDS:  # training first: it is what most of it was
                taken = min(seconds[kind], lost)
                seconds[kind] -= taken
                lost -= taken
                sums[LOST] += taken
        for kind in KINDS:
            sums[kind] += seconds[kind]
    return sums


def goodput(seconds: Mapping[str, float]) -> float:
    """The share of all the time, in `total_seconds`, that trained; NaN of no time at all."""
    total = sum(seconds.values())
    return seconds["training"] / total if total else float("nan")
