"""Architectures of the network as plain data, without jax: variants, and changes to them."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from gnet_jax.errors import UserError, choose
from gnet_jax.model import custom
from gnet_jax.model.widths import GOOGLE_RELEASE, TABLE_1, Widths, scaled
from gnet_jax.ops.sizes import conv_size, pooled_size

VariantName = Literal[
    "paper", "batch_norm", "torchvision", "google_release", "naive", "naive_batch_norm"
]

NORMS = ("lrn", "batch_norm", "none")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """All options that determine the network. The defaults are the values in the paper."""

    num_classes: int = 1000
    """Number of classes: the outputs of the main and of every auxiliary classifier."""
    # hash=False: a static argument of jax.jit must have a hash, and a mapping has none.
    widths: Mapping[str, Widths] = dataclasses.field(
        default_factory=lambda: dict(TABLE_1), hash=False, metadata={"choice": tuple[str, ...]}
    )
    """Output channels of the convolutions of a block, such as 4e=256,160,320,32,128,128. The six
    numbers are for the 1x1 convolution, the 3x3 reduction, the 3x3, the 5x5 reduction, the 5x5, and
    the pool projection. A max pool follows a block if the next block's name begins with a different
    digit."""
    naive: bool = False
    """Use the naive Inception block (paper, Fig. 2a): no 1x1 reductions and no pool projection."""
    norm: str = "lrn"
    """lrn: local response normalisation, as in the paper. batch_norm: replaces LRN and the biases
    of the convolutions. none: no normalisation. FILE.py:NAME: your own function NAME in FILE.py,
    which returns a norm."""
    lrn: tuple[int, float, float, float] = (5, 1.0, 1e-4 / 5, 0.75)
    """Size, bias, alpha and power of LRN, which divides a value by (bias + alpha * s)^power. s is
    the sum of the squares of `size` neighbouring channels, so alpha is Caffe's divided by 5."""
    block: str | None = None
    """FILE.py:NAME: your own block NAME in FILE.py, used instead of the Inception block."""
    branch5_kernel: int = 5
    """Kernel size of the 5x5 branch; torchvision and TF-slim use 3."""
    pool4_window: int = 3
    """Window of the max pool after stage 4; torchvision and TF-slim use 2."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """small: a 3x3 first convolution and only one max pool, for images of 16 to 64 pixels."""
    stem_padding: Literal["caffe", "same"] = "caffe"
    """Padding of the first convolution, which has stride 2. caffe: (3, 3). same: TensorFlow's
    padding, (2, 3) for images with an even side. With "same", the network equals TF-slim's if the
    image side is a multiple of 16, or one less; for other sides TF-slim's pools differ."""
    stem_widths: tuple[int, int, int] = (64, 64, 192)
    """Channels of conv1, conv2_reduce and conv2."""
    aux_after: tuple[str, ...] = ("4a", "4d")
    """Blocks followed by an auxiliary head; --model.aux-after without a value means none."""
    aux_widths: tuple[int, int] = (128, 1024)
    """Channels of the 1x1 convolution, and units of the hidden layer, of every auxiliary head."""
    aux_pool: Literal["caffe", "adaptive"] = "caffe"
    """Average pool of the auxiliary heads. caffe: window 5, stride 3. adaptive: 4x4 output."""
    aux_dropout: float = 0.7
    """Dropout rate of the auxiliary classifiers."""
    head: Literal["average_pool", "fc"] = "average_pool"
    """fc: a fully connected layer instead of the paper's global average pooling."""
    dropout: float = 0.4
    """Dropout rate of the main classifier."""

    def __post_init__(self) -> None:
        for name in ("norm", "block"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, custom.reference(getattr(self, name)))

    @property
    def own_parts(self) -> list[str]:
        """References ("FILE.py:NAME") to the user's own norm and block, if there are any."""
        norm = [] if self.norm in NORMS else [self.norm]
        return norm if self.block is None else [*norm, self.block]

    def check(self) -> None:
        """Raise a UserError if a field has an invalid value, naming the field, value and limit."""
        in_order = tuple(name for name in self.widths if name in self.aux_after)
        blocks = f"some of the blocks {', '.join(self.widths)}, each at most once, in this order"
        sizes = [*self.stem_widths, *self.aux_widths, *itertools.chain(*self.widths.values())]
        norm_is_known = self.norm in NORMS or ":" in self.norm
        size, bias, alpha, power = self.lrn
        block_fits = self.block is None or (":" in self.block and not self.naive)
        limits = {
            "num_classes": (self.num_classes >= 2, "at least 2"),
            "widths": (bool(self.widths), "at least one block"),
            "norm": (norm_is_known, f"{', '.join(NORMS)} or FILE.py:NAME"),
            "lrn": (
                size % 2 == 1 and bias > 0 and alpha >= 0 and power >= 0 and 4 * power % 1 == 0,
                "an odd size, a positive bias, alpha at least 0, and 0, 0.25, 0.5, ... as power",
            ),
            "block": (block_fits, "FILE.py:NAME, and only without naive"),
            "branch5_kernel": (self.branch5_kernel % 2 == 1, "odd and at least 1"),
            "pool4_window": (self.pool4_window >= 2, "at least 2"),
            "stem_widths": (min(sizes, default=1) >= 1, "at least 1, like all widths"),
            "aux_after": (self.aux_after == in_order, blocks),
            "aux_dropout": (0 <= self.aux_dropout < 1, "in [0, 1)"),
            "dropout": (0 <= self.dropout < 1, "in [0, 1)"),
        }
        for name, (holds, limit) in limits.items():
            if not holds:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be {limit}")
        for name, kind in get_type_hints(Architecture).items():
            if get_origin(kind) is Literal:
                choose(name, getattr(self, name), dict.fromkeys(get_args(kind)))


