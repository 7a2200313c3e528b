"""The commands work beside any files, without a home or a user, and with closed streams."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Of the standard library, of what libraries use if it is there, and of ours.
LOCAL = (
    "random",
    "torch",
    "tensorflow",
    "onnx",
    "cv2",
    "gradio",
    "jax_plugins",
    "configs",
    "pandas",
)
# A recipe that tells which modules of a folder it can import.
TELL = """
import importlib.util
specs = [spec for spec in map(importlib.util.find_spec, {names}) if spec]
places = [place for spec in specs for place in spec.submodule_search_locations or [spec.origin]]
raise ValueError([place for place in places if place.startswith({folder!r})])
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout in which modules lie that are not for import, and a recipe elsewhere."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "gnet_jax").symlink_to(ROOT / "gnet_jax")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "train.py").write_text((ROOT / "train.py").read_text())
    for name in LOCAL:
        if name == "random":
            (folder / "random.py").write_text("raise RuntimeError('imported random.py')\n")
        elif name != "configs":
            (folder / name).mkdir()
    recipe = tmp_path / "recipes" / "tell.py"
    recipe.parent.mkdir()
    recipe.write_text(TELL.format(names=LOCAL, folder=str(folder)))
    return folder, recipe


@pytest.mark.parametrize("command", [["train.py"], ["-m", "gnet_jax", "train"]])
@pytest.mark.parametrize("named", [False, True])
def test_no_module_beside_the_command_is_imported(checkout, command, named):
    folder, recipe = checkout
    environment = os.environ | {"PYTHONPATH": str(folder)}
    if not named:
        del environment["PYTHONPATH"]
    done = subprocess.run(
        [sys.executable, *command, str(recipe)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    prog = "train.py" if command == ["train.py"] else "gnet train"
    assert done.stderr == f"{prog}: error: {recipe} fails with ValueError: []\n"
    assert done.returncode == 2
