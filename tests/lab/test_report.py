import csv
import importlib.util
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from gnet_jax.cli.main import main
from gnet_jax.config import Config
from gnet_jax.lab.sweeps.sweep import open_sweep
from tests.lab.sweeps import finished_sweep

FIGURES = 5
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    workdir = finished_sweep(tmp_path_factory.mktemp("sweep"))
    assert main(["report", str(workdir)]) == 0
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


def test_figures_are_written_as_svg_files_where_they_are_wanted(page, tmp_path):
    figures = tmp_path / "figures"
    command = ["report", str(page.parent), "--out", str(tmp_path / "r.html")]
    assert main([*command, "--figures", str(figures)]) == 0
    files = sorted(figures.glob("*.svg"))
    assert len(files) == FIGURES
    assert all(ElementTree.parse(file).getroot().tag.endswith("svg") for file in files)


def test_the_page_and_its_markdown_name_failures_configs_and_versions(page):
    for text in (page.read_text("utf-8"), page.with_suffix(".md").read_text("utf-8")):
        assert "b, seed 2: TrainingError: step 2: the loss is nan" in text
        assert "c, seed 1: not finished" in text
        assert "11 starts: commit 0123abc, Python 3.11.2, jax 0.7.2; 1 x cpu on here" in text
        assert "batch_size" in text
    assert "And &lt;what&gt; it is." in page.read_text("utf-8")


def test_a_sweep_without_a_finished_run_has_a_report_too(tmp_path):
    open_sweep(tmp_path, {"a": Config()}, 1, "text")
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 0
    assert "svg" not in Elements((tmp_path / "r.html").read_text("utf-8")).tags
    assert "a, seed 0: not finished" in (tmp_path / "r.md").read_text("utf-8")


def test_what_cannot_be_reported_is_one_sentence(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no sweep" in capsys.readouterr().err
    finished_sweep(tmp_path)
    for options in (["--out", "no/r.html"], ["--out", "/dev/full"], ["--figures", "no/no"]):
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


def test_every_finished_run_is_a_line_of_the_csv(page):
    lines = list(csv.DictReader(page.with_suffix(".csv").read_text("utf-8").splitlines()))
    assert len({(line["config"], line["seed"]) for line in lines}) == len(lines) > 3
    for line in lines:
        assert 0 <= float(line["top1"]) <= 1
        assert int(line["macs"]) > 0
        assert float(line["main_loss"]) > 0


@pytest.mark.parametrize("name", ["r.md", "r.csv"])
def test_a_page_of_another_name_is_refused(page, tmp_path, name, capsys):
    assert main(["report", str(page.parent), "--out", str(tmp_path / name)]) == 2
    assert "it must end in .html" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
