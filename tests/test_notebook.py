"""The notebooks run from top to bottom and are stored with outputs; each has two equal files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
GOOGLENET, INSIDE = (ROOT / "notebooks" / f"{name}.ipynb" for name in ("googlenet", "inside"))


def cells(file: Path) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in jupytext.read(file).cells]


@pytest.mark.parametrize("file", [GOOGLENET, INSIDE], ids=lambda file: file.stem)
def test_both_files_hold_the_same_cells(file):
    assert cells(file) == cells(file.with_suffix(".py"))


@pytest.mark.parametrize(
    ("file", "count"),
    [
        pytest.param(GOOGLENET, 5, id="googlenet"),  # costs, three runs, and the map
        # the channels, an objective of one's own, the dream, the attribution, the comparison
        pytest.param(INSIDE, 5, id="inside"),
    ],
)
def test_a_notebook_is_stored_with_small_outputs_and_without_errors(file, count):
    assert file.stat().st_size < 1_500_000
    code = [cell for cell in nbformat.read(file, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    pictures = [
        output for output in outputs if {"image/png", "image/jpeg"} & {*output.get("data", {})}
    ]
    assert len(pictures) == count


def helpers() -> dict[str, Any]:
    """The functions that a cell of the first notebook defines for its runs."""
    (source,) = (text for kind, text in cells(GOOGLENET) if kind == "code" and "def train(" in text)
    names: dict[str, Any] = {"Path": Path, "subprocess": subprocess, "sys": sys}
    exec(source.partition("\nshort = ")[0], names)
    return names


def test_the_curves_are_drawn_once_more_after_the_run_ends(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook, drawn = helpers(), []

    class Run:
        """A run that logs its last step while it ends."""

        returncode = 0

        def __init__(self, command, stdout, stderr):
            self.workdir = Path(command[-1])
            self.workdir.mkdir()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def wait(self, seconds):
            (self.workdir / "metrics.jsonl").write_text("last step")

    monkeypatch.setattr(subprocess, "Popen", Run)
    notebook["draw_curves"] = lambda workdirs, picture: drawn.extend(workdirs)
    notebook["Image"] = notebook["display"] = notebook["clear_output"] = MagicMock()
    first = notebook["train"]("digits", "digits", "--epochs", "6")
    assert drawn == [first]
    others = [
        notebook["train"]("digits", "digits", "--epochs", "7"),
        notebook["train"]("digits", "digits", "--epochs", "6", data=["photos were added"]),
    ]
    assert len({first, *others}) == 3  # an edited cell starts a new run


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (GOOGLENET, ("1,582,671,872", "112,896,000", "top-1", "wrote models/exported.onnx")),
        (INSIDE, ("inception_4a:12", "narrow: linear probe on the last block")),
    ],
    ids=["googlenet", "inside"],
)
def test_it_runs_from_top_to_bottom(file, expected, tmp_path, monkeypatch):
    for name in ("gnet_jax", "configs", "docs", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "train.py", tmp_path)
    monkeypatch.setitem(os.environ, "XLA_FLAGS", "")  # one device, compiled as users compile
    notebook = nbformat.read(tmp_path / "notebooks" / file.name, 4)
    NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": tmp_path / "notebooks"}}
    ).execute()
    printed = "".join(
        output.get("text", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    for text in expected:
        assert text in printed
