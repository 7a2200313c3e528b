"""The results of a sweep: tables for a terminal, HTML, Markdown, LaTeX and CSV."""

import html
import re
import statistics
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from gnet_jax.config import UserError, json_text
from gnet_jax.lab.cost.ledger import csv_text, number_table
from gnet_jax.lab.sweeps.compare import (
    Difference,
    paired_difference,
    smallest_detectable,
    validation_margin,
)
from gnet_jax.lab.sweeps.figures import draw_results, to_pdf, to_svg
from gnet_jax.lab.sweeps.runs import differing_fields
from gnet_jax.lab.sweeps.sweep import (
    Row,
    SweepRecord,
    list_starts,
    mean_and_spread,
    pareto_front,
    read_sweep,
)
from gnet_jax.training.workdir import replacing

PAGE = string.Template(Path(__file__).with_name("report.html").read_text("utf-8"))
PLUS_MINUS, MINUS = "\N{PLUS-MINUS SIGN}", "\N{MINUS SIGN}"
OTHER_VERSION = "\N{DAGGER}"  # marks rows that another version of the code trained
LEGEND = (
    f"top-1, top-5 and losses: on the validation images after the last step, as mean {PLUS_MINUS} "
    f"sample standard deviation over the seeds. difference: mean {PLUS_MINUS} half the 95 % "
    "t-interval of the paired differences in top-1 from the baseline, in points; it covers the "
    "choice of seeds. Of 20 such intervals, one is expected to miss the true difference. image "
    "error: half the 95 % Wilson interval of top-1, in points; it covers the choice of images. "
    "images/s: median training throughput. step memory: memory of one training step, as XLA plans "
    "it."
)
Value = tuple[str, float | None]  # the text of a table's cell, and the number to sort by


def write_report(
    workdir: Path,
    page: Path,
    figures: Path | None = None,
    baseline: str | None = None,
    columns: int = 1,
    layers: str | None = None,
) -> list[Path]:
    """Write HTML to `page`, Markdown, LaTeX and CSV beside it, and SVG and PDF into `figures`.

    `baseline` is the config to compare with, by default the sweep's. The figures are as wide as
    `columns` (1 or 2) columns of a paper. `layers` is a data set on whose images the blocks of the
    networks are compared, too. Returns the files.
    """
    sweep = read_sweep(workdir, baseline)
    drawings = draw_results(sweep.rows, columns)
    if layers is not None:
        from gnet_jax.lab.look.similarity import compare_runs  # compiles networks

        drawings["layers"] = compare_runs(_runs_to_compare(sweep), layers)
    vectors = {name: (text, to_svg(figure, text)) for name, (text, figure) in drawings.items()}
    files: dict[Path, str | bytes] = {
        page: to_html(sweep, vectors),
        page.with_suffix(".md"): to_markdown(sweep),
        page.with_suffix(".tex"): to_latex(sweep),
        page.with_suffix(".csv"): runs_csv(sweep),
    }
    if figures is not None:
        files |= {figures / f"{name}.svg": svg for name, (_, svg) in vectors.items()}
        files |= {figures / f"{name}.pdf": to_pdf(f, text) for name, (text, f) in drawings.items()}
    for file, content in files.items():
        try:
            if file.parent == figures:
                file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as partial:
                partial.write_bytes(content if isinstance(content, bytes) else content.encode())
        except OSError as error:  # the error of a full disk does not name the file
            raise UserError(f"cannot write {file}: {error.strerror}") from error
    return list(files)


def _runs_to_compare(sweep: SweepRecord) -> dict[str, tuple[Path, int]]:
    """Returns workdirs and last steps by name: two seeds of the baseline, one of the others."""
    runs = [(sweep.baseline, seed) for seed in list(sweep.baseline.done)[:2]]
    runs += [(row, min(row.done)) for row in sweep.rows if row.done and row is not sweep.baseline]
    return {f"{r.name}, seed {seed}": (r.workdirs[seed], r.done[seed]["step"]) for r, seed in runs}


def tabulate(sweep: SweepRecord) -> tuple[list[str], list[list[Value]]]:
    """Returns the results table: its header, and the cells row by row."""
    heads = all_heads(sweep.rows)
    header = ["config", "top-1", "difference", "image error", "top-5", "multiply-adds"]
    header += ["parameters", "with aux heads", "images/s", "step memory", "runs"]
    header += [f"{head} loss" for head in heads]
    lines = []
    for row in sweep.rows:
        runs = f"{len(row.done)} of {len(row.workdirs)}"
        runs += f", {len(row.failed)} failed" if row.failed else ""
        costs = ("macs", "params", "params_with_aux", "images_per_sec")
        values: list[Value] = [
            (row.name + f" {OTHER_VERSION}" * has_other_version(row, sweep.baseline), None),
            _percent(row.values("top1")),
            _difference(row, sweep.baseline),
            _image_error(row),
            _percent(row.values("heads", "main", "top5")),
            *(_median(row.values(name)) for name in costs),
            _median([size / 2**20 for size in row.values("memory_bytes")], " MiB"),
            (runs, len(row.done)),
            *(_with_spread(row.values("heads", head, "loss"), 3) for head in heads),
        ]
        lines.append(values)
    return header, lines


