import dataclasses
import errno
import fcntl
import json
import os
from unittest import mock

import pytest

from gnet_jax.config import Config, ConfigError
from gnet_jax.training.workdir import BusyError, MetricsFile, add_start, locked, open_workdir

PRINTS = {"train": "aa", "val": "bb"}


def test_a_workdir_accepts_its_own_run_again(tmp_path):
    config = Config(workdir=str(tmp_path / "deep" / "run"))
    workdir = open_workdir(config, PRINTS)
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["optim.learning_rate"] == 0.01
    assert saved["data.fingerprint.val"] == "bb"
    assert open_workdir(dataclasses.replace(config, log_every_steps=1), PRINTS) == workdir


def test_a_workdir_refuses_another_config_or_other_data(tmp_path):
    config = Config(workdir=str(tmp_path))
    open_workdir(config, PRINTS)
    with pytest.raises(
        ConfigError, match=r"another config \(batch_size: 32 there, 64 now; seed: 0"
    ):
        open_workdir(dataclasses.replace(config, seed=1, batch_size=64), PRINTS)
    with pytest.raises(ConfigError, match=r"the data have changed since .* \(train split"):
        open_workdir(config, PRINTS | {"train": "cc"})


def test_another_order_of_the_same_data_is_refused_in_a_sentence_of_its_own(tmp_path):
    config = Config(workdir=str(tmp_path))
    open_workdir(config, PRINTS | {"order": "cc"})
    with pytest.raises(ConfigError, match=r"another order .*order: cc there, dd now.*: this Grain"):
        open_workdir(config, PRINTS | {"order": "dd"})
    with pytest.raises(ConfigError, match=r"another config \(data.fingerprint.order: .*; seed: 0"):
        open_workdir(dataclasses.replace(config, seed=1), PRINTS | {"order": "dd"})


def test_classes_that_changed_are_named(tmp_path):
    config = Config(workdir=str(tmp_path))
    open_workdir(config, PRINTS | {"classes": ["1", "10", "2"]})
    open_workdir(config, PRINTS | {"classes": ["1", "10", "2"]})
    with pytest.raises(ConfigError, match=r"classes have changed .* number 1 was '10' and is '2'"):
        open_workdir(config, PRINTS | {"classes": ["1", "2", "10"], "train": "cc"})
    with pytest.raises(ConfigError, match=r"classes have changed .*gone: 2; new: 3, 4"):
        open_workdir(config, PRINTS | {"classes": ["1", "10", "3", "4"], "train": "cc"})


def test_a_workdir_that_did_not_record_its_classes_resumes_on_the_same_data(tmp_path):
    config, numbers = Config(workdir=str(tmp_path)), {"classes": ["1", "2", "10"]}
    open_workdir(config, PRINTS)
    with pytest.raises(ConfigError, match=r"train split: .*sorted as numbers and no longer as t"):
        open_workdir(config, PRINTS | numbers | {"train": "cc"})
    open_workdir(config, PRINTS | numbers)


def test_a_workdir_that_cannot_be_written_or_read_is_named(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match=r"cannot write to the workdir .*file/run: Not"):
        open_workdir(Config(workdir=str(file / "run")), PRINTS)
    (tmp_path / "config.json").write_text('{"seed"')
    with pytest.raises(ConfigError, match=r"config\.json is damaged"):
        open_workdir(Config(workdir=str(tmp_path)), PRINTS)


def test_every_start_is_recorded_with_versions_and_commit(tmp_path):
    add_start(tmp_path, 0)
    add_start(tmp_path, 40)
    starts = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 40]
    assert starts[0]["versions"]["flax"]
    assert starts[0]["platform"] == "cpu"
    assert len(starts[0]["devices"]) == 8
    assert "git_commit" in starts[0]


def test_a_start_with_other_code_or_libraries_says_which(tmp_path):
    assert add_start(tmp_path, 0) is None
    assert add_start(tmp_path, 40) is None
    record = json.loads((tmp_path / "run.json").read_text())
    record["starts"][-1]["versions"]["flax"] = "0.1.2"
    del record["starts"][-1]["code"]  # as older versions wrote it
    (tmp_path / "run.json").write_text(json.dumps(record))
    changed = add_start(tmp_path, 50)
    assert changed is not None
    assert "flax 0.1.2 there" in changed
    assert "gnet_jax of unknown version there" in changed
    assert "jaxlib" not in changed
    assert add_start(tmp_path, 60) is None


def test_lines_after_the_resumed_step_are_forgotten_and_half_a_line_is_left_out(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    assert metrics.read() == []
    for step in (10, 20, 30):
        metrics.append(step, {"train/loss": step / 10})
    with metrics.path.open("a") as file:
        file.write('{"step": 40, "train/lo')
    assert [line["step"] for line in metrics.read()] == [10, 20, 30]
    metrics.forget_after(20)
    metrics.append(21, {"train/loss": 0.5})
    assert metrics.read() == [
        {"step": 10, "train/loss": 1.0},
        {"step": 20, "train/loss": 2.0},
        {"step": 21, "train/loss": 0.5},
    ]


def test_checkpoints_that_nobody_can_name_are_not_adopted(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match=r"has checkpoints but no config\.json"):
        open_workdir(Config(workdir=str(tmp_path)), PRINTS)


def test_a_second_process_on_a_workdir_is_refused(tmp_path):
    refused = pytest.raises(ConfigError, match="another process is training in")
    with locked(tmp_path), refused, locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_start_that_is_refused_as_busy_leaves_the_config_of_the_run_that_goes_on(tmp_path):
    config = Config(workdir=str(tmp_path), log_every_steps=7)
    open_workdir(config, PRINTS)
    refused = pytest.raises(BusyError, match="another process is training in")
    with locked(tmp_path), refused:
        open_workdir(dataclasses.replace(config, log_every_steps=1), PRINTS)
    assert json.loads((tmp_path / "config.json").read_text())["log_every_steps"] == 7


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_one_sentence(tmp_path, monkeypatch, number):
    without = mock.Mock(side_effect=OSError(number, os.strerror(number)))
    monkeypatch.setattr(fcntl, "flock", without)
    refused = pytest.raises(ConfigError, match=f"cannot lock .*/lock: {os.strerror(number)}; mount")
    with refused, locked(tmp_path):
        pass


@pytest.mark.parametrize("text", ["[]", "3", '{"seed": '])
def test_a_config_that_is_no_longer_one_is_damaged(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json is damaged \(.*\); bring it back"):
        open_workdir(Config(workdir=str(tmp_path)), PRINTS)


def test_data_that_changed_are_told_as_such(tmp_path):
    config = Config(workdir=str(tmp_path))
    open_workdir(config, PRINTS)
    with pytest.raises(ConfigError, match=r"the data have changed since .* \(val split: images"):
        open_workdir(config, PRINTS | {"val": "other"})
    with pytest.raises(ConfigError, match=r"the data have changed since .* \(train split: images"):
        open_workdir(config, PRINTS | {"train": "fewer", "order": "of fewer"})


def test_checkpoints_that_are_no_folder_are_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "checkpoints").symlink_to(tmp_path / "not" / "mounted")
    with pytest.raises(ConfigError, match="checkpoints is no folder, or a link to none"):
        open_workdir(Config(workdir=str(tmp_path)), PRINTS)


def test_a_damaged_record_is_put_aside(tmp_path):
    (tmp_path / "run.json").write_text('{"starts": [')
    add_start(tmp_path, 3)
    assert len(json.loads((tmp_path / "run.json").read_text())["starts"]) == 1
    assert (tmp_path / "run.damaged").is_file()
