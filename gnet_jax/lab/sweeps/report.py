"""What a sweep came to, as one HTML page that needs nothing else, as Markdown and as CSV."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gnet_jax.config import UserError, json_text
from gnet_jax.lab.sweeps.result_figures import figures_of, to_svg
from gnet_jax.lab.sweeps.results import (
    LEGEND,
    Row,
    all_heads,
    cells_of_row,
    csv_of_runs,
    failures,
    head_cells,
    header,
    markdown_table,
    pareto_front,
    rows_of,
)
from gnet_jax.lab.sweeps.sweep import read_json, read_sweep
from gnet_jax.training.workdir import RECORD_FILE

STYLE = """
:root { color-scheme: light; --ink: #1c1c1c; --grey: #63666a; --line: #d9dce0; --mark: #eef5fb; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.2rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { max-width: 46rem; }
.legend, figcaption, .hint { color: var(--grey); font-size: .875rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: .45rem .7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
thead th { border-bottom: 2px solid var(--line); }
tbody tr + tr td { border-top: 1px solid var(--line); }
tr.marked td, tr.marked td:first-child { background: var(--mark); }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid #0072b2; outline-offset: 2px; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
.figures { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); }
figure { margin: 0; border: 1px solid var(--line); border-radius: 6px; padding: .6rem; }
figure svg { display: block; width: 100%; height: auto; }
.notes { border-left: 4px solid #d55e00; padding: .2rem 1rem; background: #fdf3ec; }
pre { overflow-x: auto; background: #f6f7f8; padding: .8rem; border-radius: 6px; font-size: .8rem; }
code { overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { padding: .8rem; font-size: 15px; } h1 { font-size: 1.25rem; } }
"""

SCRIPT = """
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table");
    const place = head.cellIndex, body = table.tBodies[0];
    const up = head.getAttribute("aria-sort") === "descending";
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[place].dataset.value;
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");  // empty ones last
      const less = isNaN(x) || isNaN(y) ? x.localeCompare(y) : Number(x) - Number(y);
      return up ? less : -less;
    };
    body.append(...[...body.rows].sort(order));
  });
}
"""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


class Figure(NamedTuple):
    """A picture of the page."""

    caption: str
    svg: str


class Page(NamedTuple):
    """What a report says."""

    title: str
    about: str
    header: Sequence[str]
    rows: Sequence[Sequence[tuple[str, float | None]]]  # (text, value to sort by; None: the text)
    marked: Sequence[str]  # rows on the Pareto front, by their first cell
    legend: str
    notes: Sequence[str]
    figures: Sequence[Figure]
    differing: Mapping[str, Sequence[str]]  # field -> value in each config
    configs: Mapping[str, Mapping[str, Any]]
    record: Sequence[str]


def render(page: Page) -> str:
    """The page as one HTML document; its policy forbids it to fetch anything."""
    e = html.escape
    notes = "".join(f"<p>{e(note)}</p>" for note in page.notes)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{e(page.title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{e(page.title)}</h1>",
        *_paragraphs(page.about),
        f'<div class="notes">{notes}</div>' if notes else "",
        "<h2>Results</h2>",
        _results(page),
        '<p class="hint">A click on a column sorts by it. Shaded rows are on the Pareto front of '
        "accuracy and multiply-adds.</p>",
        f'<p class="legend">{e(page.legend)}</p>',
        "<h2>Figures</h2>" if page.figures else "",
        '<div class="figures">',
        *(
            f"<figure>{figure.svg}<figcaption>{e(figure.caption)}</figcaption></figure>"
            for figure in page.figures
        ),
        "</div>",
        "<h2>What differs between the configs</h2>",
        _plain_table(["field", *page.configs], page.differing),
        "<h2>Versions</h2>",
        *(f"<p><code>{e(line)}</code></p>" for line in page.record),
        "<h2>Configs</h2>",
        *(
            f"<details><summary>{e(name)}</summary><pre>{e(json_text(config, indent=2))}</pre>"
            "</details>"
            for name, config in page.configs.items()
        ),
        f"<script>{SCRIPT}</script></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _paragraphs(text: str) -> list[str]:
    """A docstring as paragraphs; an indented one is a command."""
    parts = [part for part in text.split("\n\n") if part.strip()]
    return [
        f"<pre>{html.escape(part.strip())}</pre>"
        if part.startswith(" ")
        else f"<p>{html.escape(' '.join(part.split()))}</p>"
        for part in parts
    ]


def _results(page: Page) -> str:
    e = html.escape
    head = "".join(f'<th><button type="button">{e(name)}</button></th>' for name in page.header)
    body = []
    for row in page.rows:
        name = row[0][0]
        values = [text if value is None else repr(value) for text, value in row]
        cells = "".join(
            f'<td data-value="{e(value)}">{e(text)}</td>'
            for value, (text, _) in zip(values, row, strict=True)
        )
        body.append(f'<tr class="{"marked" if name in page.marked else ""}">{cells}</tr>')
    table = f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f'<div class="scroll"><table id="results">{table}</table></div>'


def _plain_table(header: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    e = html.escape
    head = "".join(f"<th>{e(name)}</th>" for name in header)
    body = "".join(
        f"<tr><td><code>{e(name)}</code></td>{''.join(f'<td>{e(v)}</td>' for v in values)}</tr>"
        for name, values in rows.items()
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


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
