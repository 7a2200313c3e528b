"""The commands work beside any files, without a home or a user, and with a full disk."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gnet_jax.config.paths import cache_folder, typed_path

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


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["train.py"], "checkout"),
        (["-m", "gnet_jax", "train"], None),
        (["-m", "gnet_jax", "train"], "another checkout"),
    ],
)
def test_no_module_beside_the_command_is_imported(checkout, command, named):
    folder, recipe = checkout
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if named is not None:
        environment["PYTHONPATH"] = str(folder if named == "checkout" else ROOT)
    if named == "another checkout":  # so that `folder` is any working directory
        (folder / "gnet_jax").unlink()
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


def test_a_folder_that_the_user_names_is_imported(tmp_path):
    """Also if Python itself puts no other folder before it (-P)."""
    (tmp_path / "mine.py").write_text("SEED = 5\n")
    recipe = tmp_path / "recipes" / "tell.py"
    recipe.parent.mkdir()
    recipe.write_text("import mine\nraise ValueError(mine.SEED)\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "gnet_jax", "train", str(recipe)],
        cwd=recipe.parent,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.stderr.endswith("fails with ValueError: 5\n")


def gnet(*arguments, **streams):
    return subprocess.run([sys.executable, "-m", "gnet_jax", *arguments], cwd=ROOT, **streams)


def test_an_error_that_nobody_reads_any_more_keeps_its_exit_code():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert gnet("sumary", stderr=writing).returncode == 2
    finally:
        os.close(writing)


def test_a_reader_that_leaves_gets_exit_code_0():
    """`gnet check-data` exits with 1 for data that must be fixed, so `| head` must not."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert gnet("--help", stdout=writing).returncode == 0
    finally:
        os.close(writing)


PRINT_TWICE = """
from gnet_jax.training.observe.console import SafeConsole
for text in "a", "b":
    SafeConsole().say(text)
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_training_goes_on_where_its_output_is_on_a_full_disk():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINT_TWICE], stdout=full, stderr=-1, text=True
        )
        assert done.returncode == 0
        assert done.stderr.count(os.strerror(errno.ENOSPC)) == 1


UNKNOWN_USER = """
import os, pwd, sys
def unknown(uid): raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
from gnet_jax.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_an_unknown_user_without_a_home_gets_a_folder_for_temporary_files(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", UNKNOWN_USER, "sumary"],
        cwd=ROOT,
        env=environment | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    home, error = done.stderr.splitlines()
    assert str(tmp_path / f"gnet_jax-{os.getuid()}") in home
    assert "sumary" in error


@pytest.mark.parametrize("unfit", ["a file", "a dangling link", "relative"])
def test_the_cache_is_among_temporary_files_where_a_home_cannot_be_written(
    unfit, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    home = {"a file": tmp_path / "file", "a dangling link": tmp_path / "link"}.get(unfit, "home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = tmp_path / f"gnet_jax-{os.getuid()}"
    assert cache_folder() == own
    assert own.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "gnet_jax"
    monkeypatch.setattr(os, "access", lambda *_: False)  # for other users than root
    assert cache_folder() == own


def test_a_tilde_is_the_home_unless_a_folder_has_this_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    assert typed_path("~/x") == Path("/home/me/x")
    (tmp_path / "~" / "x").mkdir(parents=True)
    assert typed_path("~/x") == Path("~/x")
