import importlib.util
import shutil
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from gnet_jax.cli.main import main
from gnet_jax.config import Config, Sweep, UserError
from gnet_jax.lab.look import similarity
from gnet_jax.lab.sweeps import report
from gnet_jax.lab.sweeps.figures import common_points, cost_figure, curve_figure
from gnet_jax.lab.sweeps.report import differing_fields
from gnet_jax.lab.sweeps.sweep import open_sweep, read_sweep
from gnet_jax.training.workdir import MetricsFile
from tests.lab.sweeps import finished_sweep

FIGURES = 4
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    workdir = finished_sweep(tmp_path_factory.mktemp("sweep"))
    assert main(["report", str(workdir), "--figures", str(workdir / "figures")]) == 0
    return workdir / "report.html"


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action")]


def test_the_page_holds_every_figure_and_fetches_nothing(page):
    found = Elements(page.read_text("utf-8"))
    assert found.tags.count("svg") == found.tags.count("figcaption") == FIGURES
    assert all(link.startswith(("#", "data:")) for link in found.links)
    assert "url(http" not in page.read_text("utf-8")


def test_figures_are_also_written_as_svg_and_pdf_files(page):
    files = sorted((page.parent / "figures").glob("*.svg"))
    names = ["accuracy_macs.svg", "accuracy_params.svg", "loss.svg", "top1.svg"]
    assert [file.name for file in files] == names
    assert all(file.with_suffix(".pdf").read_bytes().startswith(b"%PDF") for file in files)
    assert page.read_text("utf-8").count("<svg") == len(names)
    assert all(ElementTree.parse(file).getroot().tag.endswith("svg") for file in files)


def test_the_page_and_its_markdown_name_failures_configs_and_versions(page):
    for text in (page.read_text("utf-8"), page.with_suffix(".md").read_text("utf-8")):
        assert "b, seed 2: TrainingError: step 2: the loss is nan" in text
        assert "c, seed 1: not finished" in text
        assert "11 starts: commit 0123abc, Python 3.11.2, jax 0.7.2; 1 x cpu on here" in text
    html, markdown = (file.read_text("utf-8") for file in (page, page.with_suffix(".md")))
    assert "And &lt;what&gt; it is." in html
    cells = "".join(f"<td>{size}</td>" for size in (8, 16, 24, 32))
    assert f"<code>batch_size</code></td>{cells}" in html
    assert "| field | a | b | c | d |\n| --- | --- | --- | --- | --- |\n" in markdown
    assert "| `batch_size` | 8 | 16 | 24 | 32 |" in markdown


def test_indented_text_is_a_command_and_a_report_can_be_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw_results", lambda *_: {"top1": ("caption", Figure())})
    open_sweep(
        tmp_path, Sweep({"a": Config()}, seeds=1), "Title\n\nText\nof it:\n\n    gnet a\n\nEnd."
    )
    for _ in range(2):
        files = report.write_report(tmp_path, tmp_path / "r.html", tmp_path / "figures")
    assert [file.name for file in files] == [
        "r.html",
        "r.md",
        "r.tex",
        "r.csv",
        "top1.svg",
        "top1.pdf",
    ]
    page = files[0].read_text("utf-8")
    for part in ("<title>Title</title>", "<p>Text of it:</p>", "<pre>gnet a</pre>", "<p>End.</p>"):
        assert part in page


def test_a_sweep_without_a_finished_run_has_a_report_too(tmp_path):
    open_sweep(tmp_path, Sweep({"a": Config()}, seeds=1), "text")
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 0
    assert "svg" not in Elements((tmp_path / "r.html").read_text("utf-8")).tags
    assert "a, seed 0: not finished" in (tmp_path / "r.md").read_text("utf-8")


def test_a_report_that_cannot_be_written_exits_with_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "draw_results", lambda *_: {"top1": ("caption", Figure())})
    assert main(["report", str(tmp_path)]) == 2
    assert f"{tmp_path} has no sweep" in capsys.readouterr().err
    finished_sweep(tmp_path)
    for options in (["--out", "no/r.html"], ["--out", "/dev/full"], ["--figures", "/proc/no"]):
        command = ["report", str(tmp_path), "--out", str(tmp_path / "r.html")]
        named = [options[0], str(tmp_path / options[1])]
        assert main([*command, *named]) == 2
        assert f"cannot write {named[1]}" in capsys.readouterr().err


@pytest.mark.skipif(
    BROWSER is None or importlib.util.find_spec("playwright") is None,
    reason="needs playwright and a chromium in the PATH (make oracles; apt install chromium)",
)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("width", [375, 1280])
def test_a_browser_shows_it_without_an_error_or_a_request(page, width):
    from playwright.sync_api import sync_playwright

    errors, requests = [], []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox"], timeout=180_000
        )
        tab = browser.new_page(viewport={"width": width, "height": 800})
        tab.set_default_timeout(120_000)
        tab.on("console", lambda message: errors.append(message.text))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(page.as_uri())
        figures = tab.locator("figure svg")
        assert figures.count() == FIGURES
        boxes = [figures.nth(place).bounding_box() for place in range(FIGURES)]
        assert all(box["width"] > 250 and box["height"] > 150 for box in boxes)
        assert len({box["x"] for box in boxes}) == (1 if width == 375 else 2)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        first = "document.querySelector('#results tbody tr td').textContent"
        button = tab.locator("#results th button", has_text="top-1").first
        button.click()
        assert tab.evaluate(first) == "d"
        button.click()
        assert tab.evaluate(first) == "c"
        browser.close()
    assert errors == []
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]


