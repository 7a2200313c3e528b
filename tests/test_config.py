import dataclasses
import itertools
import math
import re
import shutil
import sys
import types
from pathlib import Path

import pytest
from tyro._docstrings import get_field_docstring

import train
from gnet_jax.cli.lab import Ablate
from gnet_jax.config import (
    AugmentConfig,
    Config,
    ConfigError,
    DataConfig,
    LossConfig,
    OptimConfig,
    Preprocessing,
    check,
    check_preprocessing,
    differences,
    flatten,
    load_recipe,
    load_sweep,
)
from gnet_jax.config.command import Launch, check_launch, parse_sweep
from gnet_jax.config.recipes import RECIPES, install, needs, recipe_names, sweep_names


def set_field(config, name, value):
    """`config` with another value of the field with the dotted name `name`."""
    first, _, rest = name.partition(".")
    if rest:
        value = set_field(getattr(config, first), rest, value)
    return dataclasses.replace(config, **{first: value})


# Each field with its default, values that are allowed, and values that are not.
FIELDS = {
    "workdir": ("runs/default", ["a b", "gs://b/a"], ["", "s3://b/a", "gs://b", 3]),
    "init": (None, ["models/a"], [3]),
    "epochs": (250.0, [1e-6, 1, 1e6], [0.0, -1.0, "3"]),
    "batch_size": (32, [1, 4096], [0, -1, 1.5]),
    "eval_batch_size": (None, [1], [0]),
    "eval_every_epochs": (1.0, [1e-6], [0.0]),
    "save_every_steps": (1000, [1], [0]),
    "keep_latest": (2, [1], [0]),
    "keep_every": (None, [1, 5000], [0, 1.5]),
    "verify_checkpoints": (True, [False], [2]),
    "log_every_steps": (50, [1], [0]),
    "diagnose": (None, [1], [0]),
    "profile": ([], [("3:5",), ("9:9", "1:8")], ["3:5", (3, 5)]),  # and see test_profile.py
    "profile_hosts": ("first", ["all"], ["none"]),
    "dead_heads": ("warn", ["stop", "ignore"], ["none"]),
    "max_bad_steps": (3, [1], [0]),
    "numerics": ("fast", ["canonical"], ["slow"]),
    "virtual_shards": (16, [2, 4, 32], [1, 0, 3, 12, 17, -2]),
    "seed": (0, [1, 2**32 - 1], [-1, 2**32]),
    "data.source": ("digits", ["folder:a"], [None]),
    "data.image_size": (224, [1, 256], [0]),
    "data.resize": ("shorter_side", ["warp"], ["crop"]),
    "data.resize_to": (256, [224, 1000], [223]),
    "data.channels": ("RGB", ["BGR"], ["GBR"]),
    "data.mean": ([123.0, 117.0, 104.0], [(-1.0, 0.0, 1.0)], [(1.0, 1.0), (1.0,) * 4]),
    "data.std": ([1.0, 1.0, 1.0], [(1e-6, 1.0, 9.0)], [(1.0, 1.0, 0.0), (-1.0, 1.0, 1.0)]),
    "data.threads": (4, [1, 256], [0, 257]),
    "data.workers": (0, [1, 256], [-1, 257]),
    "data.decoder": ("pillow", ["fast"], ["opencv"]),
    "data.bad_limit": (0.02, [0.0, 0.999], [1.0, -1e-6]),
    "augment.crop": ("random_area", ["fixed_scale"], ["none"]),
    "augment.crop_area": (
        [0.08, 1.0],
        [(0.5, 0.5), (1e-6, 1.0)],
        [(0.0, 1.0), (0.6, 0.5), (0.5, 1.01)],
    ),
    "augment.crop_aspect": ([3 / 4, 4 / 3], [(1.0, 1.0), (0.1, 9.0)], [(0.0, 1.0), (1.1, 1.0)]),
    "augment.interpolation": ("bilinear", ["random"], ["nearest"]),
    "augment.flip": (True, [False], [None]),
    "augment.shift": (0, [1, 223], [-1, 224, 0.5]),
    "augment.early_size": (None, [1, 223], [0, 224]),
    "augment.early_share": (0.0, [1e-6, 0.999], [-1e-6, 1.0]),
    "augment.brightness": (0.0, [1.0], [-1e-6, 1.01]),
    "augment.contrast": (0.0, [1.0], [-1e-6, 1.01]),
    "augment.saturation": (0.0, [1.0], [-1e-6, 1.01]),
    "augment.hue": (0.0, [0.5], [-1e-6, 0.51]),
    "augment.erase": (0.0, [1.0], [-1e-6, 1.01]),
    "augment.mixup": (0.0, [5.0], [-1e-6]),
    "loss.aux_weight": (0.3, [0.0, 2.0], [-1e-6]),
    "loss.label_smoothing": (0.0, [0.999], [1.0, -1e-6]),
    "optim.optimizer": ("sgd", ["nesterov", "rmsprop", "adamw", "lars", "lamb", "muon"], ["adam"]),
    "optim.learning_rate": (0.01, [1e-9], [0.0]),
    "optim.scale_learning_rate": (None, ["linear", "sqrt"], ["none"]),
    "optim.reference_batch": (None, [1], [0]),
    "optim.momentum": (0.9, [0.0, 0.999], [1.0, -1e-6]),
    "optim.weight_decay": (2e-4, [0.0], [-1e-6]),
    "optim.bias_lr_factor": (2.0, [0.0], [-1e-6]),
    "optim.schedule": ("step", ["constant", "poly", "cosine"], ["linear"]),
    "optim.warmup_epochs": (0.0, [249.0], [250.0, -1e-6]),
    "optim.decay_rate": (0.96, [1.0, 1e-6], [0.0, 1.01]),
    "optim.decay_epochs": (8.0, [1e-6], [0.0]),
    "optim.power": (0.5, [1e-6], [0.0]),
    "optim.clip_norm": (None, [1e-6], [0.0]),
    "optim.freeze": ([], [("conv*",)], ["conv*"]),
    "optim.loaded_lr_factor": (1.0, [0.0], [-1e-6]),
    "optim.accumulate": (1, [2], [0]),
    "optim.mirrored_pairs": (False, [True], []),
    "optim.averaging": ("none", ["polyak", "ema"], ["swa"]),
    "optim.ema_decay": (0.999, [0.0, 0.9999], [1.0, -1e-6]),
    "optim.average_from": (0.0, [249.0], [250.0, -1e-6]),
}
FREE = ("workdir", "save_every_steps", "keep_latest", "verify_checkpoints", "log_every_steps")
FREE += ("data.source", "data.threads", "data.workers", "data.bad_limit")
FREE += ("keep_every", "diagnose", "profile", "profile_hosts", "dead_heads", "max_bad_steps")


