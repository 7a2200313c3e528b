"""Which GoogLeNet: the published variants and the knobs of an ablation, all as data.

An `Architecture` holds every number that `GoogLeNet` needs. The named variants are values of
it; an ablation is `dataclasses.replace` on one of them, or a knob of `architecture`.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from gnet_jax.config import choose
from gnet_jax.model.layers import conv_size, pooled_size
from gnet_jax.model.widths import (
    GOOGLE_RELEASE,
    TABLE_1,
    Widths,
    scale_reductions,
    scale_widths,
    scaled,
)

Norm = Literal["lrn", "batch_norm"]
Stem = Literal["imagenet", "small"]
StemPadding = Literal["caffe", "same"]
Head = Literal["average_pool", "fc"]
AuxPool = Literal["caffe", "adaptive"]
VariantName = Literal[
    "paper", "batch_norm", "torchvision", "google_release", "naive", "naive_batch_norm"
]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Every choice that shapes the network; the defaults are the paper's.

    `stem_padding` "same" pads the strided first convolution as TensorFlow does: (2, 3) at an even
    size, where Caffe pads (3, 3). All sizes stay as they are. The pools keep Caffe's rule, which
    equals TensorFlow's "SAME" where a 3x3 pool of stride 2 sees an even size, and for a 2x2 pool
    always. So TF-slim's net computes here what it computes there for images whose side is a
    multiple of 16, such as 224, or one less.
    """

    num_classes: int = 1000
    # By name, in order; a first digit other than the block's before means a pool in between.
    # A mapping has no hash; without it an architecture, and so the model, can be a static argument.
    widths: Mapping[str, Widths] = dataclasses.field(
        default_factory=lambda: dict(TABLE_1), hash=False
    )
    naive: bool = False  # blocks of Fig. 2a: no reductions, the pool passed through
    norm: Norm = "lrn"  # batch_norm takes the place of LRN and of the convolutions' biases
    branch5_kernel: int = 5  # torchvision and TF-slim have a 3x3 where the paper has its 5x5
    pool4_window: int = 3  # torchvision and TF-slim: 2
    stem: Stem = "imagenet"  # small: a 3x3 first layer and one pool, for images of 16 to 64 pixels
    stem_padding: StemPadding = "caffe"  # TF-slim: same
    stem_widths: tuple[int, int, int] = (64, 64, 192)
    aux_after: tuple[str, ...] = ("4a", "4d")
    aux_widths: tuple[int, int] = (128, 1024)
    aux_pool: AuxPool = "caffe"  # adaptive: torchvision's, 4x4 whatever the input
    aux_dropout: float = 0.7
    head: Head = "average_pool"  # fc: what global average pooling replaced
    dropout: float = 0.4


VARIANTS: Mapping[str, Architecture] = {
    "paper": Architecture(),
    "batch_norm": Architecture(norm="batch_norm"),
    "torchvision": Architecture(
        norm="batch_norm", branch5_kernel=3, pool4_window=2, aux_pool="adaptive", dropout=0.2
    ),
    "google_release": Architecture(num_classes=1008, widths=dict(GOOGLE_RELEASE)),
    "naive": Architecture(naive=True),
    "naive_batch_norm": Architecture(naive=True, norm="batch_norm"),
}


