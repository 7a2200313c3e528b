import dataclasses
import datetime
import errno
import fcntl
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import tempfile
import types
from unittest import mock

import pytest

from gnet_jax.config import Config, ConfigError
from gnet_jax.training import workdir as workdir_module
from gnet_jax.training.workdir import (
    RESTART,
    BusyError,
    MetricsFile,
    add_start,
    check_not_lost,
    code_version,
    git_commit,
    locked,
    open_workdir,
    read_starts,
    replacing,
    write_json,
)

PRINTS = {"train": "aa", "val": "bb"}


def test_a_workdir_accepts_its_own_run_again(tmp_path):
    config = Config(workdir=str(tmp_path / "deep" / "run"))
    workdir = open_workdir(config, PRINTS)
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["optim.learning_rate"] == 0.01
    assert saved["data.fingerprint.val"] == "bb"
    assert open_workdir(dataclasses.replace(config, log_every_steps=1), PRINTS) == workdir


LATER = ("optim.scale_learning_rate", "optim.reference_batch", "model.batch_norm_group")


def test_a_workdir_of_a_version_without_a_field_is_resumed_with_the_fields_default(tmp_path):
    config = Config(workdir=str(tmp_path))
    open_workdir(config, PRINTS)
    saved = json.loads((tmp_path / "config.json").read_text())
    older = {name: value for name, value in saved.items() if name not in LATER}
    assert len(older) == len(saved) - len(LATER)
    write_json(tmp_path / "config.json", older)
    scaled = dataclasses.replace(config.optim, scale_learning_rate="linear")
    assert LATER[0] in refusal(dataclasses.replace(config, optim=scaled), PRINTS)
    open_workdir(config, PRINTS)


def refusal(config, prints):
    """The message with which `open_workdir` refuses."""
    with pytest.raises(ConfigError) as raised:
        open_workdir(config, prints)
    return str(raised.value)


def test_another_config_is_refused_with_every_field_that_differs(tmp_path):
    config = Config(workdir=str(tmp_path))
    open_workdir(config, PRINTS)
    said = refusal(dataclasses.replace(config, seed=1, batch_size=64), PRINTS)
    assert "batch_size: 32 there, 64 now" in said
    assert "seed: 0 there, 1 now" in said
    assert str(tmp_path) in said


@pytest.mark.parametrize(
    ("prints", "splits"),
    [
        ({"train": "cc"}, "(train split"),
        ({"val": "cc"}, "(val split"),
        ({"train": "cc", "val": "dd"}, "(train and val split"),
        ({"train": "fewer", "order": "of fewer"}, "(train split"),
    ],
)
def test_data_that_changed_are_named_by_split(tmp_path, prints, splits):
    config = Config(workdir=str(tmp_path))
    open_workdir(config, PRINTS | {"order": "oo"})
    assert splits in refusal(config, PRINTS | {"order": "oo"} | prints)


def test_another_order_of_the_same_data_is_refused_with_the_libraries_that_shuffle(tmp_path):
    config = Config(workdir=str(tmp_path))
    open_workdir(config, PRINTS | {"order": "cc"})
    said = refusal(config, PRINTS | {"order": "dd"})
    assert "order: cc there, dd now" in said
    assert "Grain" in said
    said = refusal(dataclasses.replace(config, seed=1), PRINTS | {"order": "dd"})
    assert "seed: 0 there, 1 now" in said
    assert "Grain" not in said


def test_classes_that_changed_are_named(tmp_path):
    config = Config(workdir=str(tmp_path))
    open_workdir(config, PRINTS | {"classes": ["1", "10", "2"]})
    open_workdir(config, PRINTS | {"classes": ["1", "10", "2"]})
    said = refusal(config, PRINTS | {"classes": ["1", "2", "10"], "train": "cc"})
    assert "class 1 was '10', is '2'" in said
    said = refusal(config, PRINTS | {"classes": ["1", "10", "3", "4"], "train": "cc"})
    assert "removed: 2; added: 3, 4" in said


