"""The log of each host: what a run prints, its warnings, its error and its closing line."""

import re
import threading
import warnings

import jax
import pytest

from gnet_jax.config import ConfigError
from gnet_jax.training.hosts import start as hosts
from gnet_jax.training.hosts.log import LOG, end_log, host_log
from gnet_jax.training.hosts.start import TrainingError
from gnet_jax.training.observe.console import Reporter


def messages(workdir, host=0):
    """The messages in a host's log; every line has its time."""
    lines = (workdir / "logs" / f"host-{host}.log").read_text("utf-8").splitlines()
    found = [re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (.*)", line) for line in lines]
    assert None not in found
    return [each[1] for each in found if each]


def test_what_is_printed_is_logged_and_starts_are_appended(tmp_path, capsys):
    for start in (1, 2):
        with host_log(tmp_path, lambda: 0):
            reporter = Reporter(tmp_path, start_step=0, total_steps=9)
            reporter.say(f"start {start}: [bold] café")
            end_log(0, 9)
    assert capsys.readouterr().out.splitlines()[0] == "start 1: [bold] café"
    found = messages(tmp_path)
    assert len(found) == 6
    assert found[0].startswith("host 0 of 1 (")
    assert found[1:3] == ["start 1: [bold] café", "exit code 0: step 9 is saved"]
    LOG.info("after the run")
    assert messages(tmp_path) == found


def test_another_host_prints_nothing_and_logs_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    with host_log(tmp_path, lambda: 0):
        reporter = Reporter(tmp_path, start_step=0, total_steps=9, enabled=False)
        reporter.say("resuming after step 4 of 9")
    assert capsys.readouterr().out == ""
    assert messages(tmp_path, host=3)[1:] == ["resuming after step 4 of 9"]


def test_a_warning_is_shown_and_logged(tmp_path):
    with pytest.warns(UserWarning, match="odd"), host_log(tmp_path, lambda: 0):
        warnings.warn("an odd value", stacklevel=1)
    assert "an odd value" in " ".join(messages(tmp_path))


@pytest.mark.parametrize(
    ("error", "newest", "logged"),
    [
        (ConfigError("a\nb"), 0, ["ConfigError: a", "b", "exit code 2: this start saved no step"]),
        (TrainingError("x"), 4, ["TrainingError: x", "exit code 1: step 4 is saved"]),
        (KeyboardInterrupt(), 4, ["KeyboardInterrupt: ", "exit code 130: step 4 is saved"]),
    ],
)
def test_the_log_ends_with_the_error_and_the_closing_line(tmp_path, error, newest, logged):
    with pytest.raises(type(error)), host_log(tmp_path, lambda: newest):
        raise error
    assert messages(tmp_path)[-len(logged) :] == logged


def test_an_error_of_one_host_that_exits_at_once_is_logged_first(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts.os, "_exit", lambda code: None)
    uploaded = []
    with host_log(tmp_path, lambda: 7):
        last = lambda: uploaded.extend(messages(tmp_path))  # noqa: E731
        hosts._exit("stopped: process 1 of 2 lost contact", 3, last)
    assert uploaded[1:] == ["stopped: process 1 of 2 lost contact", "exit code 3: step 7 is saved"]


def test_a_last_upload_that_hangs_does_not_keep_a_host_from_exiting(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts.os, "_exit", lambda code: None)
    monkeypatch.setattr(hosts, "LAST_SECONDS", 0.1)
    hang = threading.Event()
    hosts._exit("stopped", 3, hang.wait)
    hang.set()


def test_a_log_that_cannot_be_written_does_not_stop_the_run(tmp_path, new_disk, capsys):
    (tmp_path / "logs").write_text("a file where the folder should be")
    with host_log(tmp_path, lambda: 0):
        LOG.info("lost")
    disk = new_disk("64k")
    with host_log(disk, lambda: 0):
        LOG.info("x" * 100_000)
        LOG.info("lost")
    assert capsys.readouterr().err == ""