def test_the_defaults_are_valid_and_those_of_the_paper_and_of_caffe():
    check(Config())
    flat = {n: each for n, each in flatten(Config()).items() if not n.startswith("model.")}
    assert flat == {name: default for name, (default, _, _) in FIELDS.items()}


@pytest.mark.parametrize("name", FIELDS)
def test_every_limit_of_a_field_holds_on_both_sides(name):
    _, allowed, refused = FIELDS[name]
    # A reference batch requires a learning rate that is scaled.
    base = Config(optim=OptimConfig(scale_learning_rate="linear"))
    if name.startswith("augment.early"):  # each requires the other
        base = dataclasses.replace(base, augment=AugmentConfig(early_size=9, early_share=0.5))
    for value in allowed:
        check(set_field(base, name, value))
    for value in refused:
        with pytest.raises(ConfigError) as caught:
            check(set_field(base, name, value))
        assert str(caught.value).startswith(f"{name} is ")
        assert repr(value) in str(caught.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_every_number_must_be_finite(bad):
    names = [name for name, each in flatten(Config()).items() if isinstance(each, float)]
    assert len(names) >= 20
    for name in names:
        with pytest.raises(ConfigError, match=rf"^{name} is "):
            check(set_field(Config(), name, bad))
    for place in range(3):
        mean = tuple(bad if i == place else 1.0 for i in range(3))
        with pytest.raises(ConfigError, match=r"^data\.mean is "):
            check(set_field(Config(), "data.mean", mean))


def test_limits_that_depend_on_another_field():
    for name in ("optim.warmup_epochs", "optim.average_from"):
        option = name.replace("_", "-")
        check(set_field(Config(epochs=2.5), name, 2.4))
        message = rf"^{name} is 2\.5; .* 2\.5 \(epochs\); .*--{option} 0"
        with pytest.raises(ConfigError, match=message):
            check(set_field(Config(epochs=2.5), name, 2.5))
    check(Config(optim=OptimConfig(scale_learning_rate="linear", reference_batch=512)))
    with pytest.raises(ConfigError, match=r"^optim\.reference_batch is 512, .*scale-learning-rate"):
        check(Config(optim=OptimConfig(reference_batch=512)))
    check(Config(optim=OptimConfig(mirrored_pairs=True)))
    with pytest.raises(ConfigError, match=r"mirrored_pairs .* augment\.flip is False"):
        check(Config(augment=AugmentConfig(flip=False), optim=OptimConfig(mirrored_pairs=True)))
    check(Config(data=DataConfig(image_size=300, resize_to=300)))
    with pytest.raises(ConfigError, match=r"^data\.resize_to is 256; .* 300 \(image_size\)"):
        check(Config(data=DataConfig(image_size=300)))
    for decoder, interpolation in (("fast", "bilinear"), ("pillow", "random")):
        data, augment = DataConfig(decoder=decoder), AugmentConfig(interpolation=interpolation)
        check(Config(data=data, augment=augment))
    with pytest.raises(ConfigError, match=r"^data\.decoder is fast"):
        check(Config(data=DataConfig(decoder="fast"), augment=augment))


def test_a_preprocessing_is_checked_by_itself():
    check_preprocessing(Preprocessing(image_size=4, resize_to=4), "preprocessing")
    for fields, name in (
        ({"image_size": 0}, "image_size"),
        ({"resize_to": 223}, "resize_to"),
        ({"std": (1.0, 0.0, 1.0)}, "std"),
        ({"channels": "HSV"}, "channels"),
    ):
        with pytest.raises(ConfigError, match=rf"^preprocessing\.{name} is "):
            check_preprocessing(Preprocessing(**fields), "preprocessing")


def test_the_preprocessing_of_the_data_has_all_of_its_fields():
    own = {
        "image_size": 32,
        "resize": "warp",
        "resize_to": 40,
        "channels": "BGR",
        "mean": (1.0, 2.0, 3.0),
        "std": (4.0, 5.0, 6.0),
    }
    assert dataclasses.asdict(DataConfig(**own, threads=9).preprocessing) == own


def words(value):
    return [str(each) for each in value] if isinstance(value, tuple) else [str(value)]


def test_every_field_can_be_set_on_the_command_line():
    values = {name: allowed[-1] for name, (_, allowed, _) in FIELDS.items()}
    options = [[f"--{name.replace('_', '-')}", *words(each)] for name, each in values.items()]
    config = train.parse(["digits", *itertools.chain(*options)])
    own = {n: list(each) if isinstance(each, tuple) else each for n, each in values.items()}
    assert flatten(config) == flatten(load_recipe("digits")[0]) | own


def test_the_learning_rate_and_the_image_size_have_short_names():
    config = train.parse(["digits", "--lr", "0.25", "--size=24"])
    assert (config.optim.learning_rate, config.data.image_size) == (0.25, 24)


def test_the_batch_size_is_suggested_for_its_short_name(capsys):
    with pytest.raises(SystemExit):
        train.parse(["digits", "--batch", "8"])
    assert "--batch-size" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["", "data", "augment", "loss", "optim"])