def test_a_workdir_that_did_not_record_its_classes_resumes_on_the_same_data(tmp_path):
    config, classes = Config(workdir=str(tmp_path)), {"classes": ["1", "2", "10"]}
    open_workdir(config, PRINTS)
    assert "(train split" in refusal(config, PRINTS | classes | {"train": "cc"})
    open_workdir(config, PRINTS | classes)
    assert json.loads((tmp_path / "config.json").read_text())["data.fingerprint.classes"]


def test_a_workdir_of_a_version_without_keep_every_resumes_with_it(tmp_path):
    config = Config(workdir=str(tmp_path))
    file = open_workdir(config, PRINTS) / "config.json"
    file.write_text(
        json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "keep_every"})
    )
    open_workdir(dataclasses.replace(config, keep_every=5), PRINTS)
    assert json.loads(file.read_text())["keep_every"] == 5


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert str(file / "run") in refusal(Config(workdir=str(file / "run")), PRINTS)


def test_every_start_is_recorded_with_versions_and_commit(tmp_path):
    add_start(tmp_path, 0)
    add_start(tmp_path, 40)
    starts = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 40]
    assert starts[0]["versions"]["flax"]
    assert starts[0]["platform"] == "cpu"
    assert len(starts[0]["devices"]) == 8
    assert "git_commit" in starts[0]
    assert starts[0]["python"] == platform.python_version()
    assert (starts[0]["processes"], starts[0]["host"]) == (1, platform.node())
    assert re.fullmatch(r"\S+ [0-9a-f]{16}", starts[0]["code"])
    began = datetime.datetime.fromisoformat(starts[0]["time"])
    assert (began.microsecond, began.utcoffset()) == (0, datetime.timedelta(0))
    assert abs((datetime.datetime.now(datetime.UTC) - began).total_seconds()) < 60


def test_a_start_with_other_code_or_libraries_says_which(tmp_path):
    assert not add_start(tmp_path, 0)
    assert not add_start(tmp_path, 40)
    record = json.loads((tmp_path / "run.json").read_text())
    record["starts"][-1]["versions"]["flax"] = "0.1.2"
    del record["starts"][-1]["code"]  # as older versions wrote it
    (tmp_path / "run.json").write_text(json.dumps(record))
    changed = add_start(tmp_path, 50)
    assert "flax: 0.1.2 there" in changed
    assert "gnet_jax: unknown there" in changed
    assert "jaxlib" not in changed
    assert not add_start(tmp_path, 60)


def test_a_start_with_other_compiler_flags_says_which(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_a=1 --xla_b")
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    assert not add_start(tmp_path, 0)
    flags = read_starts(tmp_path)[0]["flags"]
    assert flags == {"XLA_FLAGS": os.environ["XLA_FLAGS"], "LIBTPU_INIT_ARGS": None}
    # Neither the order of the flags nor those that leave the program as it is are a change.
    monkeypatch.setenv("XLA_FLAGS", "--xla_b --xla_a=2 --xla_a=1 --xla_dump_to=/tmp/a")
    assert not add_start(tmp_path, 10)
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=3 --xla_b")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_c=true")
    changed = add_start(tmp_path, 20)
    assert "XLA_FLAGS --xla_a: 1 there, 3 now" in changed
    assert "LIBTPU_INIT_ARGS --xla_tpu_c: absent there, true now" in changed
    assert "xla_b" not in changed
    record = json.loads((tmp_path / "run.json").read_text())
    del record["starts"][-1]["flags"]  # as older versions wrote it
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert not add_start(tmp_path, 30)


def test_the_recorded_versions_are_those_of_the_libraries_that_matter(tmp_path, monkeypatch):
    installed = {"jax": "1", "simplejpeg": "2", "opencv-python-headless": "3", "pytest": "4"}

    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr("importlib.metadata.version", version)
    add_start(tmp_path, 0)
    del installed["pytest"]
    assert read_starts(tmp_path)[0]["versions"] == installed


