"""The table of a sweep for the terminal and as Markdown, and its figures as CSV."""

import csv
import io
from collections.abc import Sequence

from rich.table import Table

from gnet_jax.lab.results import COLUMNS, Row, all_heads, cells_of_row, head_cells

LEGEND = (
    "top-1 and losses: validation images, after the last step; mean \N{PLUS-MINUS SIGN} sample "
    "standard deviation over the seeds. images/s: median training speed. step memory: of one "
    "training step, by XLA's plan."
)


def header(rows: Sequence[Row]) -> list[str]:
    """What stands above the columns."""
    return [*COLUMNS, *(f"{head} loss" for head in all_heads(rows))]


def results_table(rows: Sequence[Row], title: str) -> Table:
    """The table for a terminal."""
    table = Table(title=title, title_justify="left")
    for name in header(rows):
        justify = "left" if name == "config" else "right"
        table.add_column(name, justify=justify, overflow="fold")  # no figure is cut
    for row in rows:
        cells = [*cells_of_row(row), *head_cells(row, all_heads(rows))]
        table.add_row(*(text for text, _ in cells))
    return table


def csv_of_runs(rows: Sequence[Row]) -> str:
    """A line for every finished run, its figures unrounded: shares of 1, bytes, images a second."""
    heads = all_heads(rows)
    costs = ("macs", "params", "params_with_aux", "memory_bytes", "images_per_sec")
    of_heads = [f"{head}_{figure}" for head in heads for figure in ("loss", "top1")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("config", "seed", "top1", *costs, *of_heads))
    for row in rows:
        for seed, result in row.done.items():
            found = [result["heads"].get(head, {}) for head in heads]
            values = [each.get(figure) for each in found for figure in ("loss", "top1")]
            writer.writerow((row.name, seed, result["top1"], *map(result.get, costs), *values))
    return out.getvalue()


def markdown_table(rows: Sequence[Row]) -> str:
    """The table in Markdown."""
    names = header(rows)
    lines = [names, ["---", *["---:"] * (len(names) - 1)]]
    lines += [
        [text for text, _ in [*cells_of_row(row), *head_cells(row, all_heads(rows))]]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
