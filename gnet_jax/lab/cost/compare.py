"""Compares the costs of networks, and the costs in the paper's Table 1 with those counted here."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from gnet_jax.config import ConfigError, choose
from gnet_jax.inference.lettering import save
from gnet_jax.lab.cost.ledger import Layer, Ledger, network_ledger, number_table
from gnet_jax.lab.palette import COLOURS, colour_of, style
from gnet_jax.model.architecture import VARIANTS, Choices
from gnet_jax.model.googlenet import GoogLeNet, googlenet
from gnet_jax.model.names import CAFFE_STEM

BRANCHES = {
    "reduce3": "reductions",
    "reduce5": "reductions",
    "b1": "1x1",
    "b3": "3x3",
    "b5": "5x5",
    "pool_proj": "pool projections",
}
# The parts of the published networks, in the order of the columns in tables.
PARTS = tuple(dict.fromkeys(("stem", *BRANCHES.values(), "classifier", "aux heads")))
LABELS = {
    "reductions": "reduce",
    "pool projections": "proj",
    "classifier": "head",
    "aux heads": "aux",
}
AUX = {"none": (), "4a": ("4a",), "4d": ("4d",), "both": ("4a", "4d")}
# What --compare can change: the config's field, and the function that parses its value.
KNOBS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "reductions": ("reduction_factor", float),
    "width": ("width_multiplier", float),
    "head": ("head", str),
    "stem": ("stem", str),
    "aux": ("aux_after", lambda value: choose("aux", value, AUX)),
}
# The attributes of a layer that are compared, and the titles of their tables.
QUANTITIES = {
    "params": "parameters",
    "macs": "multiply-adds of one {size} image",
    "activation_bytes": "activation bytes of one {size} image, float32 outputs of convolutions and "
    "linear layers",
}


def part_of(layer: Layer) -> str:
    """Returns the part of the network that has this layer: one of `PARTS`, or the layer's name."""
    block, _, branch = layer.name.partition("/")
    if layer.is_aux:
        return "aux heads"
    if layer.name in ("classifier", "fc"):
        return "classifier"
    if block.startswith("inception_") and branch:
        return BRANCHES.get(branch, branch)
    return "stem" if layer.name in CAFFE_STEM else layer.name


def block_of(layer: Layer) -> str:
    """Returns the inception block that contains a layer, or `part_of(layer)` if none does."""
    block, slash, _ = layer.name.partition("/")
    in_block = block.startswith("inception_") and slash
    return block.removeprefix("inception_") if in_block else part_of(layer)


def layers_by(ledger: Ledger, group: Callable[[Layer], str]) -> dict[str, list[Layer]]:
    """Returns the layers of a network by group; `group` returns the name of a layer's group."""
    found: dict[str, list[Layer]] = {}
    for layer in ledger.layers:
        found.setdefault(group(layer), []).append(layer)
    return found


def total(layers: Iterable[Layer], quantity: str) -> int:
    """Returns the sum of one of `QUANTITIES` over `layers`."""
    return sum(getattr(layer, quantity) for layer in layers)


def networks(words: Sequence[str], image_size: int, base: Choices) -> dict[str, Ledger]:
    """Returns the costs of every network that `words` describe, by name.

    A word is a variant (`naive`) or a change of `base`, KNOB=VALUE[,VALUE ...], which gives one
    network for each value (`reductions=0.25,0.5`). A + combines several changes in one network
    (`batch_norm+head=fc`). Raises ConfigError for an invalid word.
    """
    found = {}
    for word in words:
        for combination in itertools.product(*(_changes(term, word) for term in word.split("+"))):
            name = "+".join(term for term, _, _ in combination)
            changes = {field: value for _, field, value in combination}
            field, times = Counter(field for _, field, _ in combination).most_common(1)[0]
            if times > 1:
                raise ConfigError(f"--compare {name}: {field} is given twice")
            try:
                arch = dataclasses.replace(base, **changes).build()
                found[name] = network_ledger(GoogLeNet(arch), image_size)
            except ValueError as error:
                raise ConfigError(f"--compare {name}: {error}") from error
    return found


def _changes(term: str, word: str) -> list[tuple[str, str, Any]]:
    """Returns (name, field, value) of each change that `term` requests; errors also name `word`."""
    if term in VARIANTS:
        return [(term, "variant", term)]
    knob, equals, values = term.partition("=")
    if not equals or knob not in KNOBS:
        raise ConfigError(
            f"--compare {word}: {term!r} is neither a variant ({', '.join(VARIANTS)}) nor one of "
            f"{', '.join(KNOBS)} with =VALUE"
        )
    field, convert = KNOBS[knob]
    try:
        return [(f"{knob}={value}", field, convert(value)) for value in values.split(",")]
    except ValueError as error:
        raise ConfigError(f"--compare {word}: {knob}: {error}") from error


def compare_tables(ledgers: Mapping[str, Ledger], image_size: int) -> list[Table]:
    """Returns a table for each quantity, with a row for each network and a column for each part."""
    costs = {name: layers_by(ledger, part_of) for name, ledger in ledgers.items()}
    columns = list(dict.fromkeys((*PARTS, *itertools.chain(*costs.values()))))
    tables = []
    for quantity, title in QUANTITIES.items():
        title = title.format(size=f"{image_size}x{image_size}")
        labels = (LABELS.get(part, part) for part in columns)
        table = number_table(title, "network", "total", *labels)
        for name, parts in costs.items():
            inference = (layer for layer in ledgers[name].layers if not layer.is_aux)
            layers = [inference, *(parts.get(part, ()) for part in columns)]
            table.add_row(name, *(short(total(each, quantity)) for each in layers))
        tables.append(table)
    return tables


