from functools import partial

import jax
import numpy as np
import pytest

from gnet_jax.model import VARIANTS, architecture, googlenet, smallest_size
from gnet_jax.model.architecture import grid_sizes
from gnet_jax.model.widths import TABLE_1


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


def test_the_blocks_concatenate_to_the_papers_widths():
    outputs = [w.out for w in TABLE_1.values()]
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
    narrow = architecture(reduction_factor=0.25)
    assert narrow.widths["4b"] == TABLE_1["4b"]._replace(reduce3=28, reduce5=6)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"variant": "inception"}, "unknown variant 'inception'; choose one of paper"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"reduction_factor": 0}, "reduction_factor is 0"),
        ({"width_multiplier": -1}, "width_multiplier is -1"),
        ({"aux_after": ("4f",)}, "aux_after names '4f'; the blocks are 3a"),
        ({"aux_after": ("4d", "4a")}, "in the net's order"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must be in \[0, 1\)"),
        ({"head": "max"}, "head is 'max'; choose one of average_pool, fc"),
        ({"stem": "large"}, "stem is 'large'"),
    ],
)
def test_a_knob_out_of_range_is_named(knobs, message):
    with pytest.raises(ValueError, match=message):
        architecture(**knobs)


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
