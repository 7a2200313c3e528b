"""The notebook runs from top to bottom, and its two files hold the same cells."""

import os
import shutil
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "googlenet.ipynb"


def cells(file: Path) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in jupytext.read(file).cells]


def test_both_files_hold_the_same_cells_and_no_outputs():
    assert cells(NOTEBOOK) == cells(NOTEBOOK.with_suffix(".py"))
    code = [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    for name in ("gnet_jax", "configs", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "train.py", tmp_path)
    monkeypatch.setitem(os.environ, "XLA_FLAGS", "")  # one device, compiled as users compile
    notebook = nbformat.read(tmp_path / "notebooks" / NOTEBOOK.name, 4)
    NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": tmp_path / "notebooks"}}
    ).execute()
    printed = "".join(
        output.get("text", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    for expected in ("1,582,671,872", "112,896,000", "top-1", "wrote models/exported.onnx"):
        assert expected in printed
