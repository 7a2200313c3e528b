import math
import time

import pytest

from gnet_jax.training.observe.console import (
    KINDS,
    LOST,
    Stopwatch,
    goodput,
    goodput_line,
    total_seconds,
)


def start(step, reached, saves, **seconds):
    return {
        "step": step,
        "reached": reached,
        "seconds": dict.fromkeys(KINDS, 0.0) | seconds,
        "seconds_at_save": {str(step): at for step, at in saves.items()},
    }


def test_what_nothing_else_claims_is_training():
    watch = Stopwatch()
    with watch.spent("compiling"):
        time.sleep(0.02)
    watch.saved(3)
    time.sleep(0.02)
    record = watch.record(5)
    assert record["reached"] == 5
    assert record["seconds"]["compiling"] >= 0.02
    assert record["seconds"]["training"] >= 0.02
    assert 0.02 <= record["seconds_at_save"]["3"] <= sum(record["seconds"].values()) - 0.02


def test_time_after_the_checkpoint_that_a_start_went_on_from_is_lost():
    starts = [
        start(0, 90, {50: 40.0, 80: 70.0}, training=80.0, compiling=10.0),
        start(80, 100, {100: 30.0}, training=25.0, compiling=5.0),
    ]
    seconds = total_seconds(starts)
    assert seconds[LOST] == 20.0  # 90 seconds in all, of which 70 were saved
    assert seconds["training"] == 60.0 + 25.0
    assert seconds["compiling"] == 15.0
    assert goodput(seconds) == pytest.approx(85 / 120)


def test_a_start_that_saved_nothing_is_lost_whole_and_so_are_steps_before_a_fallback():
    starts = [
        start(0, 90, {50: 40.0, 80: 70.0}, training=90.0),
        start(80, 85, {}, training=1.0, compiling=9.0),
        start(50, 90, {90: 50.0}, training=50.0),  # step 80 was damaged
    ]
    seconds = total_seconds(starts)
    assert seconds[LOST] == 50.0 + 10.0
    assert seconds["training"] == 40.0 + 50.0
    assert seconds["compiling"] == 0.0


def test_parts_of_less_than_half_a_second_are_not_printed():
    parts = {"training": 190.0, "compiling": 9.5, "saving": 0.4, "starting": 0.5}
    line = goodput_line(total_seconds([start(0, 9, {9: 200.0}, **parts)]))
    assert line == "goodput 94.8%: training 3 min 10 s, compiling 10 s, starting 0 s"


def test_goodput_is_the_share_of_all_time_that_trained_the_lost_time_included():
    starts = [start(0, 20, {10: 10.0}, training=20.0), start(10, 20, {}, training=5.0, saving=5.0)]
    seconds = total_seconds(starts)
    assert (seconds["training"], seconds["saving"], seconds[LOST]) == (15.0, 5.0, 10.0)
    assert goodput(seconds) == 0.5
    assert math.isnan(goodput(total_seconds([])))


def test_the_newest_saves_are_recorded_with_the_time_at_which_they_began():
    watch = Stopwatch()
    for step in range(1, 31):
        watch.saved(step)
    watch.committed = 29
    record = watch.record(30)
    assert list(record["seconds_at_save"]) == [str(step) for step in range(11, 31)]
    assert record["newest_checkpoint"] == 29


def test_a_start_of_an_older_version_counts_for_nothing():
    assert sum(total_seconds([{"step": 0}]).values()) == 0
    later = start(0, 90, {90: 40.0}, training=40.0)
    assert total_seconds([{"step": 0}, later]) == total_seconds([later])


def test_a_start_that_counted_other_kinds_is_understood():
    old = start(0, 90, {90: 40.0}, training=40.0)
    del old["seconds"]["diagnosing"]
    old["seconds"]["restoring"] = 3.0
    assert total_seconds([old])["training"] == 40.0
