"""The channel widths of the nine Inception blocks, as in Table 1 of the paper."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Widths(NamedTuple):
    """Output channels of the six convolutions of one Inception block (paper, Fig. 2b)."""

    b1: int  # the 1x1 branch
    reduce3: int  # the 1x1 reduction before the 3x3
    b3: int  # the 3x3 branch
    reduce5: int  # the 1x1 reduction before the 5x5
    b5: int  # the 5x5 branch
    pool_proj: int  # the 1x1 projection after the 3x3 max pool


TABLE_1: Mapping[str, Widths] = {
    "3a": Widths(b1=64, reduce3=96, b3=128, reduce5=16, b5=32, pool_proj=32),
    "3b": Widths(b1=128, reduce3=128, b3=192, reduce5=32, b5=96, pool_proj=64),
    "4a": Widths(b1=192, reduce3=96, b3=208, reduce5=16, b5=48, pool_proj=64),
    "4b": Widths(b1=160, reduce3=112, b3=224, reduce5=24, b5=64, pool_proj=64),
    "4c": Widths(b1=128, reduce3=128, b3=256, reduce5=24, b5=64, pool_proj=64),
    "4d": Widths(b1=112, reduce3=144, b3=288, reduce5=32, b5=64, pool_proj=64),
    "4e": Widths(b1=256, reduce3=160, b3=320, reduce5=32, b5=128, pool_proj=128),
    "5a": Widths(b1=256, reduce3=160, b3=320, reduce5=32, b5=128, pool_proj=128),
    "5b": Widths(b1=384, reduce3=192, b3=384, reduce5=48, b5=128, pool_proj=128),
}

# The widths of Google's released network, which differ from Table 1 in two places.
GOOGLE_RELEASE: Mapping[str, Widths] = {
    **TABLE_1,
    "4a": TABLE_1["4a"]._replace(b3=204),
    "5a": TABLE_1["5a"]._replace(reduce5=48),
}


def scaled(channels: Iterable[int], factor: float) -> tuple[int, ...]:
    """Returns each number of channels times `factor`, rounded, and at least 1."""
    return tuple(max(1, round(n * factor)) for n in channels)
