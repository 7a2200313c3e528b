import dataclasses

import jax
import numpy as np
import pytest

from gnet_jax.config import ConfigError, LossConfig, ModelConfig, OptimConfig, Preprocessing
from gnet_jax.data.sources.classes import imagenet_classes
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model_folder import TrainedModel
from gnet_jax.training.optimizer import check_freeze, make_optimizer, matches
from gnet_jax.training.program import Program, _change_loaded, compare, flat, layers, prepare
from gnet_jax.training.sharding import compile_train_step, data_mesh
from tests.tiny import tiny_arch, tiny_batch, tiny_config, tiny_variables

DIGITS = tuple("0123456789")


def model_folder(model, variables):
    return TrainedModel(model, variables, Preprocessing(), tuple("abcdefghijklm"), {})


@pytest.fixture(scope="module")
def trained():
    """A model of 13 classes without auxiliary heads, every variable a half."""
    model = GoogLeNet(tiny_arch(aux_after=(), num_classes=13))
    variables = jax.tree.map(lambda x: np.full_like(x, 0.5), tiny_variables(model))
    return model_folder(model, variables)


def test_all_but_the_heads_is_taken_over(trained, tmp_path, monkeypatch):
    model = GoogLeNet(tiny_arch())
    fresh = tiny_variables(model)
    takeover = compare(fresh, trained, DIGITS)
    assert takeover.fresh["params/classifier/kernel"] == "(52, 13) there, (52, 10) here"
    assert takeover.fresh["params/aux_4a/fc/bias"] == "not in the trained model"
    assert layers(takeover.fresh) == ["aux_4a", "classifier"]
    assert "params/inception_4a/b5/conv/kernel" in takeover.loaded
    monkeypatch.setattr("gnet_jax.training.program.init", lambda *_: fresh)
    config, mesh = tiny_config(tmp_path), data_mesh(jax.devices()[:1])
    optimizer = make_optimizer(config.optim, 10, 100)
    started = Program(config, model, optimizer, mesh, 10, 100, trained, takeover).initial_state()
    merged = flat({"params": started.params})
    for name, value in flat(fresh).items():
        taken = (np.asarray(merged[name]) == 0.5).all()
        assert taken == (name in takeover.loaded)
        if not taken:
            np.testing.assert_array_equal(merged[name], value)


def test_a_classifier_is_taken_over_only_for_the_same_classes(trained):
    fresh = tiny_variables(GoogLeNet(tiny_arch(aux_after=(), num_classes=13)))
    same = compare(fresh, trained, trained.class_names)
    assert not same.fresh
    other = compare(fresh, trained, trained.class_names[::-1])
    assert set(other.fresh.values()) == {"same classes in another order"}
    assert layers(other.fresh) == ["classifier"]
    other = compare(fresh, trained, tuple("ABCDEFGHIJKLM"))
    assert set(other.fresh.values()) == {"other classes"}
    assert layers(other.fresh) == ["classifier"]


def test_imagenets_labels_and_wordnet_ids_are_the_same_classes(trained):
    ids, labels = imagenet_classes().keys(), imagenet_classes().values()
    shapes = {"params": {"classifier": {"kernel": np.zeros((2, 1000))}}}
    old = dataclasses.replace(trained, variables=shapes, class_names=tuple(labels))
    assert not compare(shapes, old, tuple(ids)).fresh
    assert compare(shapes, old, tuple(ids)[::-1]).fresh


def test_auxiliary_classifiers_are_taken_over_only_for_the_same_classes():
    model = GoogLeNet(tiny_arch(num_classes=13))
    old = model_folder(model, tiny_variables(model))
    takeover = compare(old.variables, old, tuple("nopqrstuvwxyz"))
    assert set(takeover.fresh) == {
        "params/classifier/kernel", "params/classifier/bias",
        "params/aux_4a/classifier/kernel", "params/aux_4a/classifier/bias",
    }  # fmt: skip
    assert "params/aux_4a/fc/kernel" in takeover.loaded
    assert not compare(old.variables, old, old.class_names).fresh


