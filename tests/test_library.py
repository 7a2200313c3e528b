"""docs/library.md: the code of every section runs on its own, after that of the first section."""

import re
from pathlib import Path

import flax
import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "library.md").read_text()
(_, FIRST), *SECTIONS = re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```", PAGE, re.M | re.S)


@pytest.fixture(scope="module")
def names():
    """The names that the first section defines."""
    names = {}
    exec(compile(FIRST, "docs/library.md", "exec"), names)
    return names


@pytest.mark.parametrize(("title", "code"), SECTIONS, ids=[title for title, _ in SECTIONS])
def test_the_contract_holds(title, code, names, tmp_path, monkeypatch):
    if "NNX" in title and tuple(map(int, flax.__version__.split(".")[:2])) < (0, 12):
        pytest.skip("before Flax 0.12, ToNNX loses parameters in training")
    monkeypatch.chdir(tmp_path)  # sections write files
    exec(compile(code, f"docs/library.md: {title}", "exec"), dict(names))


def test_every_section_has_one_block_of_code():
    titles = re.findall(r"^## (.+)", PAGE, re.M)
    assert titles[1:] == [title for title, _ in SECTIONS]
    assert PAGE.count("```python\n") == PAGE.count("```") / 2 == len(titles)
