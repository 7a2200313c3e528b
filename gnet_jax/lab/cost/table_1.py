"""The paper's Table 1 as printed, beside what its widths cost, and why the two differ.

The paper counts weights in units of 1024 and operations in millions of multiply-adds.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from rich.table import Table

from gnet_jax.lab.cost.ledger import Layer, network_ledger
from gnet_jax.model.googlenet import googlenet

# (params / 1024, multiply-adds / 10**6) as printed.
PRINTED = {
    "conv1": (2.7, 34),
    "conv2": (112, 360),
    "3a": (159, 128),
    "3b": (380, 304),
    "4a": (364, 73),
    "4b": (437, 88),
    "4c": (463, 100),
    "4d": (580, 119),
    "4e": (840, 170),
    "5a": (1072, 54),
    "5b": (1388, 71),
    "linear": (1000, 1),
}

_OWN_OPS = "the printed parameters contradict the printed operations, which are right"
REASONS = {
    "conv1": "the printed figures are those of two separable passes of 7 taps, not of a 7x7",
    "4a": "the printed parameters fit the 204 channels of its 3x3 in Google's release, not 208",
    "4b": "the printed parameters fit the input of 508 channels that 4a gives with 204 in its 3x3",
    "4c": _OWN_OPS,
    "4d": _OWN_OPS,
    "4e": _OWN_OPS,
    "5a": "the printed operations fit the 48 channels of its 5x5 reduction in Google's release, "
    "not 32; the printed parameters fit neither",
    "5b": _OWN_OPS,
}


class Comparison(NamedTuple):
    """A row of Table 1: printed and counted, in the paper's units."""

    layer: str
    printed_params: float  # in 1024
    params: float  # weights, without biases
    printed_ops: float  # in 10**6 multiply-adds
    ops: float
    params_agree: bool
    ops_agree: bool
    reason: str  # empty where both agree


def compare_with_print() -> Iterator[Comparison]:
    """Every row of Table 1 beside the count of its widths at 224x224.

    A figure agrees if the count, with or without biases, gives it rounded or cut off.
    """
    costs = network_ledger(googlenet("paper", aux_after=()), 224)
    layers = costs.layers
    for name, (printed_params, printed_ops) in PRINTED.items():
        own = [layer for layer in layers if _row_of(layer) == name]
        weights = sum(layer.weights for layer in own) / 1024
        with_biases = sum(layer.params for layer in own) / 1024
        ops = sum(layer.macs for layer in own) / 1e6
        params_agree = printed_params in {
            f(n) for f in (round, int) for n in (weights, with_biases)
        }
        ops_agree = printed_ops in (round(ops), int(ops))
        reason = "" if params_agree and ops_agree else REASONS[name]
        yield Comparison(
            name, printed_params, weights, printed_ops, ops, params_agree, ops_agree, reason
        )


def _row_of(layer: Layer) -> str:
    """The row of Table 1 that a layer is counted in."""
    first = layer.name.split("/")[0]
    if first == "classifier":
        return "linear"
    return first.removeprefix("inception_").removesuffix("_reduce")


def print_table(rows: Iterable[Comparison]) -> Table:
    """Returns the paper's Table 1 beside the counts, with a mark and the reason of differences."""
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