def has_other_version(row: Row, baseline: Row) -> bool:
    """Returns whether the code that trained `row` is not the code that trained the baseline."""
    return bool(row.done and baseline.done) and row.versions != baseline.versions


def _difference(row: Row, baseline: Row) -> Value:
    """Returns the difference in points, with half its interval: "+2.90 ± 8.91, higher"."""
    difference = row.minus(baseline)
    if row is baseline or difference is None:
        return ("baseline" if row is baseline else ""), None
    mean, margin = f"{100 * difference.mean:+.2f}".replace("-", MINUS), difference.margin
    spread = "" if margin is None else f" {PLUS_MINUS} {100 * margin:.2f}"
    return f"{mean}{spread}, {difference.verdict}", difference.mean


def _image_error(row: Row) -> Value:
    if not row.done:
        return "", None
    margin = validation_margin(row.top1, int(row.values("val_images")[0]))
    return f"{PLUS_MINUS} {100 * margin:.2f}", margin


def _median(values: Sequence[float], unit: str = "") -> Value:
    if not values:
        return "", None
    median = statistics.median(values)
    return f"{median:,.0f}{unit}", median


def _percent(fractions: Sequence[float]) -> Value:
    return _with_spread([100 * each for each in fractions], 2, " %")


def _with_spread(values: Sequence[float], digits: int, unit: str = "") -> Value:
    if not values:
        return "", None
    mean, spread = mean_and_spread(values)
    plus_minus = "" if spread is None else f" {PLUS_MINUS} {spread:.{digits}f}"
    return f"{mean:.{digits}f}{plus_minus}{unit}", mean


def all_heads(rows: Sequence[Row]) -> list[str]:
    """Returns the names of the heads in all rows, the main head first."""
    names = {head for row in rows for result in row.done.values() for head in result["heads"]}
    return sorted(names, key=lambda head: (head != "main", head))


def results_table(sweep: SweepRecord, title: str) -> Table:
    """Returns the main columns of the table of results, for a terminal."""
    header, lines = tabulate(sweep)
    shown = [n for n, name in enumerate(header) if not re.search("loss|memory|aux", name)]
    table = number_table(title, *(header[n] for n in shown))
    for values in lines:
        table.add_row(*(values[n][0] for n in shown))
    return table


def list_notes(sweep: SweepRecord) -> list[str]:
    """Returns sentences about what the table shows and what it cannot show."""
    notes, done = [], [row for row in sweep.rows if row.done]
    if done:
        images = sorted({int(count) for row in done for count in row.values("val_images")})
        chance = done[0].values("chance")
        level = f"; chance is {chance[0]:.2%}" if chance else ""
        notes.append(f"Validation images: {' or '.join(f'{each:,}' for each in images)}{level}.")
    notes += _power([row.minus(sweep.baseline) for row in done if row is not sweep.baseline])
    notes += [f"{row.name} is not distinguishable from chance." for row in done if _at_chance(row)]
    notes += [note for row in done for note in _other_data(sweep, row)]
    if sweep.baseline.done:
        notes += _other_settings(sweep.baseline, done)
    tuned: dict[str, list[str]] = {}
    for row in sweep.rows:
        if row.tuning is not None:
            tuned.setdefault(row.tuning.note, []).append(row.name)
    return notes + [f"{', '.join(names)}: {note}." for note, names in tuned.items()]


def _power(differences: Iterable[Difference | None]) -> list[str]:
    """Returns a sentence on the smallest differences that the comparisons could find."""
    found = [smallest_detectable(each) for each in differences if each is not None]
    points = sorted(100 * each for each in found if each)
    if found and not any(each is not None for each in found):
        return ["With one seed, no difference is distinguishable; use more --seeds."]
    if not points:
        return []
    limits = " to ".join(dict.fromkeys(f"{each:.2f}" for each in (points[0], points[-1])))
    return [
        f"Smallest detectable difference: {limits} points of top-1. A comparison finds a true "
        "difference of this size with a probability of 80 %; more --seeds find smaller ones."
    ]


