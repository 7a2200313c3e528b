"""The cost ledger as a table for people, and as CSV."""

import csv
import io

from rich.table import Table

from gnet_jax.lab.cost.ledger import Ledger


def ledger_table(costs: Ledger, title: str) -> Table:
    """Every layer of `costs`, the auxiliary heads marked, and the sums with and without them."""
    table = Table(title=title, title_justify="left")
    for name in ("layer", "kernel", "output", "parameters", "multiply-adds"):
        table.add_column(name, justify="right" if name != "layer" else "left", no_wrap=True)
    for layer in costs.layers:
        kernel = layer.kind
        if layer.kind == "conv":
            kernel = f"{'x'.join(map(str, layer.kernel[:-2]))}/{layer.stride}"
        table.add_row(
            f"{layer.name} *" if layer.is_aux else layer.name,
            kernel,
            "x".join(map(str, layer.output)),
            f"{layer.params:,}",
            f"{layer.macs:,}",
        )
    table.add_section()
    table.add_row("inference", "", "", f"{costs.params:,}", f"{costs.macs:,}")
    if costs.params_with_aux != costs.params:
        with_aux = f"{costs.params_with_aux:,}", f"{costs.macs_with_aux:,}"
        table.add_row("training (with * auxiliary heads)", "", "", *with_aux)
    return table


def ledger_csv(costs: Ledger) -> str:
    """Every layer of `costs` as CSV with a header; shapes as 7x7x3x64."""
    rows = costs.as_dict()["layers"]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        sizes = {name: "x".join(map(str, row[name])) for name in ("kernel", "output")}
        writer.writerow(row | sizes)
    return text.getvalue()
