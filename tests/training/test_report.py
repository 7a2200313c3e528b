import json
import time

import pytest

from gnet_jax.training.observe.console import Meter, Reporter, SafeConsole, duration

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
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations_are_in_the_units_of_people(seconds, text):
    assert duration(seconds) == text


def test_piped_output_is_plain_lines_and_the_logs_hold_the_same(tmp_path, capsys):
    with Reporter(tmp_path, start_step=0, total_steps=90) as reporter:
        reporter.training(10, VALUES, eta=75, evaluations=False)
        val = {"val/top1": 0.5, "val/top5": 0.9, "val/loss": 1.2, "val/count": 360}
        reporter.evaluation(20, val, best=True)
        reporter.training(30, VALUES, eta=75, evaluations=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "step 10/90 | training: loss 1.600 | main 1.000 50.0% | aux4a 2.000 25.0% | lr 0.01 | "
        "123 images/s | ETA 1 min 15 s without evaluations"
    )
    assert lines[2].endswith("ETA 1 min 15 s")
    assert lines[1].startswith("step 20/90 | validation: top-1 50.00%, top-5 90.00%")
    assert lines[1].endswith("(360 images) | best so far")
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert 0 <= logged[0].pop("perf/goodput") <= 1
    assert logged[0] == {"step": 10} | VALUES
    assert logged[1]["val/count"] == 360
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/main_loss" in events.read_bytes()


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


def test_the_meter_begins_anew_after_each_reading():
    meter = Meter()
    meter.add({"loss": 1.0})
    meter.add({"loss": 3.0})
    began = time.perf_counter()
    assert meter.read()[0] == {"loss": 2.0}
    meter.add({"loss": 5.0})
    with meter.paused():
        time.sleep(0.1)
    means, seconds = meter.read()
    assert means == {"loss": 5.0}
    assert seconds < time.perf_counter() - began - 0.09