def _other_data(sweep: SweepRecord, row: Row) -> list[str]:
    """Returns a sentence if `row` and the baseline should have the same data, but do not."""
    own, name = row.data, sweep.baseline.name
    others = sweep.baseline.data if sweep.baseline.done else own
    if own.get("val") != others.get("val") or len(own.get("val", ())) > 1:
        return [f"{row.name}: validated on other images than other runs; do not compare it."]
    if len(own.get("train", ())) > 1:
        return [f"{row.name}: its runs were trained on different images; do not compare it."]
    if own.get("train") == others.get("train"):
        return []
    sources = {sweep.configs[each].get("data.source") for each in (row.name, name)}
    if len(sources) > 1:
        return []
    return [
        f"{row.name}: trained on other images than {name}, although data.source is the same; "
        "do not compare it."
    ]


def _other_settings(baseline: Row, done: Sequence[Row]) -> list[str]:
    """Returns sentences on rows with another learning rate or version than the baseline."""
    notes = []
    rates = {row.name: row.tuning.best for row in (baseline, *done) if row.tuning is not None}
    if other := [name for name, rate in rates.items() if rate != rates.get(baseline.name, rate)]:
        notes.append(
            f"{', '.join(other)}: trained with another learning rate than {baseline.name}. The "
            "differences include that of the rates; the intervals do not cover the choice of rates."
        )
    versions = {row.name: row.versions for row in done if has_other_version(row, baseline)}
    if versions:
        notes.append(
            f"{OTHER_VERSION} trained by another version of the code than {baseline.name} "
            f"({_listed(baseline.versions)}): "
            + "; ".join(f"{name} ({_listed(each)})" for name, each in versions.items())
            + "."
        )
    return notes


def _at_chance(row: Row) -> bool:
    """Whether the mean top-1 is within the error of images or of seeds from the chance level."""
    chance = {seed: result["chance"] for seed, result in row.done.items() if "chance" in result}
    over = paired_difference({seed: row.done[seed]["top1"] for seed in chance}, chance)
    margins = (_image_error(row)[1], over and over.margin)
    return over is not None and over.mean <= max(each or 0.0 for each in margins)


def _listed(versions: Iterable[str]) -> str:
    return ", ".join(sorted(versions))


def list_failures(rows: Sequence[Row]) -> list[str]:
    """Returns a line for each failed run."""
    return [
        f"{row.name}, seed {seed}: {error}" for row in rows for seed, error in row.failed.items()
    ]


def list_unfinished(rows: Sequence[Row]) -> list[str]:
    """Returns a line for each run that failed or is not finished."""
    missing = [f"{row.name}, seed {seed}: not finished" for row in rows for seed in row.missing]
    return [f"Failed: {line}" for line in list_failures(rows)] + missing


def runs_csv(sweep: SweepRecord) -> str:
    """Returns CSV with a line of unrounded values for every finished run; top-1 is from 0 to 1."""
    rows = sweep.rows
    names = ("top1", "macs", "params", "params_with_aux", "memory_bytes", "images_per_sec")
    metrics = ("loss", "top1", "top5")
    heads = [f"{head}_{metric}" for head in all_heads(rows) for metric in metrics]
    lines: list[dict[str, Any]] = []
    for row in rows:
        for seed, result in row.done.items():
            values = {name: result[name] for name in (*names, "val_images")}
            for head, found in result["heads"].items():
                values |= {f"{head}_{metric}": found.get(metric) for metric in metrics}
            rate = sweep.configs[row.name]["optim.learning_rate"]
            lines.append({"config": row.name, "seed": seed, "learning_rate": rate} | values)
    return csv_text(lines, ("config", "seed", "learning_rate", "val_images", *names, *heads))


def count_versions(rows: Sequence[Row]) -> list[str]:
    """Returns lines that say how often runs were started with each commit, versions and devices."""
    paths = [path for row in rows for path in row.workdirs.values()]
    counts = Counter(
        f"commit {start['git_commit']}, Python {start['python']}, "
        + ", ".join(f"{name} {version}" for name, version in start["versions"].items())
        + f"; {len(start['devices'])} x {start['devices'][0]} on {start['host']}"
        for path in paths
        for start in list_starts(path)
        if "versions" in start  # missing if the record was corrupt and replaced
    )
    return [f"{count} starts: {line}" for line, count in counts.items()]


