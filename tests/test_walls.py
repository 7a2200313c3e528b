"""The layout holds: who may import whom, and how large a module may grow."""

import ast
import functools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gnet_jax"
# Each package may import from itself and from those above it.
PACKAGES = ["errors", "ops", "model", "config", "data", "model_folder", "training", "convert"]
PACKAGES += ["inference", "lab", "pods", "cli"]
# What a model can do is a method of the model, and imported when it is called.
METHODS = {"model_folder/trained.py": "inference"}
MODULES = sorted(PACKAGE.rglob("*.py"))


@functools.cache
def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def package_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "gnet_jax" and len(parts) > 1 and parts[1] in PACKAGES else None


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_package_imports_only_from_packages_above_it(file):
    relative = file.relative_to(PACKAGE)
    package = relative.parts[0].removesuffix(".py")
    if package not in PACKAGES:
        assert package in ("__init__", "__main__")
        return
    for module in imports_of(file):
        other = package_of(module)
        if other is None or other == METHODS.get(relative.as_posix()):
            continue
        assert PACKAGES.index(other) <= PACKAGES.index(package), f"{file} imports {module}"


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_heavy_libraries_stay_in_their_packages(file):
    relative = file.relative_to(PACKAGE).as_posix()
    tops = {module.split(".")[0] for module in imports_of(file)}
    assert "tensorflow" not in tops or relative.startswith(("data/", "convert/"))
    assert not {"tensorflow_datasets", "grain"} & tops or relative.startswith("data/")
    assert "orbax" not in tops or relative == "training/checkpoints/save.py"
    if relative.startswith(("model/", "ops/")):
        assert tops - set(sys.stdlib_module_names) <= {"jax", "flax", "numpy", "gnet_jax"}


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_packages_stay_small(file):
    assert file.name != "utils.py"
    assert len(file.read_text().splitlines()) <= 450


def test_only_sharding_names_meshes_and_partition_specs():
    for file in MODULES:
        relative = file.relative_to(PACKAGE).as_posix()
        if relative.startswith("pods/") or relative == "training/sharding.py":
            continue
        named = {module for module in imports_of(file) if module.startswith("jax.sharding")}
        assert named <= {"jax.sharding", "jax.sharding.Mesh"}, relative
