import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from gnet_jax.config import ConfigError, UserError
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.training.hosts import start
from gnet_jax.training.hosts.start import (
    compare,
    gather,
    identity,
    open_shared_workdir,
    run_on_all_hosts,
)
from gnet_jax.training.workdir import PACKAGES
from tests.tiny import tiny_config


@pytest.fixture
def other_hosts(monkeypatch):
    """A list of what the hosts after this one pass to `gather`."""
    texts = []
    monkeypatch.setattr(start, "gather", lambda own: [own, *texts])
    return texts


def test_a_host_alone_agrees_with_itself(tmp_path):
    assert gather("text") == ["text"]
    assert run_on_all_hosts(lambda: 3) == 3
    compare({"seed": 1})
    assert open_shared_workdir(tiny_config(tmp_path / "run"), {"train": "a"}).is_dir()


@pytest.mark.parametrize(("own", "other"), [("caf\u00e9 \udcff", "b"), ("", "longer"), ("", "")])
def test_texts_of_any_length_come_from_every_host_in_order(monkeypatch, own, other):
    theirs = np.frombuffer(other.encode(), np.uint8)

    def allgather(array):
        assert array.size  # JAX gathers nothing of size zero
        if array.dtype == np.int32:
            return np.stack([array, np.array([theirs.size], np.int32)])
        assert array.size >= theirs.size
        return np.stack([array, np.pad(theirs, (0, array.size - theirs.size))])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(start.multihost_utils, "process_allgather", allgather)
    assert gather(own) == [own, other]


def test_an_error_on_another_host_raises_here_too(other_hosts):
    other_hosts += ["", "1 there is no folder /data"]
    with pytest.raises(UserError, match="host 2 stopped: there is no folder /data") as raised:
        run_on_all_hosts(lambda: 3)
    assert raised.value.exit_code == 1  # that of the other host

    def wrong():
        raise ConfigError("own mistake")

    with pytest.raises(ConfigError, match="own mistake"):
        run_on_all_hosts(wrong)


def test_an_error_is_passed_on_even_without_a_message(monkeypatch):
    told = []
    monkeypatch.setattr(start, "gather", lambda own: [told.append(own) or own])

    def wrong():
        raise ConfigError

    with pytest.raises(ConfigError):
        run_on_all_hosts(wrong)
    assert told == ["2 ConfigError"]


def test_a_difference_names_the_host_and_both_values(other_hosts):
    own = {"seed": 0, "data.fingerprint.train": "abc", "code": "f00", "epochs": 3.0}
    other_hosts += [json.dumps(own), json.dumps(own | {"code": "ba5", "seed": 1})]
    with pytest.raises(ConfigError, match="host 2 ") as raised:
        compare(own)
    for part in ("code is ba5 there, f00 on host 0", "seed is 1 there, 0 on host 0"):
        assert part in str(raised.value)
    other_hosts[:] = [json.dumps(own)]
    compare(own)
    other_hosts[:] = [json.dumps(own | {"new": 1})]
    with pytest.raises(ConfigError, match="host 1 differs: new is 1 there, absent on host 0"):
        compare(own)


def test_three_differences_are_named_and_the_others_counted(other_hosts):
    other_hosts.append(json.dumps(dict.fromkeys("abcde", 1)))
    with pytest.raises(ConfigError, match=r"c is 1 there, 0 on host 0 \(2 more\)") as raised:
        compare(dict.fromkeys("abcde", 0))
    assert "d is" not in str(raised.value)
    other_hosts[:] = [json.dumps(dict.fromkeys("abc", 1))]
    with pytest.raises(ConfigError, match="c is 1 there, 0 on host 0; start"):
        compare(dict.fromkeys("abc", 0))


def test_hosts_may_differ_only_in_paths_and_threads(tmp_path):
    config = tiny_config(tmp_path)
    program = types.SimpleNamespace(pretrained=None, model=GoogLeNet())
    run = types.SimpleNamespace(config=config, program=program)
    names = identity(run, {"train": "abc", "classes": ["a"]})
    assert {"seed", "optim.learning_rate", "save_every_steps", "code"} <= names.keys()
    assert names["data.fingerprint.train"] == "abc"
    assert "data.fingerprint.classes" not in names
    assert {f"version of {name}" for name in PACKAGES} <= names.keys()
    assert not {"workdir", "data.source", "data.threads", "data.workers", "init"} & names.keys()
    data = dataclasses.replace(config.data, source="folder:/x", threads=7, workers=1)
    run.config = dataclasses.replace(config, data=data, workdir="elsewhere", init="model")
    assert identity(run, {"train": "abc"}) == names


def test_hosts_compare_the_compiler_flags_that_change_the_program(tmp_path, monkeypatch):
    program = types.SimpleNamespace(pretrained=None, model=GoogLeNet())
    run = types.SimpleNamespace(config=tiny_config(tmp_path), program=program)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2 --xla_a=1")
    names = identity(run, {})
    assert names["XLA_FLAGS --xla_a"] == "1"
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_dump_to=/only/here")
    assert identity(run, {}) == names
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_b=false")
    assert identity(run, {}) == names | {"LIBTPU_INIT_ARGS --xla_tpu_b": "false"}


def test_hosts_compare_the_weights_that_they_start_from(tmp_path):
    def of_weights(value):
        pretrained = types.SimpleNamespace(variables={"kernel": np.full(3, value, np.float32)})
        program = types.SimpleNamespace(pretrained=pretrained, model=GoogLeNet())
        run = types.SimpleNamespace(config=tiny_config(tmp_path), program=program)
        return identity(run, {})["init"]

    assert of_weights(1) == of_weights(1) != of_weights(2)


@pytest.fixture
def second_host(monkeypatch):
    """This process is the second of two; host 0 passes these texts to `gather`."""
    texts = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(start, "gather", lambda own: [texts.pop(0) if texts else "", own])
    monkeypatch.setattr(start, "TOKEN_SECONDS", 0)
    return texts


def test_a_host_that_does_not_see_the_token_of_the_first_has_another_workdir(tmp_path, second_host):
    second_host += ["", ".shared-0123"]
    with pytest.raises(ConfigError, match=str(tmp_path)):
        open_shared_workdir(tiny_config(tmp_path), {"train": "a"})
    (tmp_path / ".shared-0123").touch()
    second_host += ["", ".shared-0123"]
    assert open_shared_workdir(tiny_config(tmp_path), {"train": "a"}) == tmp_path
    assert (tmp_path / ".shared-0123").exists()  # the first host removes it
    assert not (tmp_path / "config.json").exists()  # and writes the config


def test_the_first_host_shows_a_token_and_removes_it(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(start, "gather", lambda own: [told.append(own) or own, ""])
    wait, seen = start._wait_for_token, []
    monkeypatch.setattr(
        start, "_wait_for_token", lambda folder, token: (seen.append(token), wait(folder, token))
    )
    assert open_shared_workdir(tiny_config(tmp_path), {"train": "a"}) == tmp_path
    (token,) = filter(None, told)
    assert (len(token), seen) == (len(".shared-") + 16, [token])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "lock"]


def test_a_token_that_comes_late_is_waited_for(tmp_path, monkeypatch):
    later = [lambda: (tmp_path / "run").mkdir(), (tmp_path / "run" / "token").touch]
    monkeypatch.setattr(start.time, "sleep", lambda _: later.pop(0)())
    start._wait_for_token(tmp_path / "run", "token")
    assert not later
