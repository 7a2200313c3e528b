"""The helpers that readers of other programs' files share."""

import numpy as np
import pytest

from gnet_jax.convert.mapping import drop_heads, find_prefix, name_variables, rows_to_channels_first
from gnet_jax.model_folder import WeightsError

MARKERS = ("conv1", "fc")


def test_the_network_is_found_by_both_its_markers():
    names = ["other/conv1", "net/conv1", "net/fc", "step"]
    assert find_prefix(names, MARKERS, "a network", "FILE") == "net/"
    assert find_prefix(["conv1", "fc"], MARKERS, "a network", "FILE") == ""
    with pytest.raises(WeightsError, match=r"^FILE is not a network: it holds w, x, y, \.\.\.$"):
        find_prefix(["w", "x", "y", "z"], MARKERS, "a network", "FILE")
    with pytest.raises(WeightsError, match="nothing"):
        find_prefix([], MARKERS, "a network", "FILE")
    with pytest.raises(WeightsError, match=r"two networks \(a/conv1 and b/conv1\)"):
        find_prefix(["a/conv1", "a/fc", "b/conv1", "b/fc"], MARKERS, "a network", "FILE")


def test_heads_of_other_classes_are_dropped_with_a_note():
    network = dict.fromkeys(("aux1.w", "aux1.b", "aux2.w", "fc"))
    (note,) = drop_heads(network, {"aux1": 5, "aux2": 10}, 10)
    assert list(network) == ["aux2.w", "fc"]
    for part in ("aux1", "5 classes", "has 10"):
        assert part in note


def test_all_modules_have_all_parts():
    found = name_variables(
        {"a": "x", "b": "y"}, {"params/{}/kernel": "{}.w", "params/{}/bias": "{}.b"}
    )
    assert found == {
        "params/a/kernel": "x.w", "params/a/bias": "x.b",
        "params/b/kernel": "y.w", "params/b/bias": "y.b",
    }  # fmt: skip


def test_rows_are_reordered_from_h_w_c_to_c_h_w():
    rows = [100 * c + 10 * h + w for h in range(2) for w in range(2) for c in range(3)]
    matrix = np.stack([rows, np.negative(rows)], axis=1)
    found = rows_to_channels_first(matrix, 3)
    expected = [0, 1, 10, 11, 100, 101, 110, 111, 200, 201, 210, 211]
    assert found[:, 0].tolist() == expected
    assert found[:, 1].tolist() == [-value for value in expected]
