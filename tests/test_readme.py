"""What the README shows can be typed."""

import re
import shlex
from pathlib import Path

import pytest

import train
from gnet_jax.config import RECIPES, check
from gnet_jax.lab.ledger import network_ledger
from gnet_jax.model import googlenet

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line
    for _, text in BLOCKS
    for line in text.replace("\\\n", "").splitlines()
    if line.startswith("python train.py") and "--help" not in line
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_training_command_is_valid(command):
    arguments = shlex.split(command, comments=True)[2:]
    check(train.parse(arguments))


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.py")))
def test_every_recipe_is_valid_and_gives_its_command(recipe):
    check(train.parse([recipe]))
    assert "python train.py" in (RECIPES / f"{recipe}.py").read_text()


def test_the_table_of_variants_is_what_the_ledger_gives():
    rows = re.findall(
        r"^\| `(\w+)` .*?\| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|", README, re.MULTILINE
    )
    assert len(rows) == 5
    for variant, *numbers in rows:
        costs = network_ledger(googlenet(variant), 224)
        found = (costs.params, costs.params_with_aux, costs.macs)
        assert [f"{value:,}" for value in found] == numbers


def test_every_file_that_is_linked_exists():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target


@pytest.mark.slow
def test_the_python_shown_runs():
    code = [text for language, text in BLOCKS if language == "python"]
    assert code
    for text in code:
        exec(compile(text, "README.md", "exec"), {})
