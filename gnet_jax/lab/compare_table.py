"""Networks side by side as tables, CSV, JSON, and a picture."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from gnet_jax.config import UserError
from gnet_jax.inference.lettering import letter
from gnet_jax.lab.compare import (
    Cost,
    astuple,
    block_of,
    costs_by,
    part_of,
    parts_in_order,
    whole,
)
from gnet_jax.lab.ledger import Ledger
from gnet_jax.lab.palette import colour_of, hatch_of
from gnet_jax.lab.table_1 import Comparison

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