def short(value: int) -> str:
    """Returns the value as text with four digits and a unit: 1.583 G, 112.9 M, 9.472 k."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return str(value)


def compare_rows(ledgers: Mapping[str, Ledger]) -> list[dict[str, Any]]:
    """Returns exact costs: for each network, a row for each part and a total for inference."""
    rows = []
    for name, ledger in ledgers.items():
        parts = layers_by(ledger, part_of)
        ordered = {part: parts[part] for part in (*PARTS, *parts) if part in parts}
        ordered["inference"] = [layer for layer in ledger.layers if not layer.is_aux]
        for part, layers in ordered.items():
            costs = {quantity: total(layers, quantity) for quantity in QUANTITIES}
            rows.append({"network": name, "part": part} | costs)
    return rows


def draw_blocks(ledgers: Mapping[str, Ledger], out: Path) -> None:
    """Draw the multiply-adds (above) and parameters (below) of each network's blocks to `out`."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    costs = {name: layers_by(ledger, block_of) for name, ledger in ledgers.items()}
    blocks = list(dict.fromkeys(itertools.chain(*costs.values())))
    blocks.sort(key=lambda block: list(LABELS).index(block) if block in LABELS else -1)
    width = 0.82 / len(costs)
    quantities = (("macs", "multiply-adds"), ("params", "parameters"))
    for axes, (quantity, title) in zip(panels, quantities, strict=True):
        for number, (name, found) in enumerate(costs.items()):
            places = np.arange(len(blocks)) + (number - (len(costs) - 1) / 2) * width
            heights = [total(found.get(block, ()), quantity) / 1e6 for block in blocks]
            hatch = ("", "////", "....", "xxxx")[number // len(COLOURS) % 4]
            look = {"color": colour_of(number), "hatch": hatch, "edgecolor": "white"}
            axes.bar(places, heights, width, label=name, lw=0, **look)
        axes.set(ylabel=f"{title}, millions")
        style(axes, axis="y")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, ncols=min(len(costs), 4), loc="outside upper center")
    panels[1].set_xticks(range(len(blocks)), [LABELS.get(block, block) for block in blocks])
    save(figure, out, dpi=150)


# The figures printed in the paper's Table 1: (params / 1024, multiply-adds / 10**6).
PRINTED = {
    "conv1": (2.7, 34), "conv2": (112, 360), "3a": (159, 128), "3b": (380, 304),
    "4a": (364, 73), "4b": (437, 88), "4c": (463, 100), "4d": (580, 119), "4e": (840, 170),
    "5a": (1072, 54), "5b": (1388, 71), "linear": (1000, 1),
}  # fmt: skip
REASONS = {
    **dict.fromkeys(
        ("4c", "4d", "4e", "5b"),
        "the printed parameters contradict the printed operations, which are right",
    ),
    "conv1": "the printed figures are those of two separable passes of 7 taps, not of a full 7x7",
    "4a": "the printed parameters fit the 204 channels of its 3x3 in Google's release, not 208",
    "4b": "the printed parameters fit an input of 508 channels, as from a 4a with 204 in its 3x3",
    "5a": "the printed operations fit the 48 channels of its 5x5 reduction in Google's release, "
    "not 32; the printed parameters fit neither",
}


class Comparison(NamedTuple):
    """A row of the paper's Table 1, in units of 1024 weights and 10**6 multiply-adds."""

    layer: str
    printed_params: float
    params: float
    printed_ops: float
    ops: float
    params_agree: bool
    ops_agree: bool
    reason: str  # empty if both agree


def compare_with_print() -> Iterator[Comparison]:
    """Yield every row of Table 1: its printed costs, and our count for its widths at 224x224.

    The two agree if the printed number is the rounded or truncated count, with or without biases.
    """
    names = {"classifier": "linear", "conv2_reduce": "conv2"}
    rows = layers_by(
        network_ledger(googlenet("paper", aux_after=()), 224),
        lambda layer: block_of(layer) if "/" in layer.name else names.get(layer.name, layer.name),
    )
    for name, (params, ops) in PRINTED.items():
        weights = sum(math.prod(layer.kernel) for layer in rows[name]) / 1024
        counts = (weights, total(rows[name], "params") / 1024)
        params_agree = params in {rounded(n) for rounded in (round, int) for n in counts}
        counted = total(rows[name], "macs") / 1e6
        ops_agree = ops in (round(counted), int(counted))
        reason = "" if params_agree and ops_agree else REASONS[name]
        yield Comparison(name, params, weights, ops, counted, params_agree, ops_agree, reason)


def print_table(rows: Iterable[Comparison]) -> Table:
    """Returns a table of the printed and the counted numbers, with a reason if they disagree."""
    title = "the paper's Table 1, printed and counted (K: 1024 weights, M: 10^6 multiply-adds)"
    columns = ("params printed", "counted", "ops printed", "counted")
    table = number_table(title, "layer", *columns)
    table.add_column("why they differ (*)")
    for row in rows:
        params = f"{row.params:.1f}K{'' if row.params_agree else ' *'}"
        ops = f"{row.ops:.1f}M{'' if row.ops_agree else ' *'}"
        printed = f"{row.printed_params:g}K", f"{row.printed_ops:g}M"
        table.add_row(row.layer, printed[0], params, printed[1], ops, row.reason)
    return table
