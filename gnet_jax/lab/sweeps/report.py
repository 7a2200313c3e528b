"""The report of a sweep: a self-contained HTML page, Markdown and CSV."""

import dataclasses
import html
import json
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnet_jax.config import UserError, json_text
from gnet_jax.lab.sweeps.figures import Drawing, draw_results
from gnet_jax.lab.sweeps.sweep import (
    LEGEND,
    Row,
    Value,
    failures,
    markdown_table,
    pareto_front,
    read_json,
    read_rows,
    read_sweep,
    runs_csv,
    tabulate,
)
from gnet_jax.training.workdir import RECORD_FILE

PAGE = string.Template(Path(__file__).with_name("report.html").read_text("utf-8"))
OWN = ("workdir", "seed")  # the runs of one config differ in these fields by design


@dataclasses.dataclass(frozen=True)
class Report:
    """The content of a report."""

    title: str
    about: str  # paragraphs; an indented one is a command
    header: list[str]
    lines: list[list[Value]]
    front: list[str]  # names of the configs on the Pareto front
    notes: list[str]  # failed and unfinished runs
    differing: dict[str, list[str]]  # field -> value in each config
    versions: list[str]
    configs: dict[str, str]  # as JSON, by name


def write_report(workdir: Path, page: Path, figures: Path | None = None) -> list[Path]:
    """Write `page` (HTML), Markdown and CSV beside it, and SVG files into `figures`; return all.

    Raises:
        UserError: if `workdir` holds no sweep, or a file cannot be written.
    """
    if page.suffix in (".md", ".csv"):
        raise UserError(f"--out is {page}; use .html (.md and .csv are written beside it)")
    sweep = read_sweep(workdir)
    rows = read_rows(sweep)
    header, lines = tabulate(rows)
    title, _, about = sweep.about.strip().partition("\n")
    notes = [f"Failed: {line}" for line in failures(rows)]
    notes += [f"{row.name}, seed {seed}: not finished" for row in rows for seed in row.missing]
    configs = {
        name: {field: value for field, value in config.items() if field not in OWN}
        for name, config in sweep.configs.items()
    }
    report = Report(
        title=title or workdir.name,
        about=about.strip("\n"),
        header=header,
        lines=lines,
        front=[row.name for row in pareto_front(rows, "macs")],
        notes=notes,
        differing=differing_fields(list(configs.values())),
        versions=count_versions(rows),
        configs={name: json_text(config, indent=2) for name, config in configs.items()},
    )
    drawings = draw_results(rows)
    files = {
        page: to_html(report, drawings),
        page.with_suffix(".md"): to_markdown(report),
        page.with_suffix(".csv"): runs_csv(rows),
    }
    if figures is not None:
        files |= {figures / f"{drawing.name}.svg": drawing.svg for drawing in drawings}
    for file, text in files.items():
        try:
            if file.parent == figures:
                file.parent.mkdir(exist_ok=True)
            file.write_text(text, "utf-8")
        except OSError as error:  # a full disk names no file
            raise UserError(f"cannot write {file}: {error.strerror}") from error
    return list(files)


def differing_fields(configs: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Returns the fields in which configs differ, and their values in the order of the configs."""
    fields = dict.fromkeys(field for config in configs for field in config)
    values = {field: [json.dumps(config.get(field)) for config in configs] for field in fields}
    return {field: found for field, found in values.items() if len(set(found)) > 1}


def count_versions(rows: Sequence[Row]) -> list[str]:
    """Returns commit, versions and devices of the runs' starts, with the number of such starts."""
    records = [read_json(path / RECORD_FILE) for row in rows for path in row.workdirs.values()]
    starts = [start for record in records if record for start in record["starts"]]
    counts = Counter(
        f"commit {start['git_commit']}, Python {start['python']}, "
        + ", ".join(f"{name} {version}" for name, version in start["versions"].items())
        + f"; {len(start['devices'])} x {start['devices'][0]} on {start['host']}"
        for start in starts
        if "versions" in start  # a corrupt record was replaced by one without
    )
    return [f"{count} starts: {line}" for line, count in counts.items()]


def to_html(report: Report, drawings: Sequence[Drawing]) -> str:
    """Returns the report as one HTML document, whose policy forbids it to load anything."""
    e = html.escape
    about = [
        f"<pre>{e(part.strip())}</pre>"
        if part.startswith(" ")
        else f"<p>{e(' '.join(part.split()))}</p>"
        for part in report.about.split("\n\n")
        if part.strip()
    ]
    results = ""
    for line in report.lines:
        results += f'<tr class="{"marked" if line[0][0] in report.front else ""}">'
        for text, value in line:
            key = e(text if value is None else repr(value))
            results += f'<td data-value="{key}">{e(text)}</td>'
        results += "</tr>"
    differing = ""
    for field, values in report.differing.items():
        cells = "".join(f"<td>{e(value)}</td>" for value in values)
        differing += f"<tr><td><code>{e(field)}</code></td>{cells}</tr>"
    figures = [f"<figure>{d.svg}<figcaption>{e(d.caption)}</figcaption></figure>" for d in drawings]
    configs = [
        f"<details><summary>{e(name)}</summary><pre>{e(config)}</pre></details>"
        for name, config in report.configs.items()
    ]
    header = [f'<button type="button">{e(name)}</button>' for name in report.header]
    return PAGE.substitute(
        title=e(report.title),
        about="\n".join(about),
        notes="".join(f"<p>{e(note)}</p>" for note in report.notes),
        results=_html_table(header, results),
        legend=e(LEGEND),
        figures="\n".join(figures),
        differing=_html_table(["field", *map(e, report.configs)], differing),
        versions="\n".join(f"<p><code>{e(line)}</code></p>" for line in report.versions),
        configs="\n".join(configs),
    )


def _html_table(header: Sequence[str], rows: str) -> str:
    """Returns head and body of a table; the header's cells and the rows are HTML."""
    head = "".join(f"<th>{each}</th>" for each in header)
    return f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"


def to_markdown(report: Report) -> str:
    """Returns the report, without its figures, in Markdown."""
    results = [[text for text, _ in line] for line in report.lines]
    differing = [[f"`{field}`", *values] for field, values in report.differing.items()]
    parts = [
        f"# {report.title}",
        report.about,
        markdown_table(report.header, results, "---:"),
        LEGEND,
        f"On the Pareto front of accuracy and multiply-adds: {', '.join(report.front)}.",
        "\n".join(f"- {note}" for note in report.notes),
        "## What differs",
        markdown_table(["field", *report.configs], differing, "---").rstrip(),
        "## Versions",
        "\n".join(f"- {line}" for line in report.versions),
        "## Configs",
        *(f"### {name}\n\n```json\n{config}\n```" for name, config in report.configs.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
