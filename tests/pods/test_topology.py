import importlib.util

import pytest

from gnet_jax.pods.topology import TopologyError, get_topology, parse_topology


@pytest.mark.parametrize(
    ("text", "name", "sides"),
    [("v5e:16x16", "v5e", (16, 16)), ("v4:2x2x2", "v4", (2, 2, 2)), ("h100:8", "h100", (8,))],
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
        ("v5e:4", ["1 axes", "2", "v5e:16x16"]),
        ("v5e:4x4x4", ["3 axes", "v5e:16x16"]),
        ("v4:4x4", ["2 axes", "v4:2x2x2"]),
        ("v5e:0x4", ["v5e:16x16"]),
        ("v5e:axb", ["v5e:16x16"]),
        ("h100:12", ["h100:12", "multiple of 8"]),
        ("h100:2x4", ["h100:8"]),
    ],
)
def test_a_topology_that_cannot_be_is_refused_with_the_way_to_write_it(text, words):
    with pytest.raises(TopologyError) as caught:
        parse_topology(text)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "missing", "remedy"),
    [
        ("v5e:2x2", "libtpu", "-e '.[tpu]'"),
        ("h100:8", "jax_plugins", "-e '.[plan]'"),
    ],
)
def test_a_compiler_that_is_not_installed_is_named_with_what_to_install(
    text, missing, remedy, monkeypatch
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name.split(".")[0] == missing else find(name),
    )
    with pytest.raises(TopologyError, match=r"not installed") as caught:
        get_topology(text)
    assert remedy in str(caught.value)
