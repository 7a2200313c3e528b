"""What a run's time went into, over all of its starts. The share that trained is its goodput."""

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
    """The seconds of this start, by kind; what no other kind claims is training.

    Devices work while the host waits for data or saves, so only the time that these hold up the
    loop is counted.
    """

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._spent = dict.fromkeys(KINDS, 0.0)
        self._saves: dict[int, float] = {}
        self.committed = 0  # the newest checkpoint that this start has saved

    @contextlib.contextmanager
    def spent(self, kind: str) -> Iterator[None]:
        """Count the time inside as `kind`."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self._spent[kind] += time.perf_counter() - before

    def saved(self, step: int) -> None:
        """Record that the save of `step` starts now."""
        self._saves[step] = time.perf_counter() - self._began

    def record(self, step: int) -> dict[str, Any]:
        """Returns this start's entry in `run.json`; it has reached `step`."""
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
    """Returns seconds by kind over all starts of a run, and `LOST`.

    Lost is the time after the checkpoint from which a later start resumed. The time between two
    starts is not counted.

    Args:
        starts: as in `run.json`: `step`, and what `Stopwatch.record` returned, if it got so far.
    """
    sums = dict.fromkeys((*KINDS, LOST), 0.0)
    for number, start in enumerate(starts):
        if "seconds" not in start:
            continue
        # Another version may have counted other kinds.
        seconds = {kind: start["seconds"].get(kind, 0.0) for kind in KINDS}
        later = [each["step"] for each in starts[number + 1 :]]
        if later:
            saves = start["seconds_at_save"].items()
            kept = max((at for step, at in saves if int(step) <= min(later)), default=0.0)
            lost = sum(seconds.values()) - kept
            for kind in KINDS:  # training first, which most of it was
                taken = min(seconds[kind], lost)
                seconds[kind] -= taken
                lost -= taken
                sums[LOST] += taken
        for kind in KINDS:
            sums[kind] += seconds[kind]
    return sums


def goodput(seconds: Mapping[str, float]) -> float:
    """Returns the share of `total_seconds` that trained; NaN if no time was recorded."""
    total = sum(seconds.values())
    return seconds["training"] / total if total else float("nan")
