import json
import os
import random
from pathlib import Path

import pytest

from gnet_jax.config import Config, ConfigError, Sweep, UserError, change, grid, load_sweep
from gnet_jax.config.recipes import check_sweep, sweep_names
from gnet_jax.lab.sweeps.sweep import (
    Cell,
    Tuning,
    config_of,
    list_cells,
    open_sweep,
    plan_cells,
    read_sweep,
    read_tuning,
    select_shard,
    tuning_cells,
)
from gnet_jax.training.program import model_of
from gnet_jax.training.workdir import BusyError, locked


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
    open_sweep(tmp_path, Sweep(configs, seeds=2), "text")
    rows = read_sweep(tmp_path).rows
    assert [row.workdirs for row in rows] == [
        {cell.seed: cell.workdir for cell in cells if cell.name == name} for name in "ab"
    ]


def test_configs_and_seeds_can_be_added(tmp_path):
    open_sweep(tmp_path, Sweep({"a": Config(), "b": Config()}, seeds=2), "text")
    assert open_sweep(tmp_path, Sweep({"c": Config(batch_size=7)}), "text") == []
    record = read_sweep(tmp_path)
    assert list(record.configs) == ["a", "b", "c"]
    assert [list(row.workdirs) for row in record.rows] == [[0, 1, 2]] * 3
    assert record.baseline.name == "a"
    assert [file.name for file in tmp_path.iterdir()] == ["sweep.json"]


def test_a_config_may_change_until_one_of_its_runs_has_a_checkpoint(tmp_path):
    configs = {"a": Config(), "b": Config()}
    open_sweep(tmp_path, Sweep(configs), "text")
    for name in configs:
        (tmp_path / name / "seed-0").mkdir(parents=True)
        (tmp_path / name / "seed-0" / "result.json").write_text('{"status": "failed", "error": ""}')
    (tmp_path / "a" / "seed-1" / "checkpoints" / "3").mkdir(parents=True)
    changed = Sweep(configs | {"b": Config(batch_size=7)})
    assert open_sweep(tmp_path, changed, "text") == ["b"]
    assert read_sweep(tmp_path).configs["b"]["batch_size"] == 7
    assert not (tmp_path / "b" / "seed-0").exists()  # the failed run was that of the old config
    with pytest.raises(ConfigError, match=r"'a' .*batch_size: 32 there, 7 now"):
        open_sweep(tmp_path, Sweep({name: Config(batch_size=7) for name in "ab"}), "text")
    assert (tmp_path / "a" / "seed-0" / "result.json").exists()


def test_a_changed_config_deletes_neither_results_nor_what_the_sweep_has_not_written(tmp_path):
    open_sweep(tmp_path, Sweep({"a": Config()}), "text")
    result = tmp_path / "a" / "seed-0" / "result.json"
    result.parent.mkdir(parents=True)
    result.write_text('{"status": "done", "top1": 0.5}')  # its checkpoints were deleted by hand
    changed = Sweep({"a": Config(batch_size=7)})
    with pytest.raises(ConfigError, match="seed-0 was trained with it"):
        open_sweep(tmp_path, changed, "text")
    result.write_text('{"status": "failed", "error": "nan"}')
    other = tmp_path / "a" / "checkpoints" / "5"  # of a run in the config's folder
    other.mkdir(parents=True)
    assert open_sweep(tmp_path, changed, "text") == ["a"]
    assert other.exists()
    assert not result.exists()


