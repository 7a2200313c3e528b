"""docs/extending.md: its files, outside the package, train, are counted, stored and exported."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

import train
from gnet_jax.cli.main import main
from gnet_jax.config import UserError, load_recipe, load_sweep
from gnet_jax.lab.cost.ledger import network_ledger
from gnet_jax.model import custom
from gnet_jax.model.architecture import Choices
from gnet_jax.model.blocks import InceptionBlock
from gnet_jax.model.googlenet import GoogLeNet, check_statistics
from tests.tiny import tiny_arch, tiny_variables

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"^<!-- file: (\S+) -->\n```python\n(.*?)^```", PAGE, re.M | re.S))
SMALL = ["--model.width-multiplier", "0.125", "--model.blocks", "3a", "--model.aux-after"]
SMALL += ["--optim.warmup-epochs", "0"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the files of the page."""
    place = tmp_path_factory.mktemp("extending")
    for name, text in FILES.items():
        (place / name).write_text(text)
    return place


@pytest.fixture(scope="module", params=[("two_threes", "block"), ("group_norm", "norm")])
def trained(request, place) -> tuple[Path, Path, str]:
    """A file, its run of four steps, and the field that names its part."""
    name, field = request.param
    file, workdir = place / f"{name}.py", place / "runs" / name
    options = ["--workdir", str(workdir), "--epochs", "0.1", "--log-every-steps", "2"]
    assert train.main([str(file), *options, *SMALL]) == 0
    return file, workdir, field


def test_the_page_has_a_block_and_a_norm():
    assert list(FILES) == ["two_threes.py", "group_norm.py"]


def test_two_stacked_3x3_are_counted(place):
    config, _ = load_recipe(str(place / "two_threes.py"))
    plain = dataclasses.replace(config.model, block=None)
    own, base = (network_ledger(GoogLeNet(m.build()), 16) for m in (config.model, plain))
    widths = plain.build().widths
    assert len(widths) == 9
    # Without biases; the second 3x3 adds a batch norm, of a scale and a bias each channel.
    assert own.params - base.params == sum(
        9 * w.reduce5 * w.b5 + 9 * w.b5 * w.b5 + 2 * w.b5 - 25 * w.reduce5 * w.b5
        for w in widths.values()
    )
    sides = {"3": 8, "4": 4, "5": 2}
    assert own.macs - base.macs == sum(
        sides[name[0]] ** 2 * (9 * w.b5 * w.b5 - 16 * w.reduce5 * w.b5)
        for name, w in widths.items()
    )


def test_group_norm_is_counted(place):
    config, _ = load_recipe(str(place / "group_norm.py"))
    batch_norm = dataclasses.replace(config.model, norm="batch_norm")
    own, base = (network_ledger(GoogLeNet(m.build()), 16) for m in (config.model, batch_norm))
    assert (own.params, own.macs) == (base.params, base.macs)


def test_a_sweep_shows_the_part(place):
    sweep, _ = load_sweep(str(place / "two_threes.py"))
    blocks = [config.model.block for config in sweep.configs.values()]
    assert blocks == [None, f"{place / 'two_threes.py'}:TwoThrees"]


def test_a_run_of_it_is_recorded_by_name(trained):
    file, workdir, field = trained
    losses = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in losses if "loss" in row)
    part = {"block": "TwoThrees", "norm": "group_norm"}[field]
    assert f"{file}:{part}" in (workdir / "config.json").read_text()