class Cells(HTMLParser):
    """Class, and text and sort value of every cell, of the rows of the results table."""

    def __init__(self, text):
        super().__init__()
        self.rows, self._value = [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "tr":
            self.rows.append((attrs.get("class"), []))
        self._value = attrs.get("data-value")

    def handle_data(self, data):
        if self._value is not None and data.strip():
            self.rows[-1][1].append((data, self._value))


def test_the_page_sorts_by_numbers_and_marks_the_pareto_front(page):
    rows = [row for row in Cells(page.read_text("utf-8")).rows if row[1]]
    assert [(kind, cells[0][0]) for kind, cells in rows] == [
        ("marked", "a"), ("marked", "b †"), ("", "c"), ("marked", "d"),
    ]  # fmt: skip
    text, value = rows[0][1][5]
    assert (text, float(value)) == ("10,000", 10_000)
    markdown = page.with_suffix(".md").read_text("utf-8").splitlines()
    assert "Pareto front of accuracy and multiply-adds: a, b, d." in markdown
    assert f"| --- |{12 * ' ---: |'}" in markdown


def test_fields_that_differ_are_listed_without_seed_and_workdir():
    configs = [{"epochs": 2, "batch_size": 8}, {"epochs": 2, "batch_size": 16, "new": None}]
    assert differing_fields(configs) == {"batch_size": ["8", "16"]}


def test_curves_average_the_steps_that_all_finished_seeds_logged(page):
    row = read_sweep(page.parent).rows[3]
    assert common_points(row, "val/top1")[10] == pytest.approx([0.5, 0.51, 0.52])
    MetricsFile(row.workdirs[1] / "metrics.jsonl").append(15, {"val/top1": 0.9})
    assert sorted(common_points(row, "val/top1")) == [5, 10]
    axes = curve_figure([row], "val/top1", "label").axes[0]
    assert axes.lines[0].get_ydata() == pytest.approx([0.26, 0.51])
    assert axes.lines[0].get_xdata() == pytest.approx([5, 10])
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((0.25, 0.52))


def test_accuracy_against_cost_has_means_and_error_bars(page):
    rows = read_sweep(page.parent).rows
    axes = cost_figure(rows, "params").axes[0]
    front = axes.lines[0]
    assert list(front.get_xdata()) == [2000, 4000]
    assert front.get_ydata() == pytest.approx([0.605, 0.72])
    points = [bars.lines[0].get_xydata()[0] for bars in axes.containers]
    assert [tuple(point) for point in points] == [
        pytest.approx(each) for each in [(5000, 0.52), (2000, 0.605), (3000, 0.425), (4000, 0.72)]
    ]
    faces = [bars.lines[0].get_markerfacecolor() for bars in axes.containers]
    assert [face == "white" for face in faces] == [True, False, True, False]
    bar = axes.containers[1].lines[2][0].get_segments()[0]
    assert bar[:, 1] == pytest.approx([0.605 - 0.005 * 2**0.5, 0.605 + 0.005 * 2**0.5])


def test_a_report_that_fails_keeps_the_one_before(tmp_path, monkeypatch):
    page = tmp_path / "r.html"
    page.write_text("before")
    finished_sweep(tmp_path / "sweep")
    monkeypatch.setattr(Path, "write_bytes", mock.Mock(side_effect=OSError(28, "full")))
    with pytest.raises(UserError, match=r"r\.html: full"):
        report.write_report(tmp_path / "sweep", page)
    assert page.read_text() == "before"


@pytest.mark.parametrize("name", ["r.md", "r.tex", "r.csv"])
def test_a_page_of_another_name_is_refused(page, tmp_path, name, capsys):
    assert main(["report", str(page.parent), "--out", str(tmp_path / name)]) == 2
    assert ".html" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_blocks_of_two_seeds_and_of_each_other_config_are_compared_when_asked(
    page, tmp_path, monkeypatch
):
    asked = []

    def compare(runs, data):
        asked.append((list(runs), data))
        return "A comparison of blocks.", Figure()

    monkeypatch.setattr(similarity, "compare_runs", compare)
    out = tmp_path / "report.html"
    assert main(["report", str(page.parent), "--layers", "digits#40", "--out", str(out)]) == 0
    ((names, data),) = asked
    assert names[0].startswith("a, seed")
    assert names[1].startswith("a, seed")
    assert sum(name.startswith("b, seed") for name in names) == 1
    assert data == "digits#40"
    assert "A comparison of blocks." in out.read_text("utf-8")


def test_blocks_are_compared_after_the_step_of_the_table(page, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(similarity, "load", lambda path, step=None: loaded.append((path, step)))
    monkeypatch.setattr(similarity, "compare", lambda models, pictures: None)
    monkeypatch.setattr(similarity, "draw_comparison", lambda found: Figure())
    out = tmp_path / "report.html"
    assert main(["report", str(page.parent), "--layers", "digits#40", "--out", str(out)]) == 0
    assert (page.parent / "a" / "seed-1", 10) in loaded
    assert {step for _, step in loaded} == {10}
