import io
import time

import pytest
from rich.console import Console

from gnet_jax.data import progress
from gnet_jax.data.progress import progress_line


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_thirty_seconds(capsys, clock):
    with progress_line("checking", "images", 10_000, 1000) as advance:
        clock[0] = 1029.9
        advance(500)
        assert capsys.readouterr().err == ""
        clock[0] = 1030.0
        advance()
        advance()
        line = "checking: 1,501 of 10,000 images, 16.7 images/s, 8.5 min left\n"
        assert capsys.readouterr().err == line
        clock[0] = 1059.9
        advance()
        assert capsys.readouterr().err == ""
        clock[0] = 1060.0
        advance(998)
        line = "checking: 2,501 of 10,000 images, 25.0 images/s, 5.0 min left\n"
        assert capsys.readouterr().err == line
    assert capsys.readouterr().err == ""


def test_nothing_is_printed_if_it_is_not_wanted(capsys, clock):
    with progress_line("checking", "images", 10, wanted=False) as advance:
        clock[0] = 1100.0
        advance()
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_bar_that_disappears(monkeypatch, capsys):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "Console", lambda stderr: console)
    with progress_line("writing train", "images", 10, 4) as advance:
        assert "4/10" in screen.getvalue()
        advance(3)
    shown = screen.getvalue()
    assert "writing train" in shown
    assert "7/10" in shown
    assert "images/s" in shown
    assert shown.endswith("\x1b[2K")  # the line is erased
    assert capsys.readouterr().err == ""


def test_the_rate_can_leave_out_the_first_items(capsys, clock):
    with progress_line("optimising", "steps", 100, warm_up=True) as advance:
        clock[0] = 1060.0  # the first step is compiled
        advance()
        assert capsys.readouterr().err == ""
        clock[0] = 1062.0
        advance()
        line = "optimising: 2 of 100 steps, 0.5 steps/s, 3.3 min left\n"
        assert capsys.readouterr().err == line