@pytest.mark.parametrize(
    ("name", "patterns", "expected"),
    [
        ("conv1/conv/kernel", ("conv*",), True),
        ("conv1/conv/kernel", ("conv2",), False),
        ("inception_3a/b5/conv/bias", ("inception_[34]*",), True),
        ("inception_5a/b5/conv/bias", ("inception_[34]*", "*/b5"), True),
        ("classifier/bias", (), False),
    ],
)
def test_patterns_match_layers_and_what_is_inside(name, patterns, expected):
    assert matches(name, patterns) is expected


def test_patterns_that_match_nothing_or_everything_are_refused():
    params = tiny_variables(GoogLeNet(tiny_arch()))["params"]
    check_freeze((), params)
    with pytest.raises(ConfigError, match=r"'conv9'.* aux_4a"):
        check_freeze(("conv1", "conv9"), params)
    with pytest.raises(ConfigError, match="every parameter"):
        check_freeze(("*",), params)


def test_a_network_beside_the_pretrained_one_is_refused(trained, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.width_multiplier is 0\.0625"):
        prepare(tiny_config(tmp_path), trained)


def test_frozen_layers_stay_and_loaded_ones_learn_at_their_rate(trained, tmp_path):
    optim = OptimConfig(
        learning_rate=0.1,
        weight_decay=0.01,
        freeze=("conv1", "conv2*", "inception_3a"),
        loaded_lr_factor=0.0,
        averaging="none",
    )
    config = tiny_config(
        tmp_path, batch_size=16, optim=optim, loss=LossConfig(aux_weight=0.3),
        model=ModelConfig(aux_after=("4a",)),
    )  # fmt: skip
    mesh = data_mesh(jax.devices()[:1])
    program = dataclasses.replace(prepare(config, trained).program, mesh=mesh)
    assert program.model.arch.widths == trained.model.arch.widths
    assert (program.model.arch.num_classes, program.model.arch.aux_after) == (10, ("4a",))
    state = program.initial_state()
    before = jax.tree.map(np.array, state.params)
    step = compile_train_step(mesh, program.train_step(), state, program.abstract_batch())
    after, metrics = step(state, jax.device_put(tiny_batch(), step.input_shardings[0][1]))
    moved = {
        name for name, value in flat(before).items() if (value != flat(after.params)[name]).any()
    }
    assert layers(f"params/{name}" for name in sorted(moved)) == ["aux_4a", "classifier"]
    assert metrics["grad_norm"] > 0


OTHER_VALUES = {
    "variant": "torchvision",
    "reduction_factor": 0.5,
    "width_multiplier": 0.5,
    "blocks": ("3a",),
    "widths": ("3a=1,1,1,1,1,1",),
    "naive": True,
    "norm": "batch_norm",
    "branch5_kernel": 3,
    "pool4_window": 2,
    "stem": "small",
    "stem_widths": (8, 8, 8),
    "aux_widths": (8, 8),
    "aux_pool": "adaptive",
    "head": "fc",
}


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_a_field_that_the_loaded_network_sets_is_refused(name):
    loaded, wanted = tiny_arch(num_classes=13), tiny_arch(dropout=0.3)
    m = dataclasses.replace(ModelConfig(), **{name: OTHER_VALUES[name]})
    with pytest.raises(ConfigError, match=rf"model\.{name} is .*--init"):
        _change_loaded(loaded, m, wanted)


def test_the_heads_and_the_dropout_of_the_config_are_those_of_the_fine_tuned_network():
    loaded = tiny_arch(num_classes=13, aux_after=(), dropout=0.1)
    wanted = tiny_arch(num_classes=7, aux_after=("4a",))
    found = _change_loaded(loaded, ModelConfig(aux_dropout=0.25, dtype="bfloat16"), wanted)
    changes = {"num_classes": 7, "aux_after": ("4a",), "aux_dropout": 0.25}
    assert found == dataclasses.replace(loaded, **changes)
