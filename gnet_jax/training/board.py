"""TensorBoard's event files, written so that a full disk ends neither the writer nor the run."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import histogram_raw, scalar

_messages: Any = event_pb2  # its classes come into being on import, unseen by type checkers


class Board:
    """Scalars and histograms in the folder `folder`.

    tensorboardX's own `SummaryWriter` writes in a thread, which a full disk ends; its queue then
    blocks the run. Points of earlier event files from `purge_step` on are hidden; of this writer's
    own, where it has to begin another file, none that were written.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        self._folder = folder
        self._purge_step = purge_step
        self._writer: EventsWriter | None = None

    def add(
        self,
        step: int,
        values: Mapping[str, float],
        histograms: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> None:
        """Add one point to the curve of each value.

        Args:
            step: of the point.
            values: by name.
            histograms: (counts (N,), edges (N + 1,)) by name.

        Raises:
            OSError: if they cannot be written; the next call begins another file.
        """
        try:
            if self._writer is None:
                self._writer = self._begun()
            summaries = [scalar(name, value) for name, value in values.items()]
            summaries += [_histogram(name, *each) for name, each in (histograms or {}).items()]
            for summary in summaries:
                self._writer.write_event(
                    _messages.Event(step=step, wall_time=time.time(), summary=summary)
                )
            self._writer.flush()
            self._purge_step = step + 1
        except OSError:
            with contextlib.suppress(OSError):  # it tries once more what has just failed
                self.close()
            self._writer = None
            raise

    def _begun(self) -> EventsWriter:
        self._folder.mkdir(parents=True, exist_ok=True)
        writer = EventsWriter(str(self._folder / "events"), f".{time.time_ns()}")
        start = _messages.SessionLog(status=_messages.SessionLog.START)
        writer.write_event(_messages.Event(step=self._purge_step, session_log=start))
        return writer

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()


def _histogram(name: str, counts: np.ndarray, edges: np.ndarray) -> Any:
    middles = (edges[1:] + edges[:-1]) / 2
    return histogram_raw(
        name,
        min=float(edges[0]),
        max=float(edges[-1]),
        num=int(counts.sum()),
        sum=float(counts @ middles),
        sum_squares=float(counts @ middles**2),
        bucket_limits=edges[1:].tolist(),
        bucket_counts=counts.tolist(),
    )
