"""Networks side by side: what each of their parts costs."""

import csv
import dataclasses
import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from gnet_jax.config import ConfigError, UserError
from gnet_jax.inference.lettering import letter
from gnet_jax.lab.cost.ledger import Layer, Ledger, network_ledger
from gnet_jax.lab.cost.table_1 import Comparison
from gnet_jax.lab.palette import colour_of, hatch_of
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


QUANTITIES = ("parameters", "multiply-adds", "activation bytes")
LABELS = {
    "reductions": "reduce",
    "pool projections": "proj",
    "classifier": "head",
    "aux heads": "aux",
}


def compare_tables(ledgers: Mapping[str, Ledger], image_size: int) -> list[Table]:
    """One table a quantity: a row for each network, a column for each part."""
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
    """Four digits and a unit: 1.583 G, 112.9 M, 9.472 k."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return str(value)


def compare_rows(ledgers: Mapping[str, Ledger]) -> list[dict[str, Any]]:
    """A row for each network and part, and one for what infers, with exact figures."""
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


def compare_csv(ledgers: Mapping[str, Ledger]) -> str:
    """`compare_rows` as CSV with a header."""
    rows, text = compare_rows(ledgers), io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def print_table(rows: list[Comparison]) -> Table:
    """The paper's Table 1 beside the counts; what differs is marked, with the reason."""
    table = Table(
        title="the paper's Table 1, printed and counted (K: 1024 weights, M: 10^6 multiply-adds)",
        title_justify="left",
    )
    for name in ("layer", "params printed", "counted", "ops printed", "counted"):
        table.add_column(name, justify="left" if name == "layer" else "right", no_wrap=True)
    table.add_column("where they differ (*), why")
    for row in rows:
        marks = ["" if agree else " *" for agree in (row.params_agree, row.ops_agree)]
        table.add_row(
            row.layer,
            f"{row.printed_params:g}K",
            f"{row.params:.1f}K{marks[0]}",
            f"{row.printed_ops:g}M",
            f"{row.ops:.1f}M{marks[1]}",
            row.reason,
        )
    return table


def draw_blocks(ledgers: Mapping[str, Ledger], out: Path) -> None:
    """Draw what each block costs in each network: multiply-adds above, parameters below.

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
