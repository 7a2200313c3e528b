"""The report of a sweep: a self-contained HTML page, Markdown and CSV."""

import html
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gnet_jax.config import UserError, json_text
from gnet_jax.lab.sweeps import sweep as results
from gnet_jax.lab.sweeps.figures import draw_results, to_svg
from gnet_jax.lab.sweeps.runs import differing_fields
from gnet_jax.lab.sweeps.sweep import Row, SweepRecord
from gnet_jax.training.workdir import RECORD_FILE

PAGE = string.Template(Path(__file__).with_name("report.html").read_text("utf-8"))


def write_report(workdir: Path, page: Path, figures: Path | None = None) -> list[Path]:
    """Write HTML to `page`, Markdown and CSV beside it, SVG into `figures`; returns the files."""
    if page.suffix in (".md", ".csv"):
        raise UserError(f"--out is {page}; use .html (.md and .csv are written beside it)")
    sweep = results.read_sweep(workdir)
    rows = results.read_rows(sweep)
    drawings = {name: (text, to_svg(fig, text)) for name, (text, fig) in draw_results(rows).items()}
    files = {
        page: to_html(sweep, rows, drawings),
        page.with_suffix(".md"): to_markdown(sweep, rows),
        page.with_suffix(".csv"): results.runs_csv(rows),
    }
    if figures is not None:
        files |= {figures / f"{name}.svg": svg for name, (_, svg) in drawings.items()}
    for file, text in files.items():
        try:
            if file.parent == figures:
                file.parent.mkdir(exist_ok=True)
            file.write_text(text, "utf-8")
        except OSError as error:  # the error of a full disk does not name the file
            raise UserError(f"cannot write {file}: {error.strerror}") from error
    return list(files)


def list_notes(rows: Sequence[Row]) -> list[str]:
    """Returns a line for each run that failed or is not finished."""
    missing = [f"{row.name}, seed {seed}: not finished" for row in rows for seed in row.missing]
    return [f"Failed: {line}" for line in results.failures(rows)] + missing


def count_versions(rows: Sequence[Row]) -> list[str]:
    """Returns lines that say how often runs were started with each commit, versions and devices."""
    paths = [path / RECORD_FILE for row in rows for path in row.workdirs.values()]
    counts = Counter(
        f"commit {start['git_commit']}, Python {start['python']}, "
        + ", ".join(f"{name} {version}" for name, version in start["versions"].items())
        + f"; {len(start['devices'])} x {start['devices'][0]} on {start['host']}"
        for record in filter(None, map(results.read_json, paths))
        for start in record["starts"]
        if "versions" in start  # missing if the record was corrupt and replaced
    )
    return [f"{count} starts: {line}" for line, count in counts.items()]


def to_html(sweep: SweepRecord, rows: Sequence[Row], drawings: Mapping[str, Any]) -> str:
    """Returns the report as one HTML document with a policy that forbids loading other files."""
    e = html.escape
    about = [  # indented paragraphs are commands
        f"<pre>{e(part.strip())}</pre>"
        if part.startswith(" ")
        else f"<p>{e(' '.join(part.split()))}</p>"
        for part in sweep.about.split("\n\n")
        if part.strip()
    ]
    header, lines = results.tabulate(rows)
    front = {row.name for row in results.pareto_front(rows, "macs")}
    table = ""
    for line in lines:
        table += f'<tr class="{"marked" if line[0][0] in front else ""}">'
        for text, value in line:
            key = e(text if value is None else repr(value))
            table += f'<td data-value="{key}">{e(text)}</td>'
        table += "</tr>"
    differing = ""
    for field, values in differing_fields(sweep.configs.values()).items():
        cells = "".join(f"<td>{e(value)}</td>" for value in values)
        differing += f"<tr><td><code>{e(field)}</code></td>{cells}</tr>"
    return PAGE.substitute(
        title=e(sweep.title),
        about="\n".join(about),
        notes="".join(f"<p>{e(note)}</p>" for note in list_notes(rows)),
        results=_html_table([f'<button type="button">{e(n)}</button>' for n in header], table),
        legend=e(results.LEGEND),
        figures="\n".join(
            f"<figure>{svg}<figcaption>{e(caption)}</figcaption></figure>"
            for caption, svg in drawings.values()
        ),
        differing=_html_table(["field", *map(e, sweep.configs)], differing),
        versions="\n".join(f"<p><code>{e(line)}</code></p>" for line in count_versions(rows)),
        configs="\n".join(
            f"<details><summary>{e(name)}</summary><pre>{e(json_text(config, indent=2))}</pre>"
            "</details>"
            for name, config in sweep.configs.items()
        ),
    )


def _html_table(header: Sequence[str], rows: str) -> str:
    head = "".join(f"<th>{each}</th>" for each in header)
    return f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"


def to_markdown(sweep: SweepRecord, rows: Sequence[Row]) -> str:
    """Returns the report in Markdown, without its figures."""
    header, lines = results.tabulate(rows)
    front = ", ".join(row.name for row in results.pareto_front(rows, "macs"))
    fields = differing_fields(sweep.configs.values())
    parts = [
        f"# {sweep.title}",
        sweep.about,
        _markdown_table(header, [[text for text, _ in line] for line in lines], "---:"),
        results.LEGEND,
        f"On the Pareto front of accuracy and multiply-adds: {front}.",
        "\n".join(f"- {note}" for note in list_notes(rows)),
        "## What differs",
        _markdown_table(
            ["field", *sweep.configs], [[f"`{k}`", *values] for k, values in fields.items()], "---"
        ).rstrip(),
        "## Versions",
        "\n".join(f"- {line}" for line in count_versions(rows)),
        "## Configs",
        *(
            f"### {name}\n\n```json\n{json_text(config, indent=2)}\n```"
            for name, config in sweep.configs.items()
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]], align: str) -> str:
    rule = ["---", *[align] * (len(header) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, rule, *lines))