def architecture(
    variant: str = "paper",
    num_classes: int | None = None,
    *,
    reduction_factor: float = 1.0,
    width_multiplier: float = 1.0,
    aux_after: Sequence[str] | None = None,
    head: Head | None = None,
    dropout: float | None = None,
    aux_dropout: float | None = None,
    stem: Stem | None = None,
) -> Architecture:
    """The named variant with the given knobs turned; `None` keeps the variant's own value.

    Args:
        variant: a key of `VARIANTS`.
        num_classes: outputs of every classifier.
        reduction_factor: scales the 1x1 reductions in front of the 3x3 and the 5x5 of every block.
        width_multiplier: scales every layer but the classifiers, after `reduction_factor`.
        aux_after: names of the blocks that an auxiliary head follows; `()` for none.
        head: "average_pool", or "fc" for a fully connected layer as wide as the last block.
        dropout: rate in front of the main classifier.
        aux_dropout: rate in front of the auxiliary classifiers.
        stem: "imagenet", or "small" for images of 16 to 64 pixels.

    Raises:
        ValueError: naming the knob, its value and what it may be.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    arch = VARIANTS[variant]
    for knob, value in (
        ("reduction_factor", reduction_factor),
        ("width_multiplier", width_multiplier),
    ):
        if not value > 0:
            raise ValueError(f"{knob} is {value}; it must be above 0")
    given = {
        "num_classes": num_classes,
        "aux_after": None if aux_after is None else tuple(aux_after),
        "head": head,
        "dropout": dropout,
        "aux_dropout": aux_dropout,
        "stem": stem,
    }
    arch = dataclasses.replace(
        arch,
        widths=scale_widths(scale_reductions(arch.widths, reduction_factor), width_multiplier),
        stem_widths=tuple(scaled(n, width_multiplier) for n in arch.stem_widths),
        aux_widths=tuple(scaled(n, width_multiplier) for n in arch.aux_widths),
        **{name: value for name, value in given.items() if value is not None},
    )
    _check(arch)
    return arch


def _check(arch: Architecture) -> None:
    if arch.num_classes < 2:
        raise ValueError(f"num_classes is {arch.num_classes}; a classifier needs at least 2")
    unknown = [name for name in arch.aux_after if name not in arch.widths]
    if unknown:
        raise ValueError(
            f"aux_after names {unknown[0]!r}; the blocks are {', '.join(arch.widths)}, "
            "and no name at all stands for no heads"
        )
    if list(arch.aux_after) != [name for name in arch.widths if name in arch.aux_after]:
        raise ValueError(f"aux_after is {arch.aux_after}; name each block once, in the net's order")
    for knob in ("dropout", "aux_dropout"):
        if not 0 <= getattr(arch, knob) < 1:
            raise ValueError(f"{knob} is {getattr(arch, knob)}; it must be in [0, 1)")
    for knob, choices in (("head", Head), ("stem", Stem)):
        choose(knob, getattr(arch, knob), dict.fromkeys(get_args(choices)))


def grid_sizes(arch: Architecture, size: int) -> dict[str, int]:
    """Side length of each stage's feature map for a square image of `size` pixels.

    A value below 1 means that the image is too small for that stage.

    Returns:
        `{"stem": ..., "3": ..., "4": ..., "5": ..., "aux_4a": ..., ...}`, the aux entries being the
        sizes after the heads' average pools.
    """
    conv1 = conv_size(size, 7, stride=2, pad=3)  # whatever stem_padding is
    stems = {"imagenet": pooled_size(conv1, 3, 2), "small": size}
    sizes = {"stem": choose("stem", arch.stem, stems)}
    at = pooled_size(sizes["stem"], 3, 2)
    for name, pool in pools(arch).items():
        sizes.setdefault(name[0], at)
        at = at if pool is None else pooled_size(at, pool, 2)
    for name in arch.aux_after:
        at = sizes[name[0]]
        pooled = {"caffe": pooled_size(at, 5, 3), "adaptive": min(at, 4)}
        sizes[f"aux_{name}"] = choose("aux_pool", arch.aux_pool, pooled)
    return sizes


def pools(arch: Architecture) -> dict[str, int | None]:
    """Window of the max pool, of stride 2, after each block; None where no pool follows it."""
    names = list(arch.widths)
    if not names:
        raise ValueError("widths is empty; a network needs at least one block")
    windows = {"4": arch.pool4_window}
    found: dict[str, int | None] = dict.fromkeys(names)
    for name, following in itertools.pairwise(names):
        if name[0] != following[0]:
            found[name] = windows.get(name[0], 3)
    return found


def smallest_size(arch: Architecture) -> int:
    """The smallest square image, in pixels, for which every stage and aux head has an output."""
    return next(n for n in range(1, 1024) if min(grid_sizes(arch, n).values()) >= 1)
