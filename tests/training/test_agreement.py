import json

import pytest

from gnet_jax.config import ConfigError
from gnet_jax.training.hosts import agree as agreement
from gnet_jax.training.hosts.agree import compare, identity, open_shared_workdir
from gnet_jax.training.workdir import PACKAGES
from tests.tiny import tiny_config, tiny_run


@pytest.fixture
def second_host(monkeypatch):
    """Makes `gather` answer as if there were a second host that says the given text."""

    def says(text):
        monkeypatch.setattr(agreement, "gather", lambda own: [own, text])

    return says


def test_alone_a_host_agrees_with_itself(tmp_path):
    compare({"seed": 1})
    assert open_shared_workdir(tiny_config(tmp_path / "run"), {"train": "a"}).is_dir()


def test_what_differs_is_named_with_the_host_and_both_values(second_host):
    own = {"seed": 0, "data.fingerprint.train": "abc", "code": "f00", "epochs": 3.0}
    second_host(json.dumps(own | {"code": "ba5", "seed": 1}))
    with pytest.raises(
        ConfigError,
        match="host 1 differs: code is ba5 there, f00 on host 0; seed is 1 there, 0 on host 0",
    ):
        compare(own)
    second_host(json.dumps(own))
    compare(own)


def test_hosts_may_differ_in_places_and_threads_alone(tmp_path):
    run = tiny_run(tmp_path)
    names = identity(run, {"train": "abc"}).keys()
    assert {"seed", "optim.learning_rate", "data.fingerprint.train", "code"} <= names
    assert {f"version of {name}" for name in PACKAGES} <= names
    assert not {"workdir", "data.source", "data.threads", "data.workers", "init"} & names
    assert len(json.dumps(identity(run, {}))) > 1000
