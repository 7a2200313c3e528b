"""Networks side by side: what each of their parts costs."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from gnet_jax.config import ConfigError, UserError, choose
from gnet_jax.inference.lettering import letter
from gnet_jax.lab.cost.ledger import Layer, Ledger, network_ledger
from gnet_jax.lab.palette import colour_of, hatch_of
from gnet_jax.model.architecture import VARIANTS, Choices
from gnet_jax.model.googlenet import CAFFE_STEM, GoogLeNet

# The parts of the published networks, in the order of tables.
PARTS = ("stem", "reductions", "1x1", "3x3", "5x5", "pool projections", "classifier", "aux heads")
BRANCHES = {
    "reduce3": "reductions",
    "reduce5": "reductions",
    "b1": "1x1",
    "b3": "3x3",
    "b5": "5x5",
    "pool_proj": "pool projections",
}
AUX = {"none": (), "4a": ("4a",), "4d": ("4d",), "both": ("4a", "4d")}
# What --compare may change: the field, and how its value is read.
KNOBS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "reductions": ("reduction_factor", float),
    "width": ("width_multiplier", float),
    "head": ("head", str),
    "stem": ("stem", str),
    "aux": ("aux_after", lambda value: choose("aux", value, AUX)),
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of some layers, for one image."""

    params: int = 0
    macs: int = 0
    activation_bytes: int = 0  # of their outputs in float32

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def astuple(cost: Cost) -> tuple[int, int, int]:
    """(params, macs, activation bytes)."""
    return cost.params, cost.macs, cost.activation_bytes


def cost_of(layer: Layer) -> Cost:
    """Returns the cost of one layer, without the outputs of pools and norms."""
    return Cost(layer.params, layer.macs, 4 * math.prod(layer.output))


def part_of(layer: Layer) -> str:
    """Returns which of `PARTS` a layer belongs to; an unknown layer is a part of its own."""
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
    """Returns the block that contains a layer, or its part if none does."""
    block = layer.name.partition("/")[0].removeprefix("inception_")
    return block if _in_block(layer) else part_of(layer)


def _in_block(layer: Layer) -> bool:
    return layer.name.startswith("inception_") and "/" in layer.name


def costs_by(ledger: Ledger, group: Any) -> dict[str, Cost]:
    """Returns the costs of a network's layers, summed by `part_of` or `block_of`."""
    found: dict[str, Cost] = {}
    for layer in ledger.layers:
        found[group(layer)] = found.get(group(layer), Cost()) + cost_of(layer)
    return found


def parts_in_order(ledgers: Iterable[Ledger]) -> list[str]:
    """Returns `PARTS`, then the parts that only these networks have."""
    own = {part_of(layer): None for ledger in ledgers for layer in ledger.layers}
    return list(dict.fromkeys(PARTS) | own)


def whole(costs: Mapping[str, Cost]) -> Cost:
    """Returns the cost of inference: all parts but the auxiliary heads."""
    return sum((cost for name, cost in costs.items() if name != "aux heads"), Cost())


def networks(words: Sequence[str], image_size: int, base: Choices) -> dict[str, Ledger]:
    """Returns the ledger of every network that `words` name.

    Args:
        words: each a variant, or FIELD=VALUE[,VALUE ...] as a change of `base`; + joins several:
            `naive`, `reductions=0.25,0.5`, `batch_norm+head=fc`.
        image_size: side of the input, in pixels.
        base: the network that is changed.

    Raises:
        ConfigError: for a word that names no network.
    """
    found = {}
    for word in words:
        for combination in itertools.product(*(_changes(term, word) for term in word.split("+"))):
            name = "+".join(term for term, _ in combination)
            fields = [field for _, change in combination for field in change]
            twice = [field for field in fields if fields.count(field) > 1]
            if twice:
                raise ConfigError(f"--compare {name}: {twice[0]} is given twice")
            changes = {field: value for _, change in combination for field, value in change.items()}
            try:
                arch = dataclasses.replace(base, **changes).build()
                found[name] = network_ledger(GoogLeNet(arch), image_size)
            except ValueError as error:
                raise ConfigError(f"--compare {name}: {error}") from error
    return found


