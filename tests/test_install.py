"""The wheel in an environment of its own, away from the checkout: what `pip install .` gives."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from gnet_jax.config.recipes import recipe_names, sweep_names

ROOT = Path(__file__).parents[1]
SMALL = (
    *("--epochs", "0.04", "--optim.warmup-epochs", "0", "--model.width-multiplier", "0.0625"),
    *("--model.dropout", "0"),
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A virtual environment with the wheel, this one's libraries, and a foreign `configs`."""
    root = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", root, ROOT], capture_output=True, text=True
    )
    if built.returncode and "hatchling" in built.stderr + built.stdout:
        pytest.skip("building the wheel needs hatchling, and no package index can be reached")
    assert built.returncode == 0, built.stderr
    (wheel,) = root.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "venv"], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = root / "venv/lib" / version / "site-packages"
    subprocess.run(
        [*pip, "--python", root / "venv/bin/python", "install", "--no-deps", "--quiet", wheel],
        check=True,
    )
    # Libraries come from the environment of the tests, but not what it takes from the checkout.
    libraries = root / "libraries"
    libraries.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "gnet" not in entry.name and entry.suffix != ".pth":
            (libraries / entry.name).symlink_to(entry)
    (site / "libraries.pth").write_text(f"{libraries}\n")
    (site / "configs").mkdir()
    (site / "configs" / "digits.py").write_text("raise RuntimeError('a foreign recipe')\n")
    (site / "configs" / "stranger.py").touch()
    return root


def gnet(root: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"XLA_FLAGS": "", "XDG_CACHE_HOME": str(root / "cache")}
    return subprocess.run(
        [root / "venv/bin/gnet", *map(str, arguments)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_wheel_has_every_recipe_and_sweep_and_no_others(installed):
    (wheel,) = installed.glob("*.whl")
    names = {Path(name).stem for name in zipfile.ZipFile(wheel).namelist() if "/configs/" in name}
    assert names == {*recipe_names(), *sweep_names(), "common"}
    for command, known in (("train", recipe_names()), ("ablate", sweep_names())):
        done = gnet(installed, command, "stranger")
        assert done.returncode == 2
        assert "unknown recipe stranger" in done.stderr or "unknown sweep stranger" in done.stderr
        for name in known:
            done = gnet(installed, command, name, "--help")
            assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_installed_command_trains_and_predicts(installed):
    workdir = installed / "run"
    done = gnet(installed, "train", "digits", "--workdir", workdir, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "venv/bin/gnet predict" in done.stdout
    assert "train.py" not in done.stdout + done.stderr
    again = gnet(installed, "train", "digits", "--workdir", workdir, *SMALL, "--supervise")
    assert "already finished" in again.stdout, again.stderr
    Image.new("RGB", (16, 16)).save(installed / "photo.png")
    done = gnet(installed, "predict", workdir, "photo.png", "--json")
    assert done.returncode == 0, done.stderr
    done = gnet(installed, "train", "digit")
    assert done.returncode == 2
    assert done.stderr.startswith("gnet train: error: unknown recipe digit")
