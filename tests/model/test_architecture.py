import dataclasses
import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import get_args, get_type_hints

import jax
import numpy as np
import pytest

from gnet_jax.model.architecture import (
    VARIANTS,
    Architecture,
    Choices,
    architecture,
    grid_sizes,
    smallest_size,
)
from gnet_jax.model.googlenet import googlenet
from gnet_jax.model.widths import TABLE_1, Widths

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (224, [112, 56, 28, 14, 7]),
        (227, [114, 57, 28, 14, 7]),
        (231, [116, 58, 29, 14, 7]),
        (299, [150, 75, 37, 18, 9]),
    ],
)
def test_grids_are_caffes(size, expected):
    """Worked out by hand from floor for the convolution and ceil for the pools."""
    sizes = grid_sizes(VARIANTS["paper"], size)
    assert [sizes["stem"], sizes["3"], sizes["4"], sizes["5"]] == expected[1:]
    assert grid_sizes(VARIANTS["torchvision"], size)["aux_4d"] == 4


def test_the_blocks_concatenate_to_the_papers_widths():
    outputs = [w.b1 + w.b3 + w.b5 + w.pool_proj for w in TABLE_1.values()]
    assert outputs == [256, 480, 512, 512, 512, 528, 832, 832, 1024]


def test_knobs_change_what_they_name_and_nothing_else():
    arch = architecture("paper", 7, aux_after=(), dropout=0.1, head="fc", stem="small")
    assert (arch.num_classes, arch.aux_after, arch.dropout, arch.head, arch.stem) == (
        7, (), 0.1, "fc", "small",
    )  # fmt: skip
    assert arch.aux_dropout == 0.7
    assert arch.widths == VARIANTS["paper"].widths
    half = architecture(width_multiplier=0.5)
    assert half.widths["3a"] == (32, 48, 64, 8, 16, 16)
    assert half.stem_widths == (32, 32, 96)
    assert architecture(width_multiplier=0.03).widths["3a"] == (2, 3, 4, 1, 1, 1)
    assert architecture(aux_after=["4b"]).aux_after == ("4b",)
    narrow = architecture(reduction_factor=0.25)
    assert narrow.widths["4b"] == TABLE_1["4b"]._replace(reduce3=28, reduce5=6)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"variant": "inception"}, "'inception'.*paper, batch_norm"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"reduction_factor": 0}, "reduction_factor is 0"),
        ({"width_multiplier": -1}, "width_multiplier is -1"),
        ({"reduction_factor": math.inf}, "reduction_factor is inf"),
        ({"aux_after": ("4f",)}, "aux_after is .*'4f'.*3a, 3b"),
        ({"aux_after": ("4d", "4a")}, "aux_after is"),
        ({"aux_after": ("4a", "4a")}, "aux_after is"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"aux_dropout": 1.0}, "aux_dropout is 1.0"),
        ({"aux_dropout": -0.1}, "aux_dropout is -0.1"),
        ({"head": "max"}, "head is 'max'.*average_pool, fc"),
        ({"stem": "large"}, "stem is 'large'"),
        ({"stem_padding": "valid"}, "stem_padding is 'valid'"),
        ({"aux_pool": "max"}, "aux_pool is 'max'"),
        ({"norm": "layer"}, "norm is 'layer'"),
        ({"block": "Mine"}, "block is 'Mine'"),
        ({"variant": "naive", "block": "f.py:Mine"}, "block is 'f.py:Mine'"),
        ({"branch5_kernel": 4}, "branch5_kernel is 4"),
        ({"lrn": (4, 1.0, 0.1, 0.5)}, r"lrn is \(4, .*odd"),
        ({"lrn": (5, 0.0, 0.1, 0.5)}, r"lrn is \(5, 0.0"),
        ({"lrn": (5, 1.0, -0.1, 0.5)}, r"lrn is .*-0.1"),
        ({"lrn": (5, 1.0, 0.1, 0.6)}, r"lrn is .*0.6"),
        ({"lrn": (5, 1.0, 0.1, -0.5)}, r"lrn is .*-0.5"),
        ({"pool4_window": 1}, "pool4_window is 1"),
        ({"stem_widths": (64, 0, 192)}, "stem_widths is"),
        ({"widths": ("4e=1,2,3",)}, "widths is '4e=1,2,3'"),
        ({"widths": ("4e=a,2,3,4,5,6",)}, "widths is '4e=a"),
    ],
)
def test_a_knob_out_of_range_is_named(knobs, message):
    with pytest.raises(ValueError, match=message):
        architecture(**knobs)


