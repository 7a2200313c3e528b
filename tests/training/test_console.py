import errno
import json
import math
import os
import struct
import time

import numpy as np
import pytest
from rich.console import Console
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from gnet_jax.training.observe.console import Board, Meter, Reporter, SafeConsole, duration
from gnet_jax.training.workdir import MetricsFile, read_starts, write_json

VALUES = {
    "train/aux4a_loss": 2.0,
    "train/aux4a_top1": 0.25,
    "train/loss": 1.6,
    "train/main_loss": 1.0,
    "train/main_top1": 0.5,
    "train/learning_rate": 0.01,
    "perf/images_per_sec": 123.4,
}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (86_399, "23 h 59 min"),
        (86_400, "1 d 0 h"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations_are_in_readable_units(seconds, text):
    assert duration(seconds) == text


def test_piped_output_is_plain_lines_and_the_logs_hold_the_same(tmp_path, capsys):
    with Reporter(tmp_path, start_step=0, total_steps=90) as reporter:
        reporter.training(10, VALUES, eta=75, evaluations=False)
        val = {"val/top1": 0.5, "val/top5": 0.9, "val/loss": 1.2, "val/count": 360}
        reporter.evaluation(20, val, best=True)
        reporter.training(30, VALUES, eta=75, evaluations=True)
        del val["val/top5"]
        reporter.evaluation(40, val, best=False)
    lines = capsys.readouterr().out.splitlines()
    assert [part.strip() for part in lines[0].split("|")] == [
        "step 10/90",
        "training: loss 1.600",
        "main 1.000 50.0%",  # first, although its values come later
        "aux4a 2.000 25.0%",
        "lr 0.01",
        "123 images/s",
        "ETA 1 min 15 s without evaluations",
    ]
    assert lines[2].endswith("ETA 1 min 15 s")
    for part in ("step 20/90", "top-1 50.00%", "top-5 90.00%", "loss 1.200", "360 images", "best"):
        assert part in lines[1]
    assert "top-5" not in lines[3]
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert 0 <= logged[0].pop("perf/goodput") <= 1
    assert logged[0] == {"step": 10} | VALUES
    assert logged[1]["val/count"] == 360
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/main_loss" in events.read_bytes()


def test_a_terminal_shows_one_line_that_the_next_text_replaces(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(SafeConsole, "is_terminal", True)
    with Reporter(tmp_path, start_step=0, total_steps=90) as reporter:
        reporter.training(10, VALUES, eta=75, evaluations=True)
        reporter.training(20, VALUES, eta=75, evaluations=True)
        shown = capsys.readouterr().out
        assert shown.index("step 10/90") < shown.index("step 20/90")
        reporter.say("hello")
    assert capsys.readouterr().out.endswith("\x1b[2Khello\n")  # the line is erased before
    assert [line["step"] for line in MetricsFile(tmp_path / "metrics.jsonl").read()] == [10, 20]


def test_texts_are_printed_as_they_are(capsys):
    text = f"[bold]runs/:car:/[/bold] {'long ' * 50}"
    SafeConsole().say(text)
    assert capsys.readouterr().out == text + "\n"


def test_a_process_that_is_not_the_first_prints_and_writes_nothing(tmp_path, capsys):
    with Reporter(tmp_path, start_step=0, total_steps=90, enabled=False) as reporter:
        reporter.say("hello")
        reporter.training(10, VALUES, eta=75, evaluations=True)
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_the_meter_averages_the_steps_since_the_last_reading():
    meter = Meter()
    meter.add({"loss": 1.0, "top1": 0.0})
    meter.add({"loss": 3.0, "top1": 1.0})
    began = time.perf_counter()
    assert meter.read()[0] == {"loss": 2.0, "top1": 0.5}
    meter.add({"loss": 5.0})
    with meter.paused():
        time.sleep(0.1)
    means, seconds = meter.read()
    assert means == {"loss": 5.0}
    assert seconds < time.perf_counter() - began - 0.09


def test_a_skipped_step_counts_for_the_time_alone():
    meter = Meter()
    began = time.perf_counter()
    for loss, skipped in ((1.0, 0.0), (math.nan, 1.0), (3.0, 0.0), (math.inf, 1.0)):
        meter.add({"loss": loss, "skipped": skipped})
    time.sleep(0.04)
    means, seconds = meter.read()
    assert means == {"loss": 2.0}
    assert 0.01 <= seconds <= (time.perf_counter() - began) / 4
    meter.add({"loss": math.nan, "skipped": 1.0})
    assert math.isnan(meter.read()[0]["loss"])


def test_lines_that_a_full_disk_kept_back_are_written_later_in_order(tmp_path, capsys, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")

    def refuse(*_):
        raise full

    with Reporter(tmp_path, start_step=0, total_steps=90) as reporter:
        with monkeypatch.context() as patch:
            patch.setattr(MetricsFile, "append", refuse)
            for step in (1, 2):
                reporter._log(step, {"loss": float(step)})
        reporter._log(3, {"loss": 3.0})
    assert [line["step"] for line in MetricsFile(tmp_path / "metrics.jsonl").read()] == [1, 2, 3]
    assert capsys.readouterr().out.count("No space left") == 2


def test_a_resumed_run_keeps_the_lines_up_to_its_step(tmp_path):
    with Reporter(tmp_path, start_step=0, total_steps=90) as reporter:
        for step in (1, 2, 3):
            reporter._log(step, {"loss": 0.0})
    with Reporter(tmp_path, start_step=2, total_steps=90) as reporter:
        reporter._log(3, {"loss": 1.0})
    lines = MetricsFile(tmp_path / "metrics.jsonl").read()
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.0), (2, 0.0), (3, 1.0)]
    assert [start for start, _ in events(tmp_path / "tensorboard")] == [1, 3]


def test_the_time_of_a_start_is_added_to_those_before(tmp_path):
    seconds = dict.fromkeys(("training", "saving"), 10.0)
    old = {"step": 0, "reached": 5, "seconds": seconds, "seconds_at_save": {"5": 20.0}}
    write_json(tmp_path / "run.json", {"starts": [old, {"step": 5, "host": "a"}]})
    reporter = Reporter(tmp_path, start_step=5, total_steps=90)
    total = reporter.account(7)
    starts = read_starts(tmp_path)
    assert (starts[0], starts[1]["reached"], starts[1]["host"]) == (old, 7, "a")
    assert starts[1]["total_steps"] == 90
    assert total["saving"] == 10.0
    assert total["training"] == pytest.approx(10 + starts[1]["seconds"]["training"])


def read_events(file):
    """Returns the events of a TensorBoard file."""
    content, found = file.read_bytes(), []
    while content:  # length, its checksum, the event, its checksum
        (length,) = struct.unpack("<Q", content[:8])
        found.append(event_pb2.Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def events(folder):
    """Returns (purge step, steps with a point) of every event file, the oldest first."""
    found = []
    for file in sorted(folder.iterdir(), key=lambda file: file.name.rpartition(".")[2]):
        read = read_events(file)
        starts = [event.step for event in read if event.HasField("session_log")]
        found.append((*starts, [event.step for event in read if event.HasField("summary")]))
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


def test_a_histogram_has_its_counts_edges_and_moments(tmp_path):
    board = Board(tmp_path, purge_step=1)
    counts, edges = np.array([3.0, 0.0, 1.0]), np.array([-1.0, 0.0, 1.0, 3.0])
    board.add(2, {}, {"gradients/conv1": (counts, edges)})
    board.close()
    (file,) = tmp_path.iterdir()
    (value,) = (value for event in read_events(file) for value in event.summary.value)
    histogram = value.histo
    assert (histogram.min, histogram.max, histogram.num) == (-1, 3, 4)
    assert histogram.sum == 3 * -0.5 + 1 * 2
    assert histogram.sum_squares == 3 * 0.25 + 1 * 4
    assert list(histogram.bucket) == [3, 0, 1]
    assert list(histogram.bucket_limit) == [0, 1, 3]


def test_points_are_on_disk_at_once_with_their_time_after_the_start_of_the_session(tmp_path):
    board = Board(tmp_path, purge_step=3)
    board.add(4, {"loss": 1.5, "top1": 0.5})
    (file,) = tmp_path.iterdir()
    found = [event for event in read_events(file) if not event.HasField("file_version")]
    board.close()
    assert [(event.step, event.HasField("session_log")) for event in found] == [
        (3, True), (4, False), (4, False),
    ]  # fmt: skip
    values = [(v.tag, v.simple_value) for event in found[1:] for v in event.summary.value]
    assert values == [("loss", 1.5), ("top1", 0.5)]
    assert all(abs(event.wall_time - time.time()) < 60 for event in found[1:])


def test_the_end_erases_the_live_line_and_closes_the_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(SafeConsole, "is_terminal", True)
    with Reporter(tmp_path, start_step=0, total_steps=90) as reporter:
        reporter.training(10, VALUES, eta=75, evaluations=True)
        assert reporter._console._shown is not None
        assert not reporter._console._shown.auto_refresh  # which would start a thread
        assert reporter._board._writer is not None
    assert capsys.readouterr().out.endswith("\x1b[2K")
    assert (reporter._console._shown, reporter._board._writer) == (None, None)


def test_output_that_fails_is_told_once_and_then_discarded(capfd, monkeypatch):
    failing = OSError(errno.ENOSPC, "No space left on device")

    def refuse(*_, **__):
        raise failing

    monkeypatch.setattr(Console, "print", refuse)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    console = SafeConsole()
    assert not console.quiet
    console.say("unheard")
    assert console.quiet
    assert capfd.readouterr().err.count("No space left on device") == 1


def test_records_that_a_full_disk_refuses_are_told(tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Reporter(tmp_path, start_step=0, total_steps=90) as reporter:
        monkeypatch.setattr("gnet_jax.training.observe.console.write_json", refuse)
        assert reporter.account(3)["compiling"] == 0
        monkeypatch.setattr(MetricsFile, "append", refuse)
        reporter.append(MetricsFile(tmp_path / "more.jsonl"), 7, {})
    first, second = capsys.readouterr().out.splitlines()
    assert "run.json" in first
    assert "step 7" in second
    assert "more.jsonl" in second


def test_a_start_without_a_record_begins_at_step_0(tmp_path):
    reporter = Reporter(tmp_path, start_step=0, total_steps=90)
    reporter.account(3)
    (start,) = read_starts(tmp_path)
    assert (start["step"], start["reached"], start["newest_checkpoint"]) == (0, 3, 0)
