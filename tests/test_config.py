import dataclasses
import math
import re
import sys
from pathlib import Path

import pytest

from gnet_jax.config import (
    AugmentConfig,
    Config,
    ConfigError,
    DataConfig,
    OptimConfig,
    check,
    differences,
    flatten,
    load_recipe,
    load_sweep,
)


def test_the_defaults_are_valid():
    check(Config())


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"epochs": 0.0}, "epochs is 0.0"),
        ({"epochs": math.nan}, "epochs is nan; it must be finite"),
        ({"workdir": ""}, "a folder; mount a bucket"),
        ({"data": DataConfig(mean=(1.0, math.nan, 1.0))}, "data.mean is .* it must be finite"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"eval_batch_size": -1}, "eval_batch_size is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"augment": AugmentConfig(crop_area=(0.5, 0.1))}, "augment.crop_area"),
        ({"data": DataConfig(std=(1.0, 0.0, 1.0))}, "data.std"),
        ({"data": DataConfig(image_size=300)}, "data.resize_to is 256; it must be at least 300"),
        ({"optim": OptimConfig(learning_rate=math.inf)}, "optim.learning_rate is inf"),
        ({"optim": OptimConfig(warmup_epochs=250)}, "optim.warmup_epochs"),
        ({"optim": OptimConfig(accumulate=0)}, "optim.accumulate is 0"),
    ],
)
def test_what_no_run_can_use_is_refused_by_name(changes, field):
    with pytest.raises(ConfigError, match=field):
        check(dataclasses.replace(Config(), **changes))


def test_a_continuation_may_change_only_what_does_not_touch_the_numbers():
    old = flatten(Config())
    same = Config(workdir="elsewhere", log_every_steps=7, data=DataConfig(threads=9))
    assert differences(old, flatten(same)) == []
    other = flatten(Config(seed=3, augment=AugmentConfig(flip=False)))
    assert differences(old, other) == [
        "augment.flip: True there, False now",
        "seed: 0 there, 3 now",
    ]


def test_a_recipe_is_found_by_name_and_by_path(tmp_path):
    by_name, about = load_recipe("digits")
    assert by_name.data.source == "digits"
    assert about.startswith("A small GoogLeNet")
    file = tmp_path / "mine.py"
    file.write_text("from gnet_jax.config import Config\nget_config = lambda: Config(seed=5)\n")
    assert load_recipe(str(file))[0].seed == 5


def test_a_recipe_may_build_on_another_and_import_a_file_beside_it(tmp_path):
    (tmp_path / "my_seeds.py").write_text("SEED = 5\n")
    (tmp_path / "mine.py").write_text(
        "import dataclasses\n"
        "from gnet_jax.config import load_recipe\n"
        "from my_seeds import SEED\n"
        "def get_config():\n"
        "    return dataclasses.replace(load_recipe('digits')[0], seed=SEED)\n"
    )
    searched = list(sys.path)
    config, _ = load_recipe(str(tmp_path / "mine.py"))
    assert config == dataclasses.replace(load_recipe("digits")[0], seed=5)
    assert sys.path == searched


def test_the_name_of_a_recipe_means_it_even_beside_a_file_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "digits.py"):
        Path(name).write_text(
            "from gnet_jax.config import Config\nget_config = lambda: Config(seed=5)\n"
        )
    assert load_recipe("digits")[0].data.source == "digits"
    assert load_recipe("digits.py")[0].seed == 5  # a path


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("Config(epochs='3')", "epochs is '3'; it must be float"),
        ("Config(seed=None)", "seed is None; it must be int"),
        ("Config(model={'variant': 'paper'})", "model is {'variant': 'paper'}; it must be Model"),
        ("Config(model=ModelConfig(aux_after='4a'))", "model.aux_after is '4a'; it must be tuple"),
        ("Config(model=ModelConfig(head='none'))", "model.head is 'none'"),
        ("Config(epochs=3)", None),
    ],
)
def test_a_field_of_another_type_in_a_recipe_is_named(tmp_path, given, told):
    file = tmp_path / "mine.py"
    head = "from gnet_jax.config import Config, ModelConfig\n"
    file.write_text(f"{head}def get_config():\n    return {given}\n")
    if told is None:
        assert load_recipe(str(file))[0].epochs == 3
        return
    with pytest.raises(ConfigError, match=re.escape(told)):
        load_recipe(str(file))


def test_a_sweep_of_what_load_recipe_gives_is_refused_by_name(tmp_path):
    file = tmp_path / "mine.py"
    head = "from gnet_jax.config import Sweep, load_recipe\n"
    file.write_text(f"{head}def get_sweep():\n    return Sweep({{'a': load_recipe('digits')}})\n")
    with pytest.raises(ConfigError, match=r"configs is .*; it must be .*Mapping\[str, .*Config\]"):
        load_sweep(str(file))


def test_a_recipe_that_is_missing_or_wrong_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no recipe nowhere, .* digits"):
        load_recipe("nowhere")
    with pytest.raises(ConfigError, match=r"no recipe configs/nowhere\.py"):
        load_recipe("configs/nowhere.py")
    file = tmp_path / "empty.py"
    file.write_text("")
    with pytest.raises(ConfigError, match="defines no get_config"):
        load_recipe(str(file))
    file.write_text("def get_config(:\n")
    with pytest.raises(ConfigError, match="fails with SyntaxError"):
        load_recipe(str(file))
    file.write_text("def get_config():\n    return {'epochs': 3}\n")
    with pytest.raises(ConfigError, match="gives a dict, not a Config"):
        load_recipe(str(file))
    file.write_text("import no_such_module\n")
    with pytest.raises(ConfigError, match="fails with ModuleNotFoundError: No module"):
        load_recipe(str(file))
    with pytest.raises(ConfigError, match=r"no recipe digits\.zip, .*; did you mean digits"):
        load_recipe("digits.zip")
