"""What a sweep came to, as one HTML page that needs nothing else, as Markdown and as CSV."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnet_jax.config import UserError, json_text
from gnet_jax.lab.report_page import Figure, Page, render
from gnet_jax.lab.result_figures import figures_of, to_svg
from gnet_jax.lab.results import (
    Row,
    all_heads,
    cells_of_row,
    failures,
    head_cells,
    pareto_front,
    rows_of,
)
from gnet_jax.lab.results_table import LEGEND, csv_of_runs, header, markdown_table
from gnet_jax.lab.sweep import read_json, read_sweep
from gnet_jax.training.record import RECORD_FILE

# Fields in which the runs of one config differ by design.
OWN = ("workdir", "seed")


def write_report(workdir: Path, page: Path, figures: Path | None = None) -> list[Path]:
    """Write `page` (HTML), its Markdown and CSV and, into `figures`, SVG files; returns all.

    Raises:
        UserError: if `workdir` holds no sweep, or a file cannot be written.
    """
    if page.suffix in (".md", ".csv"):
        raise UserError(
            f"--out is {page}; it must end in .html (.md and .csv are written beside it)"
        )
    sweep = read_sweep(workdir)
    rows = rows_of(sweep)
    title, about = _title_and_text(sweep.about, workdir)
    record = versions_of(rows)
    markdown = page.with_suffix(".md")
    drawn = figures_of(rows)
    svgs = [to_svg(each.figure, each.caption) for each in drawn]
    content = Page(
        title=title,
        about=about,
        header=header(rows),
        rows=[[*cells_of_row(row), *head_cells(row, all_heads(rows))] for row in rows],
        marked=[row.name for row in pareto_front(rows, "macs")],
        legend=LEGEND,
        notes=notes_of(rows),
        figures=[Figure(each.caption, svg) for each, svg in zip(drawn, svgs, strict=True)],
        differing=differing_fields(sweep.configs),
        configs={
            name: {field: value for field, value in config.items() if field not in OWN}
            for name, config in sweep.configs.items()
        },
        record=record,
    )
    files = {
        page: render(content),
        markdown: _markdown(content, rows),
        page.with_suffix(".csv"): csv_of_runs(rows),
    }
    if figures is not None:
        files |= {figures / f"{each.name}.svg": svg for each, svg in zip(drawn, svgs, strict=True)}
    for file, text in files.items():
        try:
            if file.parent == figures:
                file.parent.mkdir(exist_ok=True)
            file.write_text(text, "utf-8")
        except OSError as error:  # a full disk names no file
            raise UserError(f"cannot write {file}: {error.strerror}") from error
    return list(files)


def notes_of(rows: Sequence[Row]) -> list[str]:
    """What a reader must know of the runs: which failed, and which have not ended."""
    missing = [
        f"{row.name}, seed {seed}: not finished" for row in rows for seed in sorted(row.missing)
    ]
    return [*(f"Failed: {line}" for line in failures(rows)), *missing]


def differing_fields(configs: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Fields in which the configs differ, and each config's value, in their order."""
    names = dict.fromkeys(name for config in configs.values() for name in config)
    values = {
        name: [json.dumps(config.get(name)) for config in configs.values()]
        for name in names
        if name not in OWN
    }
    return {name: found for name, found in values.items() if len(set(found)) > 1}


def versions_of(rows: Sequence[Row]) -> list[str]:
    """Commit, versions and devices of the runs' starts: a line for each that differs, counted."""
    counts: dict[str, int] = {}
    for row in rows:
        for workdir in row.workdirs.values():
            for start in (read_json(workdir / RECORD_FILE) or {"starts": []})["starts"]:
                if "versions" not in start:  # its record was damaged, and begun anew
                    continue
                line = (
                    f"commit {start['git_commit']}, Python {start['python']}, "
                    + ", ".join(f"{name} {v}" for name, v in start["versions"].items())
                    + f"; {len(start['devices'])} x {start['devices'][0]} on {start['host']}"
                )
                counts[line] = counts.get(line, 0) + 1
    return [f"{count} starts: {line}" for line, count in counts.items()]


def _title_and_text(docstring: str, workdir: Path) -> tuple[str, str]:
    """The first line of a sweep's docstring, and the rest of it."""
    title, _, text = docstring.strip().partition("\n")
    return title or workdir.name, text.strip("\n")


def _markdown(page: Page, rows: Sequence[Row]) -> str:
    parts = [f"# {page.title}", page.about, markdown_table(rows), page.legend]
    parts.append(f"On the Pareto front of accuracy and multiply-adds: {', '.join(page.marked)}.")
    parts += ["\n".join(f"- {note}" for note in page.notes)] if page.notes else []
    names = list(page.configs)
    lines = [["field", *names], ["---"] * (len(names) + 1)]
    lines += [[f"`{field}`", *values] for field, values in page.differing.items()]
    parts += [
        "## What differs",
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        "## Versions",
        "\n".join(f"- {line}" for line in page.record),
        "## Configs",
    ]
    for name, config in page.configs.items():
        parts.append(f"### {name}\n\n```json\n{json_text(config, indent=2)}\n```")
    return "\n\n".join(part for part in parts if part) + "\n"
