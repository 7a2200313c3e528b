"""Faults injected by the dozen; `benchmarks/faults.py` does it by the thousand."""

import pytest

from benchmarks.faults import corrupt, kill


@pytest.mark.slow
def test_100_damaged_checkpoints_never_give_wrong_data(tmp_path):
    outcomes = corrupt(100, tmp_path)
    assert sum(outcomes.values()) == 100
    assert min(outcomes["newest"], outcomes["older"], outcomes["stopped"]) > 0


@pytest.mark.slow
def test_two_processes_never_restore_wrong_data_nor_different_steps(tmp_path):
    outcomes = corrupt(100, tmp_path, seed=1, processes=2)
    assert sum(outcomes.values()) == 100
    assert min(outcomes["newest"], outcomes["older"], outcomes["stopped"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("times", [5, pytest.param(20, marks=pytest.mark.long)])
def test_kills_at_random_moments_end_with_the_bits_of_the_uninterrupted_run(times, tmp_path):
    """Saves are nearly always under way, and epochs end between the kills."""
    assert kill(times, tmp_path)["kills"] == times


@pytest.mark.slow
def test_100_damaged_checkpoints_in_a_bucket_never_give_wrong_data(tmp_path, bucket):
    outcomes = corrupt(100, tmp_path, bucket=bucket)
    assert sum(outcomes.values()) == 100
    assert min(outcomes["newest"], outcomes["older"], outcomes["stopped"]) > 0


@pytest.mark.slow
@pytest.mark.long
def test_a_run_in_a_bucket_killed_20_times_ends_with_the_bits_of_one_on_a_disk(tmp_path, bucket):
    """Every second kill is in the middle of a save."""
    assert kill(20, tmp_path, bucket=bucket)["kills"] == 20