@pytest.mark.parametrize("text", ["{}", "[]", '{"status": "done"}', '{"status": "failed"}'])
def test_an_incomplete_result_is_named(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(UserError, match=r"result\.json is corrupt"):
        _ = Cell("a", 0, tmp_path).result


def test_an_incomplete_record_of_a_sweep_is_named(tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    for act in (
        lambda: read_sweep(tmp_path),
        lambda: open_sweep(tmp_path, Sweep({"a": Config()}), ""),
    ):
        with pytest.raises(UserError, match=r"sweep\.json is corrupt"):
            act()


def test_a_changed_config_that_another_process_starts_to_train_is_refused(tmp_path):
    open_sweep(tmp_path, Sweep({"a": Config()}), "text")
    run = tmp_path / "a" / "seed-0"
    run.mkdir(parents=True)
    with locked(run), pytest.raises(BusyError, match="seed-0"):
        open_sweep(tmp_path, Sweep({"a": Config(batch_size=7)}), "text")
    assert run.exists()


def test_other_tuning_rates_are_a_change_of_the_config(tmp_path):
    configs = {"a": Config(), "b": Config()}
    open_sweep(tmp_path, Sweep(configs, learning_rates=(0.1,)), "text")
    (tmp_path / "a" / "tune-0.1" / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"'a' .*tuning.learning_rates: \[0.1\] there"):
        open_sweep(tmp_path, Sweep(configs, learning_rates=(0.1, 0.2)), "text")


def test_a_family_is_tuned_before_its_runs_and_is_never_divided(tmp_path):
    configs = dict.fromkeys("abc", Config(seed=3))
    assert [len(group) for group in plan_cells(tmp_path, Sweep(configs))] == [1] * 9
    sweep = Sweep(configs, seeds=2, learning_rates=(0.2, 0.1), families={"c": "a"})
    one, two = plan_cells(tmp_path, sweep)
    names = [cell.workdir.relative_to(tmp_path).as_posix() for cell in one]
    runs = ["a/seed-3", "a/seed-4", "c/seed-3", "c/seed-4"]
    assert names == ["a/tune-0.1", "a/tune-0.2", *runs]
    assert [cell.learning_rate for cell in two] == [0.1, 0.2, None, None]
    assert {cell.name for cell in two} == {"b"}


def test_a_tuning_run_validates_on_held_out_training_images(tmp_path):
    config = Config()
    tuning, run = Cell("a", 0, tmp_path, 0.5), Cell("a", 0, tmp_path)
    tried = config_of(tuning, config, None)
    assert (tried.data.source, tried.optim.learning_rate) == ("digits#holdout=10%", 0.5)
    assert config_of(run, config, None) == config
    assert config_of(run, config, 0.5) == change(config, {"optim.learning_rate": 0.5})


def test_the_best_learning_rate_is_that_of_the_most_accurate_run_that_did_not_fail(tmp_path):
    cells = tuning_cells(tmp_path, "a", 0, (4.0, 1.0, 2.0))
    for cell, top1 in zip(cells, (0.4, 0.6, None), strict=True):
        assert read_tuning(cells) is None  # not all have ended
        cell.workdir.mkdir(parents=True)
        failed = {"status": "failed", "error": "nan"}
        result = failed if top1 is None else {"status": "done", "top1": top1, "val_images": 1000}
        (cell.workdir / "result.json").write_text(json.dumps(result))
    tuning = read_tuning(cells)
    assert tuning.best == 2
    assert tuning.note == (
        "learning rate 2 (1: 40.00%, 2: 60.00%, 4: failed of 1,000 held-out images)"
    )
    assert Tuning({1.0: 0.5, 2.0: 0.5, 3.0: 0.5}, 10).best == 1
    assert Tuning({1.0: None}, 0).best is None
    assert "all learning rates failed" in Tuning({1.0: None}, 0).note


def test_a_tuned_rate_is_reported_with_those_that_are_as_good_and_with_the_edge():
    few, many = (Tuning({0.1: 0.50, 0.2: 0.55, 0.4: 0.51}, images) for images in (30, 30_000))
    assert "not distinguishable from 0.1, 0.4" in few.note
    assert "distinguishable" not in many.note
    assert "edge" not in many.note
    assert "edge" in Tuning({1.0: 0.6, 2.0: 0.4}, 100).note


def test_a_grid_has_every_combination_under_names_that_folders_can_have():
    base = Config()
    heads = {"none": (), "both": ("4a", "4d")}
    configs = grid(base, {"model.aux_after": heads, "optim.power": (0.5, 1.0)})
    assert list(configs) == ["none+power=0.5", "none+power=1", "both+power=0.5", "both+power=1"]
    assert configs["both+power=1"] == change(
        base, {"model.aux_after": ("4a", "4d"), "optim.power": 1.0}
    )
    assert list(grid(base, {"model.aux_after": [(), ("4a", "4d")]})) == [
        "aux_after=none", "aux_after=4a-4d",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"'aux_aftre'.* aux_after"):
        grid(base, {"model.aux_aftre": heads})
    with pytest.raises(ConfigError, match="twice"):
        grid(base, {"optim.power": (1.0, 1.0)})


def test_a_baseline_or_family_that_is_no_config_is_refused_with_the_nearest_name(tmp_path):
    for options in ({"baseline": "wdie"}, {"families": {"wdie": "thin"}}):
        with pytest.raises(ConfigError, match=r"'wdie'.* wide"):
            check_sweep(Sweep({"wide": Config(), "thin": Config()}, **options))
    open_sweep(tmp_path, Sweep({"wide": Config(), "thin": Config()}), "text")
    assert read_sweep(tmp_path, "thin").baseline.name == "thin"
    with pytest.raises(UserError, match=r"'thn'.* thin"):
        read_sweep(tmp_path, "thn")


def test_shards_write_the_sweep_through_files_of_their_own(tmp_path, monkeypatch):
    moved = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: [moved.append(Path(a)), replace(a, b)])
    for _ in range(2):
        open_sweep(tmp_path / "new" / "sweep", Sweep({"a": Config()}, seeds=2), "text")
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
    open_sweep(tmp_path, Sweep({"a": Config()}, seeds=3), "text")
    open_sweep(tmp_path, Sweep({"a": Config()}, seeds=1), "text")
    assert list(read_sweep(tmp_path).rows[0].workdirs) == [0, 1, 2]


def test_a_sweep_is_named_by_its_first_line_or_its_folder(tmp_path):
    open_sweep(tmp_path / "one", Sweep({"a": Config()}, seeds=1), "\nA title.\n\nAbout it.\n")
    record = read_sweep(tmp_path / "one")
    assert (record.title, record.about) == ("A title.", "About it.")
    assert record.configs["a"].keys().isdisjoint({"seed", "workdir"})
    assert record.configs["a"]["batch_size"] == 32
    open_sweep(tmp_path / "two", Sweep({"a": Config()}, seeds=1), "")
    assert read_sweep(tmp_path / "two").title == "two"
    assert (tmp_path / "two" / "sweep.json").read_text().startswith('{\n  "about"')