@pytest.mark.parametrize(
    "knobs",
    [
        {"num_classes": 2, "dropout": 0.0, "aux_dropout": 0.0},
        {"branch5_kernel": 1, "pool4_window": 2, "aux_after": ()},
        {"aux_after": ("3a", "4a", "4d")},
        {"lrn": (1, 1e-9, 0.0, 0.0)},
    ],
)
def test_a_knob_at_its_limit_is_taken(knobs):
    arch = architecture(**knobs)
    assert {name: getattr(arch, name) for name in knobs} == knobs


def test_the_torchvision_variant_has_torchvisions_values():
    """As in torchvision/models/googlenet.py; a dropout of 0.7 in the heads is the paper's too."""
    arch = VARIANTS["torchvision"]
    found = (arch.norm, arch.branch5_kernel, arch.pool4_window, arch.aux_pool)
    assert found == ("batch_norm", 3, 2, "adaptive")
    assert (arch.dropout, arch.aux_dropout) == (0.2, 0.7)


def test_the_google_release_has_the_values_of_googles_network():
    arch = VARIANTS["google_release"]
    assert (arch.num_classes, arch.stem_padding) == (1008, "same")
    assert arch.lrn == (9, 1.0, 1e-4 / 9, 0.5)
    odd = {name: w for name, w in arch.widths.items() if w != TABLE_1[name]}
    assert odd == {"4a": TABLE_1["4a"]._replace(b3=204), "5a": TABLE_1["5a"]._replace(reduce5=48)}


def test_the_variants_offered_are_those_that_exist():
    assert get_args(get_type_hints(Choices)["variant"]) == tuple(VARIANTS)


OTHER_VALUES = {
    "num_classes": 7, "naive": True, "norm": "batch_norm", "block": "f.py:Mine",
    "lrn": (3, 2.0, 0.1, 1.0), "branch5_kernel": 3, "pool4_window": 2, "stem": "small",
    "stem_padding": "same", "stem_widths": (1, 2, 3), "aux_after": ("3b",), "aux_widths": (4, 5),
    "aux_pool": "adaptive", "aux_dropout": 0.1, "head": "fc", "dropout": 0.2,
}  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Architecture)])
def test_every_field_can_be_chosen_and_changes_nothing_else(name):
    if name == "widths":
        arch = Choices(widths={"4e": Widths(1, 2, 3, 4, 5, 6)}).build()
        assert arch.widths == {**TABLE_1, "4e": (1, 2, 3, 4, 5, 6)}
        assert arch == Choices(widths=("4e=1,2,3,4,5,6",)).build()
        return
    arch = Choices(**{name: OTHER_VALUES[name]}).build()
    assert arch == dataclasses.replace(VARIANTS["paper"], **{name: OTHER_VALUES[name]})
    assert arch != VARIANTS["paper"]


def test_choices_keep_what_the_variant_has():
    assert Choices("torchvision").build() == VARIANTS["torchvision"]
    assert Choices("torchvision", dropout=0.4).build().dropout == 0.4
    narrow = Choices(width_multiplier=0.5, reduction_factor=0.5, widths=("3a=1,2,3,4,5,6",)).build()
    assert narrow.widths["3a"] == (1, 2, 3, 4, 5, 6)  # given widths are not scaled
    assert narrow.widths["3b"] == (64, 32, 96, 8, 48, 32)
    assert narrow.aux_widths == (64, 512)


def test_a_network_of_fewer_blocks():
    arch = Choices(blocks=("5a", "3b"), aux_after=()).build()
    assert arch.widths == {name: TABLE_1[name] for name in ("3b", "5a")}  # in the network's order
    with pytest.raises(ValueError, match="blocks is '6a'"):
        Choices(blocks=("3a", "6a")).build()


def test_architectures_are_plain_python():
    code = "import sys, gnet_jax.model.architecture; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_the_smallest_size_is_the_smallest(variant, stem):
    arch = architecture(variant, stem=stem)
    size = smallest_size(arch)
    assert min(grid_sizes(arch, size).values()) >= 1
    assert min(grid_sizes(arch, size - 1).values()) < 1


def test_equal_networks_are_one_static_argument_and_others_another():
    model, twin, wider = (
        googlenet("paper", 10, width_multiplier=width, stem="small", aux_after=())
        for width in (1 / 16, 1 / 16, 1 / 8)
    )
    traced = []

    @partial(jax.jit, static_argnums=0)
    def side(model, image):
        traced.append(model)
        return image.shape[1]

    for each in (model, twin, wider):
        side(each, np.zeros((1, 16, 16, 3), np.float32))
    assert traced == [model, wider]