def _changes(term: str, word: str) -> list[tuple[str, dict[str, Any]]]:
    """Returns the changes that one term of a word may stand for, each with its name."""
    if term in VARIANTS:
        return [(term, {"variant": term})]
    knob, equals, values = term.partition("=")
    if not equals or knob not in KNOBS:
        raise ConfigError(
            f"--compare {word}: {term!r} is neither a variant ({', '.join(VARIANTS)}) nor one of "
            f"{', '.join(KNOBS)} with =VALUE"
        )
    field, convert = KNOBS[knob]
    try:
        return [(f"{knob}={value}", {field: convert(value)}) for value in values.split(",")]
    except ValueError as error:
        raise ConfigError(f"--compare {word}: {knob}: {error}") from error


QUANTITIES = ("parameters", "multiply-adds", "activation bytes")
LABELS = {
    "reductions": "reduce",
    "pool projections": "proj",
    "classifier": "head",
    "aux heads": "aux",
}


def compare_tables(ledgers: Mapping[str, Ledger], image_size: int) -> list[Table]:
    """Returns a table for each quantity: a row for each network, a column for each part."""
    costs = {name: costs_by(ledger, part_of) for name, ledger in ledgers.items()}
    columns = parts_in_order(ledgers.values())
    tables = []
    for place, quantity in enumerate(QUANTITIES):
        note = ", float32 outputs of convolutions and linear layers" if place == 2 else ""
        table = Table(
            title=f"{quantity} of one {image_size}x{image_size} image{note}"
            if place
            else "parameters",
            title_justify="left",
        )
        table.add_column("network", no_wrap=True)
        for name in ("total", *(LABELS.get(part, part) for part in columns)):
            table.add_column(name, justify="right")
        for name, parts in costs.items():
            values = [whole(parts), *(parts.get(part, Cost()) for part in columns)]
            table.add_row(name, *(short(astuple(value)[place]) for value in values))
        tables.append(table)
    return tables


def short(value: int) -> str:
    """Returns four digits and a unit: 1.583 G, 112.9 M, 9.472 k."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return str(value)


def compare_rows(ledgers: Mapping[str, Ledger]) -> list[dict[str, Any]]:
    """Returns exact figures: a row for each network and part, and one for inference."""
    rows = []
    for name, ledger in ledgers.items():
        parts = costs_by(ledger, part_of)
        ordered = {part: parts[part] for part in parts_in_order([ledger]) if part in parts}
        for part, cost in {**ordered, "inference": whole(parts)}.items():
            params, macs, size = astuple(cost)
            rows.append(
                {
                    "network": name,
                    "part": part,
                    "params": params,
                    "macs": macs,
                    "activation_bytes": size,
                }
            )
    return rows


def draw_blocks(ledgers: Mapping[str, Ledger], out: Path) -> None:
    """Draw the cost of each block in each network: multiply-adds above, parameters below.

    Raises:
        UserError: if `out` cannot be written.
    """
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    costs = {name: costs_by(ledger, block_of) for name, ledger in ledgers.items()}
    blocks = list(dict.fromkeys(block for found in costs.values() for block in found))
    blocks.sort(key=lambda block: list(LABELS).index(block) if block in LABELS else -1)
    width = 0.82 / len(costs)
    for place, (axes, quantity) in enumerate(zip(panels, ("macs", "params"), strict=True)):
        for number, (name, found) in enumerate(costs.items()):
            places = [n + (number - (len(costs) - 1) / 2) * width for n in range(len(blocks))]
            heights = [getattr(found.get(block, Cost()), quantity) / 1e6 for block in blocks]
            look = {"color": colour_of(number), "hatch": hatch_of(number), "edgecolor": "white"}
            axes.bar(places, heights, width, label=name if place == 0 else None, lw=0, **look)
        axes.set(ylabel=("multiply-adds" if place == 0 else "parameters") + ", millions")
        axes.set_axisbelow(True)
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, ncols=min(len(costs), 4), loc="outside upper center")
    panels[1].set_xticks(range(len(blocks)), [LABELS.get(block, block) for block in blocks])
    try:
        letter(figure)
        figure.savefig(out, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {out}: {error}") from error
