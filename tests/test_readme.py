"""What README and docs show can be typed."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

import train
from gnet_jax.cli.main import main
from gnet_jax.config import RECIPES, check
from gnet_jax.config.recipes import recipe_names
from gnet_jax.lab.cost.ledger import network_ledger
from gnet_jax.model.googlenet import googlenet

ROOT = Path(__file__).parents[1]
PAGES = {
    page: (ROOT / page).read_text()
    for page in ("README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md")))
    if page != "docs/extending.md"  # tests/test_extending.py runs it
}
BLOCKS = [
    (page, header, text)
    for page, content in PAGES.items()
    for header, text in re.findall(r"^```([^\n]*)\n(.*?)^```", content, re.MULTILINE | re.DOTALL)
]
LINES = [line for *_, text in BLOCKS for line in text.replace("\\\n", "").splitlines()]


@pytest.mark.parametrize("command", [line for line in LINES if line.startswith("python train.py")])
def test_every_training_command_is_valid(command, capsys):
    arguments = shlex.split(command, comments=True)[2:]
    if "--help" in arguments:
        with pytest.raises(SystemExit):
            train.parse(arguments)
    else:
        check(train.parse(arguments))


@pytest.mark.parametrize("command", [line for line in LINES if "gnet " in line])
def test_every_gnet_command_and_its_options_exist(command, capsys):
    name, *arguments = shlex.split(command.split("gnet ", 1)[1], comments=True)
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for option in (each for each in arguments if each.startswith("--")):
        assert option in text


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_is_valid_and_gives_its_command(recipe):
    check(train.parse([recipe]))
    assert "python train.py" in (RECIPES / f"{recipe}.py").read_text()


def test_the_table_of_variants_is_what_the_ledger_gives():
    row = r"^\| `(\w+)` .*?\| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|"
    rows = re.findall(row, PAGES["docs/ideas.md"], re.MULTILINE)
    assert len(rows) == 6
    for variant, *numbers in rows:
        costs = network_ledger(googlenet(variant), 224)
        found = (costs.params, costs.params_with_aux, costs.macs)
        assert [f"{value:,}" for value in found] == numbers


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_linked_exists(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", PAGES[page]):
        assert ((ROOT / page).parent / target).exists(), target


def test_the_repository_has_one_address():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    address = project["urls"]["Repository"]
    files = [ROOT / "README.md", *(ROOT / "notebooks").iterdir(), *(ROOT / "launch").iterdir()]
    found = {}
    for file in files:
        own = r"(?:github\.com|colab\S*/github)/([\w.-]+/gnet_jax)\b"
        found |= dict.fromkeys(re.findall(own, file.read_text()), file.name)
    assert list(found) == [address.removeprefix("https://github.com/")]
    for name, text in (
        ("README.md", "colab-badge.svg"),
        ("notebooks/googlenet.py", f'REPOSITORY = "{address}"'),
        ("launch/tpu_vm.sh", f"REPOSITORY:-{address}}}"),
    ):
        assert text in (ROOT / name).read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        text
        for page, header, text in BLOCKS
        if header == "python" and page != "docs/library.md"  # tests/test_library.py runs it
    ],
    ids=lambda text: text[:20],
)
def test_the_python_shown_runs(code):
    exec(compile(code, "shown", "exec"), {})
