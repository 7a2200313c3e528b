import importlib.machinery
import importlib.util
import platform
import types

import pytest

from gnet_jax.cli.main import main
from gnet_jax.config import UserError
from gnet_jax.pods import topology
from gnet_jax.pods.topology import parse_topology


@pytest.mark.parametrize(
    ("text", "name", "sides"),
    [
        ("v5e:16x16", "v5e", (16, 16)),
        ("v4:2x2x2", "v4", (2, 2, 2)),
        ("h100:4", "h100", (4,)),
        ("h100:16", "h100", (16,)),
    ],
)
def test_a_topology_names_a_chip_and_a_shape(text, name, sides):
    chip, shape = parse_topology(text)
    assert (chip.name, shape) == (name, sides)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("v9:2x2", ["v9:2x2", "v4", "v5e", "h100"]),
        ("", ["v5e"]),
        ("v5e", ["'v5e'", "v5e:16x16"]),
        ("v5e:", ["v5e:16x16"]),
        ("v5e:4", ["v5e:4", "2 axes", "v5e:16x16"]),
        ("v5e:4x4x4", ["v5e:4x4x4", "2 axes", "v5e:16x16"]),
        ("v4:4x4", ["v4:4x4", "3 axes", "v4:2x2x2"]),
        ("v5e:0x4", ["v5e:16x16"]),
        ("v5e:axb", ["v5e:16x16"]),
        ("h100:12", ["h100:12", "multiple of 8"]),
        ("h100:2x4", ["h100:8"]),
    ],
)
def test_an_invalid_topology_is_refused_with_a_valid_one(text, words):
    with pytest.raises(UserError) as caught:
        parse_topology(text)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def without(monkeypatch, *missing):
    """Hide these modules."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name.split(".")[0] in missing else find(name),
    )


@pytest.mark.parametrize(
    ("text", "arguments", "options", "hosts"),
    [
        ("v5e:1x4", ("v5e:1x4", "tpu"), {"chips_per_host_bounds": (1, 2, 1)}, 1),
        ("v5e:16x16", ("v5e:16x16", "tpu"), {"chips_per_host_bounds": (2, 2, 1)}, 64),
        (
            "v4:2x2x2",
            ("v4:2x2x2", "tpu"),
            {"chips_per_host_bounds": (2, 2, 1), "chip_config_name": "megacore"},
            2,
        ),
        ("h100:16", ("h100", "cuda"), {"topology": "1x2x8"}, 2),
        ("a100:4", ("a100", "cuda"), {"topology": "1x1x4"}, 1),
    ],
)
def test_the_compiler_is_asked_for_the_chips_and_hosts(
    text, arguments, options, hosts, monkeypatch
):
    asked = []

    def describe(*names, **given):
        asked.append((names, given))
        return types.SimpleNamespace(devices=["device"])

    monkeypatch.setattr(topology, "_check_compiler", lambda chip: None)
    monkeypatch.setattr(topology.topologies, "get_topology_desc", describe)
    found = topology.get_topology(text)
    ((names, given),) = asked
    target = given.pop("target_config", "")
    assert (names, given) == (arguments, options)
    assert target == topology.CHIPS[text.partition(":")[0]].description
    assert (found.name, found.chip.name, found.hosts) == (text, text.partition(":")[0], hosts)
    assert found.devices == ["device"]


def test_a_topology_that_the_compiler_refuses_is_named_with_the_reason(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no such slice\nsecond line")

    monkeypatch.setattr(topology, "_check_compiler", lambda chip: None)
    monkeypatch.setattr(topology.topologies, "get_topology_desc", refuse)
    with pytest.raises(UserError, match=r"v5e:3x3.*no such slice$"):
        topology.get_topology("v5e:3x3")


COMPILERS = [("v5e:2x2", "libtpu"), ("h100:8", "CUDA plugin")]


@pytest.fixture
def nothing_installed(monkeypatch):
    without(monkeypatch, "libtpu", "jax_plugins")


@pytest.mark.parametrize(("text", "missing"), COMPILERS)
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_missing_compiler_is_named_with_the_fix(
    text, missing, machine, monkeypatch, nothing_installed, capsys
):
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    arguments = ["--images", "100", "--classes", "10", "--topology", text]
    assert main(["plan", "digits", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert missing in error
    assert (".[plan]" if machine == "x86_64" else "aarch64") in error