VARIANTS: Mapping[str, Architecture] = {
    "paper": Architecture(),
    "batch_norm": Architecture(norm="batch_norm"),
    "torchvision": Architecture(
        norm="batch_norm", branch5_kernel=3, pool4_window=2, aux_pool="adaptive", dropout=0.2
    ),
    "google_release": Architecture(
        num_classes=1008,
        widths=dict(GOOGLE_RELEASE),
        lrn=(9, 1.0, 1e-4 / 9, 0.5),
        stem_padding="same",
    ),
    "naive": Architecture(naive=True),
    "naive_batch_norm": Architecture(naive=True, norm="batch_norm"),
}


@dataclasses.dataclass(frozen=True)
class Start:
    """The variant from which an `Architecture` is made, and factors that scale its widths."""

    variant: VariantName = "paper"
    """paper: as published. batch_norm: batch norm instead of LRN. torchvision: as in torchvision,
    with 3x3 instead of 5x5 convolutions and one 2x2 max pool. google_release: the
    network that Google released for DeepDream. naive: no reductions. naive_batch_norm: no
    reductions, and batch norm instead of LRN."""
    reduction_factor: float = 1.0
    """Factor for the widths of the 1x1 reductions before the 3x3 and 5x5 convolutions."""
    width_multiplier: float = 1.0
    """Factor for the widths of all layers except classifiers; applied after reduction_factor."""
    blocks: tuple[str, ...] | None = None
    """Blocks of the variant to keep, for a shallower network; None keeps all."""


Kind = TypeVar("Kind")


def _with_optional_fields(kind: type[Kind]) -> type[Kind]:
    """Returns `kind` with None as the default of all fields inherited from `Architecture`."""
    own = dataclasses.fields(Architecture)
    fields = [(f.name, f.metadata.get("choice", f.type) | None, None) for f in own]
    made: Any = dataclasses.make_dataclass(kind.__name__, fields, bases=(kind,), frozen=True)
    made.__module__, made.__doc__ = kind.__module__, kind.__doc__
    return made


