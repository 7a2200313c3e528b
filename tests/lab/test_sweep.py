import dataclasses
import json
import random

import pytest

from gnet_jax.config import Config, ConfigError, UserError, load_sweep
from gnet_jax.config.recipes import sweep_names
from gnet_jax.lab.sweeps.sweep import cells_of, open_sweep, read_sweep, share_of
from gnet_jax.training.program import model_of


@pytest.mark.parametrize("name", sweep_names())
def test_every_sweep_of_the_project_is_of_nets_that_can_be(name):
    sweep, text = load_sweep(name)
    assert f"gnet ablate {name} " in text
    assert sweep.seeds >= 3
    for config in sweep.configs.values():
        model_of(config, 10)


def test_shards_are_stretches_of_like_cost_and_hold_every_run_once():
    generator = random.Random(0)
    for shards in (1, 2, 3, 7):
        costs = [generator.choice([0.0, 1.0, 8.0]) for _ in range(12)]
        shares = [share_of(costs, index, shards) for index in range(shards)]
        assert sorted(place for share in shares for place in share) == list(range(12))
        assert all(share == list(range(share[0], share[-1] + 1)) for share in shares if share)
    assert [share_of([1, 1, 1, 3], index, 2) for index in range(2)] == [[0, 1, 2], [3]]


def test_seeds_follow_that_of_the_config_and_each_run_has_its_folder(tmp_path):
    configs = {"a": Config(seed=5), "b": Config()}
    cells = cells_of(configs, 2, tmp_path)
    assert [(cell.name, cell.config.seed) for cell in cells] == [
        ("a", 5), ("a", 6), ("b", 0), ("b", 1),
    ]  # fmt: skip
    assert cells[1].workdir == tmp_path / "a" / "seed-6"
    open_sweep(tmp_path, configs, 2, "text")
    planned = [(name, seed, folder) for name, seed, folder in read_sweep(tmp_path).runs()]
    assert planned == [(cell.name, cell.config.seed, cell.workdir) for cell in cells]


def test_a_folder_of_another_sweep_is_refused_and_more_configs_are_welcome(tmp_path):
    configs = {"a": Config(), "b": Config()}
    open_sweep(tmp_path, configs, 2, "text")
    other = dataclasses.replace(Config(), batch_size=7)
    with pytest.raises(ConfigError, match=r"'b' has another config \(batch_size: 32 there, 7 now"):
        open_sweep(tmp_path, configs | {"b": other}, 2, "text")
    open_sweep(tmp_path, {"c": other}, 3, "text")
    assert list(read_sweep(tmp_path).configs) == ["a", "b", "c"]
    assert read_sweep(tmp_path).seeds == 3
    assert [file.name for file in tmp_path.iterdir()] == ["sweep.json"]


def test_a_folder_without_a_sweep_is_said_to_be_none(tmp_path):
    with pytest.raises(UserError, match="holds no sweep"):
        read_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text(json.dumps([]) + "x")
    with pytest.raises(UserError, match="is damaged"):
        read_sweep(tmp_path)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def get_config(): pass", "defines no get_sweep() -> Sweep"),
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
    assert len(read_sweep(tmp_path).runs()) == 3