def test_a_start_with_another_file_of_an_own_block_says_so(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("def norm(**_): ...")
    parts = [f"{file}:norm"]
    assert not add_start(tmp_path, 0, parts)
    assert not add_start(tmp_path, 40, parts)
    file.write_text("def norm(**_): return None")
    changed = add_start(tmp_path, 50, parts)
    assert f"{parts[0]}: " in changed
    assert "gnet_jax: " not in changed


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


def test_checkpoints_of_an_unknown_run_are_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert "config.json" in refusal(Config(workdir=str(tmp_path)), PRINTS)


def test_a_second_process_on_a_workdir_is_refused(tmp_path):
    refused = pytest.raises(BusyError, match=str(tmp_path))
    with locked(tmp_path), refused, locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_start_that_is_refused_as_busy_leaves_the_config_of_the_run_that_goes_on(tmp_path):
    config = Config(workdir=str(tmp_path), log_every_steps=7)
    open_workdir(config, PRINTS)
    refused = pytest.raises(BusyError, match=str(tmp_path))
    with locked(tmp_path), refused:
        open_workdir(dataclasses.replace(config, log_every_steps=1), PRINTS)
    assert json.loads((tmp_path / "config.json").read_text())["log_every_steps"] == 7


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_one_sentence(tmp_path, monkeypatch, number):
    without = mock.Mock(side_effect=OSError(number, os.strerror(number)))
    monkeypatch.setattr(fcntl, "flock", without)
    refused = pytest.raises(ConfigError, match=f"/lock: {os.strerror(number)}")
    with refused as raised, locked(tmp_path):
        pass
    assert not isinstance(raised.value, BusyError)


@pytest.mark.parametrize("text", ["[]", "3", '{"seed": '])
def test_a_config_file_that_is_not_an_object_is_corrupt(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert "config.json is corrupt" in refusal(Config(workdir=str(tmp_path)), PRINTS)


def test_checkpoints_that_are_not_a_folder_are_refused(tmp_path):
    (tmp_path / "checkpoints").symlink_to(tmp_path / "not" / "mounted")
    assert str(tmp_path / "checkpoints") in refusal(Config(workdir=str(tmp_path)), PRINTS)
    (tmp_path / "checkpoints").unlink()
    (tmp_path / "checkpoints").touch()
    assert str(tmp_path / "checkpoints") in refusal(Config(workdir=str(tmp_path)), PRINTS)


def test_a_corrupt_record_is_renamed(tmp_path):
    (tmp_path / "run.json").write_text('{"starts": [')
    add_start(tmp_path, 3)
    assert len(json.loads((tmp_path / "run.json").read_text())["starts"]) == 1
    assert (tmp_path / "run.damaged").is_file()


def test_a_run_whose_checkpoints_are_gone_names_the_newest_step(tmp_path):
    check_not_lost(tmp_path, tmp_path / "checkpoints")
    starts = [{"step": 0, "newest_checkpoint": 40}, {"step": 30, "newest_checkpoint": 35}, {}]
    write_json(tmp_path / "run.json", {"starts": starts})
    with pytest.raises(ConfigError, match="step 40"):
        check_not_lost(tmp_path, tmp_path / "checkpoints")
    write_json(tmp_path / "run.json", {"starts": [{"step": 0, "newest_checkpoint": 0}]})
    check_not_lost(tmp_path, tmp_path / "checkpoints")


def test_a_restart_by_the_supervisor_is_recorded_with_its_reason(tmp_path, monkeypatch):
    reason = {"number": 2, "after": "the run exited with code 1", "step": 5}
    monkeypatch.setenv(RESTART, json.dumps(reason))
    add_start(tmp_path, 5)
    monkeypatch.delenv(RESTART)
    add_start(tmp_path, 6)
    assert [start["restart"] for start in read_starts(tmp_path)] == [reason, None]


def test_a_line_that_does_not_fit_on_the_disk_is_not_written_in_part(tmp_path, monkeypatch):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append(1, {"loss": 2.0})
    whole = metrics.path.read_bytes()
    usual = metrics.path.open

    class Full:
        """Takes five bytes of each write."""

        def __init__(self, *arguments, **options):
            assert options == {"buffering": 0}  # otherwise the disk is full only at the end
            self._file = usual(*arguments, **options)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def __getattr__(self, name):
            return getattr(self._file, name)

        def write(self, content):
            return self._file.write(content[:5])

    with monkeypatch.context() as patch:
        patch.setattr(type(metrics.path), "open", lambda _, *a, **o: Full(*a, **o))
        with pytest.raises(OSError, match="space") as raised:
            metrics.append(2, {"loss": 1.0})
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(metrics.path))
    assert metrics.path.read_bytes() == whole


def test_numbers_that_are_not_finite_are_null_in_the_file_and_nan_when_read(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append(1, {"loss": float("inf"), "top1": 0.5})
    assert json.loads(metrics.path.read_text()) == {"step": 1, "loss": None, "top1": 0.5}
    (line,) = metrics.read()
    assert math.isnan(line["loss"])
    assert (line["step"], line["top1"]) == (1, 0.5)


def test_forgetting_creates_no_file(tmp_path):
    MetricsFile(tmp_path / "metrics.jsonl").forget_after(3)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_file_leaves_nothing(tmp_path):
    def write():
        with replacing(tmp_path / "run.json") as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_leaves_nothing_and_its_own_error(tmp_path):
    def write(begun):
        with replacing(tmp_path / "run.json") as partial:
            if begun:
                partial.write_text("half")
            raise OSError(errno.ENOSPC, "failed")

    for begun in (False, True):
        with pytest.raises(OSError, match="failed") as raised:
            write(begun)
        assert raised.value.errno == errno.ENOSPC
        assert list(tmp_path.iterdir()) == []


def test_five_removed_classes_are_named(tmp_path):
    config = Config(workdir=str(tmp_path))
    open_workdir(config, PRINTS | {"classes": list("abcdefg")})
    assert "removed: a, b, c, d, e; added: none" in refusal(config, PRINTS | {"classes": ["g"]})


@pytest.mark.parametrize("host", [0, 1])
def test_a_folder_that_one_host_cannot_write_is_refused(tmp_path, monkeypatch, host):
    denied = mock.Mock(side_effect=OSError(errno.EROFS, os.strerror(errno.EROFS)))
    monkeypatch.setattr(tempfile, "TemporaryFile", denied)
    monkeypatch.setattr("jax.process_index", lambda: host)
    said = refusal(Config(workdir=str(tmp_path)), PRINTS)
    assert str(tmp_path) in said
    assert os.strerror(errno.EROFS) in said
    denied.assert_called_once_with(dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_code_version_depends_on_names_and_contents_of_the_packages_files(
    tmp_path, monkeypatch
):
    package = tmp_path / "gnet_jax"
    (package / "training").mkdir(parents=True)
    monkeypatch.setattr(workdir_module, "__file__", str(package / "training" / "workdir.py"))
    first, second = package / "a.py", package / "training" / "b.py"
    versions = []
    for texts in (("x", "yz"), ("xy", "z"), ("x", "yy")):
        first.write_text(texts[0])
        second.write_text(texts[1])
        versions.append(code_version())
    second.rename(package / "training" / "c.py")
    versions.append(code_version())
    assert len(set(versions)) == 4
    for other in (package / "notes.txt", tmp_path / "other.py"):
        other.touch()
    assert code_version() == versions[-1]


def test_the_commit_is_that_of_the_code_and_none_outside_git(monkeypatch):
    run = mock.Mock(return_value=types.SimpleNamespace(stdout="0123abc+changes\n"))
    monkeypatch.setattr(subprocess, "run", run)
    assert git_commit() == "0123abc+changes"
    assert run.call_args.kwargs["cwd"].name == "training"
    assert run.call_args.kwargs["text"]
    assert run.call_args.kwargs["capture_output"]
    run.return_value.stdout = "\n"
    assert git_commit() is None
    for error in (FileNotFoundError("git"), subprocess.TimeoutExpired("git", 20)):
        run.side_effect = error
        assert git_commit() is None


def test_lines_that_are_no_records_are_left_out(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [b"3", b'["step"]', b"{}", b'"step"', b'{"step": \xff', b'{"step": 2, "name": "\xff"}']
    file.write_bytes(b"\n".join([*lines, b'{"step": 5}\n']))
    assert MetricsFile(file).read() == [{"step": 2, "name": "\ufffd"}, {"step": 5}]


def test_json_files_are_indented_and_end_with_a_newline(tmp_path):
    write_json(tmp_path / "a.json", {"step": 1})
    assert (tmp_path / "a.json").read_text() == '{\n  "step": 1\n}\n'