def test_a_model_folder_of_it_opens_and_exports(trained, tmp_path, capsys):
    _, workdir, _ = trained
    folder = tmp_path / "model"
    assert main(["convert", str(workdir), str(folder)]) == 0
    assert main(["export", str(folder), str(tmp_path / "net.safetensors")]) == 0
    capsys.readouterr()
    assert main(["export", str(folder), str(tmp_path / "net.pth")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1


def test_opening_it_without_the_file_is_one_error(trained, tmp_path):
    file, workdir, _ = trained
    moved = tmp_path / file.name
    command = [sys.executable, "-m", "gnet_jax", "convert", str(workdir), str(tmp_path / "model")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shutil.move(file, moved)
    try:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        run = {"capture_output": True, "text": True, "env": environment, "check": False}
        done = subprocess.run(command, cwd=elsewhere, **run)
        assert done.returncode == 2
        assert str(file) in done.stderr
        assert done.stderr.count("\n") == 1
        found_here = subprocess.run(command, cwd=tmp_path, **run)
        assert found_here.returncode == 0
        assert "warning" not in found_here.stderr
        (elsewhere / file.name).write_text(moved.read_text() + "# changed\n")
        shutil.rmtree(tmp_path / "model")
        changed = subprocess.run(command, cwd=elsewhere, **run)
        assert changed.returncode == 0
        assert f"warning: {file}" in changed.stderr
    finally:
        shutil.move(moved, file)


def test_the_command_line_takes_a_part(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    paths = list(sys.path)
    options = ["--variant", "batch_norm", "--format", "json", "--image-size", "64"]
    assert main(["summary", "--block", "two_threes.py:TwoThrees", *options]) == 0
    names = {row["name"] for row in json.loads(capsys.readouterr().out)["layers"]}
    assert {"inception_3a/b5a", "inception_3a/b5b"} <= names
    assert main(["summary", "--block", "two_threes.py:FourThrees"]) == 2
    assert "FourThrees" in capsys.readouterr().err
    assert sys.path == paths


def test_a_file_may_import_modules_from_its_own_folder(tmp_path):
    (tmp_path / "sizes_of_mine.py").write_text("SIZE = 7\n")
    (tmp_path / "block.py").write_text("from sizes_of_mine import SIZE\ndef block(): return SIZE\n")
    before = list(sys.path)
    assert custom.load(f"{tmp_path}/block.py:block")() == 7
    assert sys.path == before


def test_files_in_two_folders_each_import_their_own_module_of_one_name(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sizes.py").write_text(f"SIZE = {name!r}\n")
        (tmp_path / name / "part.py").write_text(
            "from sizes import SIZE\ndef part(): return SIZE\n"
        )
    found = [custom.load(f"{tmp_path}/{name}/part.py:part")() for name in ("a", "b")]
    assert found == ["a", "b"]
    assert "sizes" not in sys.modules


def test_a_file_may_postpone_its_annotations(tmp_path):
    file = tmp_path / "postponed.py"
    file.write_text(
        "from __future__ import annotations\nimport flax.linen as nn\n"
        "class Scaled(nn.Module):\n    groups: int = 2\n"
    )
    part = custom.load(f"{file}:Scaled")
    assert part(groups=3).groups == 3
    assert custom.reference(part) == f"{file}:Scaled"


def own_norm(train, dtype, name, momentum):
    return nn.BatchNorm(
        use_running_average=not train, momentum=momentum, epsilon=1e-3, dtype=dtype, name=name
    )


def test_training_sees_the_statistics_of_the_batch_from_a_norm_that_takes_momentum():
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
    found = []
    for norm in ("batch_norm", own_norm):
        model = GoogLeNet(tiny_arch("batch_norm", norm=norm)).clone(momentum=0.0)
        _, updated = model.apply(
            tiny_variables(model),
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        found.append(updated["batch_stats"])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), *found)


def test_statistics_that_training_cannot_average_are_refused():
    def norm(train, dtype, name):
        return own_norm(train, dtype, name, momentum=0.99)

    class Block(InceptionBlock):
        @nn.compact
        def __call__(self, x_BHWC):
            return nn.BatchNorm(use_running_average=False)(super().__call__(x_BHWC))

    for change, statistic in (
        ({"norm": norm}, "norm/mean"),
        ({"block": Block}, "BatchNorm_0/mean"),
    ):
        model = GoogLeNet(tiny_arch("batch_norm", **change))
        statistics = tiny_variables(model)["batch_stats"]
        with pytest.raises(UserError, match=f"{statistic} is a statistic that .* `momentum`"):
            check_statistics(model, statistics)
    model = GoogLeNet(tiny_arch("batch_norm", norm=own_norm))
    check_statistics(model, tiny_variables(model)["batch_stats"])


def test_training_refuses_such_a_norm_before_any_work(tmp_path, capsys):
    (tmp_path / "norms.py").write_text(
        "import flax.linen as nn\n"
        "def norm(train, dtype, name):\n"
        "    return nn.BatchNorm(use_running_average=not train, dtype=dtype, name=name)\n"
    )
    options = ["--model.norm", f"{tmp_path}/norms.py:norm", "--workdir", str(tmp_path / "run")]
    assert train.main(["digits", *options, *SMALL]) == 2
    assert "is a statistic that training cannot average" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_file_in_a_private_folder_is_looked_up_in_the_current_one(private, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "private.py").write_text("def part(): return 3\n")
    assert custom.load(f"{private}/private.py:part")() == 3


def test_a_part_inside_a_function_works_here_and_is_not_stored():
    def norm(train, dtype, name):
        raise NotImplementedError

    def other(train, dtype, name):
        raise NotImplementedError

    other.__qualname__ = norm.__qualname__
    first, again, second = (Choices(norm=part).build().norm for part in (norm, norm, other))
    assert first == again != second
    assert first.startswith("<process>:")