def test_a_config_cannot_be_changed_and_is_hashable(part):
    given, same = (getattr(Config(), part) if part else Config() for _ in range(2))
    assert hash(given) == hash(same)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(given, dataclasses.fields(given)[0].name, None)


def test_the_help_of_a_field_has_complete_lines():
    """`--help` starts a new line where a help does."""
    for kind in (Preprocessing, DataConfig, AugmentConfig, LossConfig, OptimConfig, Config, Launch):
        for field in dataclasses.fields(kind):
            if dataclasses.is_dataclass(field.type):
                continue
            lines = (get_field_docstring(kind, field.name, ()) or "").splitlines()
            assert lines, field.name
            assert all(line.rstrip().endswith(".") for line in lines), (field.name, lines)


@pytest.mark.parametrize("name", FIELDS)
def test_a_resume_may_change_only_what_does_not_change_the_numbers(name):
    value = FIELDS[name][1][-1]
    found = differences(flatten(Config()), flatten(set_field(Config(), name, value)))
    assert [each.partition(":")[0] for each in found] == ([] if name in FREE else [name])


def test_a_launch_is_checked_on_both_sides_of_its_limits():
    for fields in (
        {"num_processes": 1, "process_id": 0},
        {"num_processes": 3, "process_id": 2},
        {"coordinator": "a:1"},
        {"coordinator": "a:65535"},
        {"start_timeout": 1},
        {"restart_delay": 0.0},
        {"distributed": "off"},
    ):
        check_launch(Launch(**fields))
    for fields, option in (
        ({"num_processes": 0}, "--num-processes"),
        ({"process_id": -1}, "--process-id"),
        ({"num_processes": 3, "process_id": 3}, "--process-id"),
        ({"coordinator": "a:0"}, "--coordinator"),
        ({"coordinator": "a:65536"}, "--coordinator"),
        ({"coordinator": ":1"}, "--coordinator"),
        ({"start_timeout": 0}, "--start-timeout"),
        ({"restart_delay": -1e-6}, "--restart-delay"),
        ({"restart_delay": math.inf}, "--restart-delay"),
        ({"distributed": "off", "coordinator": "a:1"}, "--coordinator"),
        ({"distributed": "off", "num_processes": 1}, "--num-processes"),
        ({"distributed": "off", "process_id": 0}, "--process-id"),
    ):
        with pytest.raises(ConfigError, match=rf"^{option} is "):
            check_launch(Launch(**fields))


