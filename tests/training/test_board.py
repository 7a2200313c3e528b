import errno
import struct

import pytest
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from gnet_jax.training.observe.console import Board


def events(folder):
    """Of every event file, the oldest first: its (purge step, steps with a point)."""
    found = []
    for file in sorted(folder.iterdir(), key=lambda file: file.name.rpartition(".")[2]):
        content, starts, steps = file.read_bytes(), [], []
        while content:  # length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.HasField("session_log"):
                starts.append(event.step)
            elif event.HasField("summary"):
                steps.append(event.step)
        found.append((*starts, steps))
    return found


def test_the_file_after_a_full_disk_hides_no_point_of_the_one_before(tmp_path, monkeypatch):
    board = Board(tmp_path, purge_step=1)
    board.add(2, {"loss": 1.0})
    board.add(4, {"loss": 1.0})
    full, flush = [OSError(errno.ENOSPC, "No space left on device")], EventsWriter.flush

    def flush_or_fail(writer):
        if full:
            raise full.pop()
        flush(writer)

    monkeypatch.setattr(EventsWriter, "flush", flush_or_fail)
    with pytest.raises(OSError, match="No space"):
        board.add(6, {"loss": 1.0})
    board.add(8, {"loss": 1.0})
    board.close()
    (first, *_), (second, steps) = events(tmp_path)
    assert first == 1  # what an earlier process wrote after its last checkpoint
    assert second == 5
    assert steps == [8]


def test_where_nothing_could_be_written_the_next_file_hides_what_the_first_should_have(tmp_path):
    board = Board(tmp_path / "folder", purge_step=3)
    (tmp_path / "folder").touch()
    with pytest.raises(OSError, match="exists"):
        board.add(4, {"loss": 1.0})
    (tmp_path / "folder").unlink()
    board.add(6, {"loss": 1.0})
    board.close()
    assert events(tmp_path / "folder") == [(3, [6])]
