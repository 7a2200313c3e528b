import dataclasses
import json
import os
import random
from pathlib import Path

import pytest

from gnet_jax.config import Config, ConfigError, UserError, load_sweep
from gnet_jax.config.recipes import sweep_names
from gnet_jax.lab.sweeps.sweep import list_cells, open_sweep, read_sweep, select_shard
from gnet_jax.training.program import model_of


@pytest.mark.parametrize("name", sweep_names())
def test_every_sweep_of_the_project_is_of_nets_that_can_be(name):
    sweep, text = load_sweep(name)
    assert f"gnet ablate {name} " in text
    assert sweep.seeds >= 3
    for config in sweep.configs.values():
        model_of(config, 10)


def test_shards_are_ranges_of_similar_cost_and_hold_every_run_once():
    generator = random.Random(0)
    for shards in (1, 2, 3, 7):
        costs = [generator.choice([0.0, 1.0, 8.0]) for _ in range(12)]
        shares = [select_shard(costs, index, shards) for index in range(shards)]
        assert sorted(position for share in shares for position in share) == list(range(12))
        assert all(share == list(range(share[0], share[-1] + 1)) for share in shares if share)
    assert [select_shard([1, 1, 1, 3], index, 2) for index in range(2)] == [[0, 1, 2], [3]]
    assert [select_shard([2] * 6, index, 3) for index in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert [select_shard([0.0, 0.0], index, 2) for index in range(2)] == [[0, 1], []]


def test_seeds_follow_that_of_the_config_and_each_run_has_its_folder(tmp_path):
    configs = {"a": Config(seed=5), "b": Config()}
    cells = list_cells(tmp_path, {"a": 5, "b": 0}, 2)
    assert [(cell.name, cell.seed) for cell in cells] == [("a", 5), ("a", 6), ("b", 0), ("b", 1)]
    assert cells[1].workdir == tmp_path / "a" / "seed-6"
    open_sweep(tmp_path, configs, 2, "text")
    assert read_sweep(tmp_path).cells == cells


def test_a_folder_of_another_sweep_is_refused_and_configs_can_be_added(tmp_path):
    configs = {"a": Config(), "b": Config()}
    open_sweep(tmp_path, configs, 2, "text")
    other = dataclasses.replace(Config(), batch_size=7)
    with pytest.raises(ConfigError, match=r"'b' .*batch_size: 32 there, 7 now"):
        open_sweep(tmp_path, configs | {"b": other}, 2, "text")
    open_sweep(tmp_path, {"c": other}, 3, "text")
    assert list(read_sweep(tmp_path).configs) == ["a", "b", "c"]
    assert [cell.seed for cell in read_sweep(tmp_path).cells] == [0, 1, 2] * 3
    assert [file.name for file in tmp_path.iterdir()] == ["sweep.json"]


def test_shards_write_the_sweep_through_files_of_their_own(tmp_path, monkeypatch):
    moved = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: [moved.append(Path(a)), replace(a, b)])
    for _ in range(2):
        open_sweep(tmp_path / "new" / "sweep", {"a": Config()}, 2, "text")
    assert len(set(moved)) == 2
    assert {file.parent for file in moved} == {tmp_path / "new" / "sweep"}
    assert all(file.name.startswith(".") for file in moved)
    assert (tmp_path / "new/sweep/sweep.json").stat().st_mode & 0o777 == 0o644


def test_a_folder_without_a_readable_sweep_is_refused(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        read_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text(json.dumps([]) + "x")
    with pytest.raises(UserError, match=r"sweep\.json"):
        read_sweep(tmp_path)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def get_config(): pass", "get_sweep"),
        ("def get_sweep(): return {}", "returns a dict, not a Sweep"),
        ("def get_sweep(): 1 / 0", "fails with ZeroDivisionError"),
        ("from gnet_jax.config import *\ndef get_sweep(): return Sweep({})", "configs is {}"),
        (
            "from gnet_jax.config import *\ndef get_sweep(): return Sweep({'a/b': Config()})",
            "'a/b'",
        ),
    ],
)
def test_a_file_that_is_no_sweep_is_told_why(code, message, tmp_path):
    (tmp_path / "s.py").write_text(code)
    with pytest.raises(ConfigError) as raised:
        load_sweep(str(tmp_path / "s.py"))
    assert message in str(raised.value)


def test_fewer_seeds_than_before_drop_no_run(tmp_path):
    open_sweep(tmp_path, {"a": Config()}, 3, "text")
    open_sweep(tmp_path, {"a": Config()}, 1, "text")
    assert len(read_sweep(tmp_path).cells) == 3


def test_a_sweep_is_named_by_its_first_line_or_its_folder(tmp_path):
    open_sweep(tmp_path / "one", {"a": Config()}, 1, "\nA title.\n\nAbout it.\n")
    record = read_sweep(tmp_path / "one")
    assert (record.title, record.about) == ("A title.", "About it.")
    assert record.configs["a"].keys().isdisjoint({"seed", "workdir"})
    assert record.configs["a"]["batch_size"] == 32
    open_sweep(tmp_path / "two", {"a": Config()}, 1, "")
    assert read_sweep(tmp_path / "two").title == "two"
    assert (tmp_path / "two" / "sweep.json").read_text().startswith('{\n  "about"')