def test_differences_give_both_values_and_absent_fields():
    old, new = {"seed": 0, "gone": 1, "data.threads": 1}, {"seed": 3, "new": 2}
    assert differences(old, new) == [
        "gone: 1 there, absent now",
        "new: absent there, 2 now",
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
    for name, suggested in (
        ("nowhere", "digits"),
        ("configs/no.py", "digits"),
        ("digit", "digits?"),
    ):
        with pytest.raises(ConfigError, match=f"{name}, .*{re.escape(suggested)}"):
            load_recipe(name)
    file = tmp_path / "empty.py"
    for code, reason in (
        ("", "get_config"),
        ("get_config = 3", "not callable"),
        ("def get_sweep(): pass", "has no function get_config, but is a sweep; use gnet"),
        ("def get_config(:\n", "SyntaxError"),
        ("def get_config():\n    return {'epochs': 3}\n", "dict"),
        ("import no_such_module\n", "ModuleNotFoundError"),
        ("from gnet_jax.config import Config\ndef get_config(): return Config(epochs=0)", "epochs"),
    ):
        file.write_text(code)
        with pytest.raises(ConfigError, match=reason) as caught:
            load_recipe(str(file))
        assert str(file) in str(caught.value)


def test_a_copied_recipe_finds_the_shared_blocks_and_another_folder_may_have_its_own(
    tmp_path, monkeypatch
):
    copy = tmp_path / "mine.py"
    shutil.copy(RECIPES / "cifar10.py", copy)
    assert load_recipe(str(copy)) == load_recipe("cifar10")
    (tmp_path / "common.py").write_text("CIFAR10_PIXELS = {'mean': (1.0, 2.0, 3.0)}\n")
    assert load_recipe(str(copy))[0].data.mean == (1.0, 2.0, 3.0)
    assert load_recipe("cifar10")[0].data.mean == (125.3, 123.0, 113.9)
    assert "common" not in sys.modules
    program = types.ModuleType("common")
    monkeypatch.setitem(sys.modules, "common", program)
    assert load_recipe(str(copy))[0].data.mean == (1.0, 2.0, 3.0)
    assert sys.modules["common"] is program


def test_a_recipe_with_its_own_common_module_may_load_one_of_ours(tmp_path, monkeypatch):
    (tmp_path / "common.py").write_text("SEED = 5\n")
    (tmp_path / "mine.py").write_text(
        "import dataclasses\n"
        "from gnet_jax.config import load_recipe\n"
        "def get_config():\n"
        "    base, _ = load_recipe('cifar10')\n"
        "    from common import SEED\n"
        "    return dataclasses.replace(base, seed=SEED)\n"
    )
    ours = load_recipe("cifar10")[0]
    assert load_recipe(str(tmp_path / "mine.py"))[0] == dataclasses.replace(ours, seed=5)
    monkeypatch.syspath_prepend(tmp_path)  # the folder of a program that loads a recipe
    assert load_recipe("cifar10")[0] == ours


def test_shared_blocks_are_not_offered_as_a_recipe():
    assert recipe_names() == [
        *("cifar10", "cifar100_gpu", "cifar10_gpu", "digits", "finetune_folder", "folder"),
        *("imagenet_caffe", "imagenet_modern", "imagenet_paper", "imagenet_pod"),
        *("imagenet_pod_32k", "imagenette"),
    ]
    assert sweep_names() == ["ablate_block", "ablate_training"]


def test_a_docstring_keeps_its_paragraphs_and_indented_lines(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        '"""One\nline.\n\n    python a\n    python b\n\n1 and\n2.\n"""\n'
        "from gnet_jax.config import Config as get_config\n"
    )
    about = "One line.\n\n    python a\n    python b\n\n1 and 2."
    assert load_recipe(str(file)) == (Config(), about)


def test_the_help_wraps_paragraphs_and_keeps_indented_lines(tmp_path, monkeypatch, capsys):
    file = tmp_path / "mine.py"
    file.write_text(
        f'"""{"word " * 30}\n\n    python a\n    python b\n\nEnd.\n"""\n'
        "from gnet_jax.config import Config as get_config\n"
    )
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        train.parse([str(file), "--help"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line[:1] == ["python"]] == [["python", "a"], ["python", "b"]]
    words = [line.count("word") for line in lines if "word" in line]
    assert sum(words) == 30
    assert 3 <= len(words) <= 4


def test_a_command_line_of_a_sweep_changes_every_config_and_keeps_what_differs(tmp_path):
    file = tmp_path / "mine.sweep.py"
    head = '"""About it."""\nfrom gnet_jax.config import Config, Sweep\n'
    configs = "{name: Config(epochs=n, workdir='x') for n, name in ((3, 'a'), (5, 'b'))}"
    file.write_text(f"{head}def get_sweep(): return Sweep({configs}, seeds=7)\n")
    command = [str(file), "--batch-size", "4"]
    sweep, options, about = parse_sweep(command, "gnet ablate", Ablate(), "About the command.")
    assert {name: (each.epochs, each.batch_size) for name, each in sweep.configs.items()} == {
        "a": (3, 4),
        "b": (5, 4),
    }
    assert {each.workdir for each in sweep.configs.values()} == {"runs/mine.sweep"}
    assert (options, about) == (Ablate(seeds=7), "About it.")
    assert (sweep.seeds, sweep.learning_rates) == (7, ())
    more = ["--seeds", "2", "--learning-rates", "0.1", "0.2", "--baseline", "b"]
    sweep, _, _ = parse_sweep([*command, *more], "gnet ablate", Ablate(), "")
    assert (sweep.seeds, sweep.learning_rates, sweep.baseline) == (2, (0.1, 0.2), "b")


@pytest.mark.parametrize("option", [["--lr", "0.02"], ["--optim.learning_rate=0.02"]])
def test_a_sweep_that_tunes_the_learning_rate_refuses_to_be_given_one(tmp_path, option):
    file = tmp_path / "mine.py"
    head = "from gnet_jax.config import Config, Sweep\ndef get_sweep(): "
    file.write_text(f"{head}return Sweep({{'a': Config()}}, learning_rates=(0.1, 0.2))\n")
    with pytest.raises(ConfigError, match=r"rates 0\.1, 0\.2; use --learning-rates"):
        parse_sweep([str(file), *option], "gnet ablate", Ablate(), "")
    sweep, _, _ = parse_sweep([str(file), *option, "--learning-rates"], "gnet ablate", Ablate(), "")
    assert (sweep.learning_rates, sweep.configs["a"].optim.learning_rate) == ((), 0.02)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("Sweep({})", "configs"),
        ("Sweep({'a': Config()}, seeds=0)", "seeds is 0"),
        ("Sweep({'a/b': Config()})", "'a/b'"),
        ("Sweep({'..': Config()})", r"'\.\.'"),
        ("Sweep({'a': Config(epochs=0)})", r"a\.epochs"),
        ("Sweep({'a': Config()}, learning_rates=(0.1, -1.0))", r"learning_rates is \(0.1, -1.0\)"),
    ],
)
def test_a_sweep_that_cannot_run_is_refused(tmp_path, given, named):
    file = tmp_path / "sweep.py"
    file.write_text(f"from gnet_jax.config import Config, Sweep\ndef get_sweep(): return {given}\n")
    with pytest.raises(ConfigError, match=named):
        load_sweep(str(file))


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    missing = needs("ONNX", ModuleNotFoundError("No module named 'onnx'"), "export")
    assert "onnx" in missing
    assert install("export") in missing
    assert "[export]" in install("export")
    assert "its reason" in needs("ONNX", ImportError("its reason"), "export")
