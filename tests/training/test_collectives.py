import pytest

from gnet_jax.config import ConfigError, UserError
from gnet_jax.training.hosts import agree
from gnet_jax.training.hosts.agree import gather, run_on_all_hosts


def test_alone_a_host_goes_on():
    assert gather("text") == ["text"]
    assert run_on_all_hosts(lambda: 3) == 3


def test_a_mistake_on_another_host_ends_this_one_too(monkeypatch):
    others = ["there is no folder /data"]
    monkeypatch.setattr(agree, "gather", lambda own: [own, *others])
    with pytest.raises(UserError, match="host 1 stopped: there is no folder /data"):
        run_on_all_hosts(lambda: 3)

    def wrong():
        raise ConfigError("own mistake")

    with pytest.raises(ConfigError, match="own mistake"):
        run_on_all_hosts(wrong)
