"""Networks side by side: what each of their parts costs."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gnet_jax.config import ConfigError
from gnet_jax.lab.ledger import Layer, Ledger, network_ledger
from gnet_jax.model import VARIANTS, googlenet
from gnet_jax.model.googlenet import CAFFE_STEM

# The parts of the published networks, in the order of tables. A layer that they lack is a part of
# its own, named after itself.
PARTS = (
    "stem",
    "reductions",
    "1x1",
    "3x3",
    "5x5",
    "pool projections",
    "classifier",
    "aux heads",
)
BRANCHES = {
    "reduce3": "reductions",
    "reduce5": "reductions",
    "b1": "1x1",
    "b3": "3x3",
    "b5": "5x5",
    "pool_proj": "pool projections",
}
KNOBS = {"reductions": "reduction_factor", "width": "width_multiplier"}
AUX = {"none": (), "4a": ("4a",), "4d": ("4d",), "both": ("4a", "4d")}
CHOICES = {"head": ("average_pool", "fc"), "stem": ("imagenet", "small"), "aux": tuple(AUX)}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of some layers, for one image."""

    params: int = 0
    macs: int = 0
    activation_bytes: int = 0  # of their outputs in float32

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def astuple(cost: Cost) -> tuple[int, int, int]:
    """(params, macs, activation bytes)."""
    return cost.params, cost.macs, cost.activation_bytes


def cost_of(layer: Layer) -> Cost:
    """The cost of one layer. Pools and norms have outputs of their own, which are not counted."""
    return Cost(layer.params, layer.macs, 4 * math.prod(layer.output))


def part_of(layer: Layer) -> str:
    """Which of `PARTS` a layer belongs to, or its own name in its block, or in the network."""
    if layer.is_aux:
        return "aux heads"
    if layer.name in ("classifier", "fc"):
        return "classifier"
    if layer.name in CAFFE_STEM:
        return "stem"
    if not _in_block(layer):
        return layer.name
    branch = layer.name.partition("/")[2]
    return BRANCHES.get(branch, branch)


def block_of(layer: Layer) -> str:
    """The block that a layer is in; outside of the blocks, its part."""
    block = layer.name.partition("/")[0].removeprefix("inception_")
    return block if _in_block(layer) else part_of(layer)


def _in_block(layer: Layer) -> bool:
    return layer.name.startswith("inception_") and "/" in layer.name


def costs_by(ledger: Ledger, group: Any) -> dict[str, Cost]:
    """The costs of a network's layers summed by `part_of` or `block_of`, in the layers' order."""
    found: dict[str, Cost] = {}
    for layer in ledger.layers:
        found[group(layer)] = found.get(group(layer), Cost()) + cost_of(layer)
    return found


def parts_in_order(ledgers: Iterable[Ledger]) -> list[str]:
    """`PARTS`, then the parts that only these networks have."""
    own = {part_of(layer): None for ledger in ledgers for layer in ledger.layers}
    return list(dict.fromkeys(PARTS) | own)


def whole(costs: Mapping[str, Cost]) -> Cost:
    """The cost of the network that infers: all but the auxiliary heads."""
    return sum((cost for name, cost in costs.items() if name != "aux heads"), Cost())


def networks(words: Sequence[str], image_size: int, **base: Any) -> dict[str, Ledger]:
    """The ledger of every network that `words` name.

    Args:
        words: each a variant, or KNOB=VALUE[,VALUE ...] on the base; several joined by "+" hold
            together: `naive`, `reductions=0.25,0.5`, `batch_norm+head=fc`.
        image_size: side of the input, in pixels.
        base: the variant and knobs (of `googlenet`) of what no word names.

    Raises:
        ConfigError: for a word that names no network.
    """
    found = {}
    for word in words:
        choices = [_choices(term, word) for term in word.split("+")]
        for combination in itertools.product(*choices):
            name = "+".join(term for term, _ in combination)
            _check_no_knob_twice([knob for _, knob in combination], f"--compare {name}")
            knobs = base | {key: value for _, knob in combination for key, value in knob.items()}
            try:
                found[name] = network_ledger(googlenet(**knobs), image_size)
            except ValueError as error:
                raise ConfigError(f"--compare {name}: {error}") from error
    return found


def _check_no_knob_twice(terms: Sequence[Mapping[str, Any]], what: str) -> None:
    named = [knob for term in terms for knob in term]
    for knob in named:
        if named.count(knob) > 1:
            raise ConfigError(f"{what}: {knob} is named twice; a network has one")


def _choices(term: str, word: str) -> list[tuple[str, dict[str, Any]]]:
    """What one term of a word may stand for: (its name, knobs)."""
    if term in VARIANTS:
        return [(term, {"variant": term})]
    knob, equals, values = term.partition("=")
    if not equals or knob not in (*KNOBS, *CHOICES):
        raise ConfigError(
            f"--compare {word}: {term!r} is no variant ({', '.join(VARIANTS)}) and no "
            f"{', '.join((*KNOBS, *CHOICES))}=VALUE"
        )
    found = []
    for value in values.split(","):
        if knob in CHOICES and value not in CHOICES[knob]:
            raise ConfigError(
                f"--compare {word}: {knob} is {value!r}; choose one of {', '.join(CHOICES[knob])}"
            )
        try:
            number = float(value) if knob in KNOBS else value
        except ValueError as error:
            raise ConfigError(f"--compare {word}: {knob} is {value!r}, no number") from error
        own: dict[str, Any] = {KNOBS.get(knob, knob): number}
        if knob == "aux":
            own = {"aux_after": AUX[value]}
        found.append((f"{knob}={value}", own))
    return found