@_with_optional_fields
@dataclasses.dataclass(frozen=True)
class Choices(Architecture, Start):
    """A variant and changes to it. A field that is None has the variant's value.

    `widths` is stored as text ("4e=256,..."), for the command line; a mapping is converted to text.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.widths, Mapping):
            text = (f"{name}={','.join(map(str, w))}" for name, w in self.widths.items())
            object.__setattr__(self, "widths", tuple(text))

    def build(self) -> Architecture:
        """Returns the architecture. Raises UserError naming an invalid field."""
        arch = choose("variant", self.variant, VARIANTS)
        for name in ("reduction_factor", "width_multiplier"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0")
        kept = {name: choose("blocks", name, arch.widths) for name in self.blocks or arch.widths}
        widths = {}
        for name, w in arch.widths.items():
            if name in kept:
                reduce3, reduce5 = scaled((w.reduce3, w.reduce5), self.reduction_factor)
                narrowed = w._replace(reduce3=reduce3, reduce5=reduce5)
                widths[name] = Widths(*scaled(narrowed, self.width_multiplier))
        changes: dict[str, Any] = {
            "stem_widths": scaled(arch.stem_widths, self.width_multiplier),
            "aux_widths": scaled(arch.aux_widths, self.width_multiplier),
        }
        for field in dataclasses.fields(Architecture):
            if getattr(self, field.name) is not None:
                changes[field.name] = getattr(self, field.name)
        if self.aux_after is not None:
            changes["aux_after"] = tuple(self.aux_after)
        changes["widths"] = widths | _parse_widths(self.widths or ())
        arch = dataclasses.replace(arch, **changes)
        arch.check()
        return arch


def architecture(
    variant: str = "paper", num_classes: int | None = None, **changes: Any
) -> Architecture:
    """Returns the named variant, changed by the other arguments, which are fields of `Choices`.

    `widths` changes the widths of blocks, and adds blocks that the variant lacks. Raises UserError
    naming an invalid field, its value and its limit.
    """
    return Choices(**{"variant": variant, "num_classes": num_classes, **changes}).build()


def _parse_widths(texts: Iterable[str]) -> dict[str, Widths]:
    found = {}
    for text in texts:
        name, _, numbers = text.partition("=")
        try:
            found[name] = Widths(*map(int, numbers.split(",")))
        except (TypeError, ValueError):
            limit = f"BLOCK={','.join(Widths._fields)}"
            raise UserError(f"widths is {text!r}; it must be {limit}") from None
    return found


def grid_sizes(arch: Architecture, size: int) -> dict[str, int]:
    """Returns the side length of each stage's feature map for a `size` x `size` image.

    The keys are "stem", "3", "4", "5", and "aux_4a", ... for the average pools of the auxiliary
    heads. A side below 1 means that the image is too small for the stage.
    """
    conv1 = conv_size(size, 7, stride=2, pad=3)  # the same for both values of stem_padding
    stems = {"imagenet": pooled_size(conv1, 3, 2), "small": size}
    sizes = {"stem": choose("stem", arch.stem, stems)}
    side = pooled_size(sizes["stem"], 3, 2)
    for name, pool in pools(arch).items():
        sizes.setdefault(name[0], side)
        side = side if pool is None else pooled_size(side, pool, 2)
    for name in arch.aux_after:
        side = sizes[name[0]]
        pooled = {"caffe": pooled_size(side, 5, 3), "adaptive": min(side, 4)}
        sizes[f"aux_{name}"] = choose("aux_pool", arch.aux_pool, pooled)
    return sizes


def pools(arch: Architecture) -> dict[str, int | None]:
    """Returns for each block the window of the max pool (stride 2) that follows it, or None."""
    found: dict[str, int | None] = dict.fromkeys(arch.widths)
    for name, following in itertools.pairwise(arch.widths):
        if name[0] != following[0]:
            found[name] = arch.pool4_window if name[0] == "4" else 3
    return found


def smallest_size(arch: Architecture) -> int:
    """Returns the smallest side of a square image at which every stage and head has an output."""
    return next(n for n in range(1, 1024) if min(grid_sizes(arch, n).values()) >= 1)