def to_html(sweep: SweepRecord, drawings: Mapping[str, Any]) -> str:
    """Returns the report as one HTML document with a policy that forbids loading other files."""
    e = html.escape
    about = [  # indented paragraphs are commands
        f"<pre>{e(part.strip())}</pre>"
        if part.startswith(" ")
        else f"<p>{e(' '.join(part.split()))}</p>"
        for part in sweep.about.split("\n\n")
        if part.strip()
    ]
    header, lines = tabulate(sweep)
    front = pareto_front(sweep.rows, "macs")
    table = ""
    for row, line in zip(sweep.rows, lines, strict=True):
        table += f'<tr class="{"marked" if row in front else ""}">'
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
        notes="".join(f"<p>{e(note)}</p>" for note in list_unfinished(sweep.rows)),
        about_results="".join(f"<p>{e(note)}</p>" for note in list_notes(sweep)),
        results=_html_table([f'<button type="button">{e(n)}</button>' for n in header], table),
        legend=e(LEGEND),
        figures="\n".join(
            f"<figure>{svg}<figcaption>{e(caption)}</figcaption></figure>"
            for caption, svg in drawings.values()
        ),
        differing=_html_table(["field", *map(e, sweep.configs)], differing),
        versions="\n".join(f"<p><code>{e(line)}</code></p>" for line in count_versions(sweep.rows)),
        configs="\n".join(
            f"<details><summary>{e(name)}</summary><pre>{e(json_text(config, indent=2))}</pre>"
            "</details>"
            for name, config in sweep.configs.items()
        ),
    )


def _html_table(header: Sequence[str], rows: str) -> str:
    head = "".join(f"<th>{each}</th>" for each in header)
    return f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"


def to_markdown(sweep: SweepRecord) -> str:
    """Returns the report in Markdown, without its figures."""
    header, lines = tabulate(sweep)
    front = ", ".join(row.name for row in pareto_front(sweep.rows, "macs"))
    none = "no config is distinguishably more accurate than a cheaper one"
    fields = differing_fields(sweep.configs.values())
    parts = [
        f"# {sweep.title}",
        sweep.about,
        _markdown_table(header, [[text for text, _ in line] for line in lines], "---:"),
        LEGEND,
        f"Pareto front of accuracy and multiply-adds: {front or none}.",
        "\n".join(f"- {note}" for note in list_notes(sweep) + list_unfinished(sweep.rows)),
        "## What differs",
        _markdown_table(
            ["field", *sweep.configs], [[f"`{k}`", *values] for k, values in fields.items()], "---"
        ).rstrip(),
        "## Versions",
        "\n".join(f"- {line}" for line in count_versions(sweep.rows)),
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


def to_latex(sweep: SweepRecord) -> str:
    """Returns a LaTeX table (package booktabs) of accuracy, differences and cost."""
    lines = []
    for row, values in zip(sweep.rows, tabulate(sweep)[1], strict=True):
        name, top1, difference, _, top5, *costs = (text for text, _ in values)
        shown, _, verdict = difference.partition(", ")
        if verdict in ("higher", "lower"):
            shown = f"\\textbf{{{shown}}}"
        cells = [top1.removesuffix(" %"), shown, top5.removesuffix(" %"), *costs[:2]]
        cells = [_to_latex(name), *map(_symbols, cells), str(len(row.done))]
        lines.append(" & ".join(cells) + r" \\")
    notes = list_notes(sweep)
    caption = (
        f"{sweep.title.rstrip('.')}. Top-1 and top-5: mean {PLUS_MINUS} sample standard deviation "
        f"over the seeds. Difference in top-1 from {sweep.baseline.name}, in points: mean "
        f"{PLUS_MINUS} half the 95 % t-interval of the paired differences; bold if the interval "
        "excludes zero. "
    )
    header = r"config & top-1 (\%) & difference & top-5 (\%) & multiply-adds & parameters & seeds"
    parts = [
        "% requires \\usepackage{booktabs}",
        *(r"\begin{table}", r"\centering"),
        *(f"% {note}" for note in notes),
        f"\\caption{{{_to_latex(caption + ''.join(notes[:1]))}}}",
        *(r"\begin{tabular}{lrrrrrr}", r"\toprule", header + r" \\", r"\midrule"),
        *lines,
        *(r"\bottomrule", r"\end{tabular}", r"\end{table}"),
    ]
    return "\n".join(parts) + "\n"


def _to_latex(text: str) -> str:
    """Returns plain text with LaTeX's special characters escaped."""
    names = {"\\": "textbackslash", "~": "textasciitilde", "^": "textasciicircum"}
    names |= {"<": "textless", ">": "textgreater"}

    def escaped(found: re.Match[str]) -> str:
        return f"\\{names[found[0]]}{{}}" if found[0] in names else f"\\{found[0]}"

    return _symbols(re.sub(r"[&%$#_{}\\~^<>]", escaped, text))


def _symbols(text: str) -> str:
    math = {PLUS_MINUS: r"$\pm$", MINUS: "$-$", OTHER_VERSION: r"\dag{}"}
    return re.sub("|".join(math), lambda found: math[found[0]], text)
