import dataclasses
import hashlib

import jax
import numpy as np
import pytest

from gnet_jax.config import (
    AugmentConfig,
    Config,
    ConfigError,
    DataConfig,
    LossConfig,
    Preprocessing,
)
from gnet_jax.data.sources import DataError, open_source
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.training import program, sharding
from gnet_jax.training.gradients import isolated_update
from gnet_jax.training.optimizer import make_optimizer
from gnet_jax.training.program import augmentation, training_batches
from gnet_jax.training.sharding import data_mesh
from gnet_jax.training.step import compute_gradient, step_keys
from tests.tiny import program_of, tiny_arch, tiny_config

EVERYTHING = AugmentConfig(
    crop_area=(0.3, 1.0),
    interpolation="random",
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    erase=0.3,
    mixup=0.2,
)


def network_sees(config, start=0, hosts=1):
    """sha256 of inputs and labels of steps `start` to 3, each made of its hosts' shares."""
    source, compiled = open_source("digits", "train"), jax.jit(augmentation(config, 10))
    shares = [
        training_batches(config, source, start_step=start, host=host, hosts=hosts)
        for host in range(hosts)
    ]
    found = []
    for step in range(start, 4):
        key, _ = step_keys(jax.random.PRNGKey(config.seed), step)
        parts = []
        for host, share in enumerate(shares):
            batch = next(share)
            offset = host * len(batch["label"])
            parts.append(compiled(batch["image"], batch["label"], key, offset=offset))
        whole = hashlib.sha256()
        for leaves in zip(*map(jax.tree.leaves, parts), strict=True):
            whole.update(np.concatenate([np.asarray(leaf) for leaf in leaves]).tobytes())
        found.append(whole.hexdigest())
    return found


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_config(tmp_path_factory.mktemp("feed"), augment=EVERYTHING, batch_size=16)


@pytest.fixture(scope="module")
def of_one_host(config):
    return network_sees(config)


def test_every_step_and_seed_sees_other_pixels(config, of_one_host):
    assert len(set(of_one_host)) == 4
    other = network_sees(dataclasses.replace(config, seed=1), start=3)
    assert other[0] not in of_one_host


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_network_sees_the_same_bits_from_any_number_of_hosts_and_any_start(
    config, of_one_host, hosts
):
    assert network_sees(config, start=1, hosts=hosts) == of_one_host[1:]


def test_the_number_of_threads_changes_no_bit(config, of_one_host):
    threads = dataclasses.replace(config, data=dataclasses.replace(config.data, threads=5))
    assert network_sees(threads, start=2) == of_one_host[2:]


def test_the_interpolation_of_the_config_is_used(config):
    plain = dataclasses.replace(EVERYTHING, interpolation="bilinear")
    source = open_source("digits", "train")
    batches = [
        next(training_batches(dataclasses.replace(config, augment=a), source))
        for a in (EVERYTHING, plain)
    ]
    same = [(a == b).all() for a, b in zip(*(batch["image"] for batch in batches), strict=True)]
    assert 0 < sum(same) < 12  # one in four draws bilinear


def test_a_run_is_identified_by_both_splits_their_order_and_classes(config):
    class Source(list):
        class_names = ("cat", "dog")

        def fingerprint(self):
            return f"{len(self)} images"

    model = GoogLeNet(tiny_arch(num_classes=3))
    parts = (dataclasses.replace(config, init="a model"), model, None, None, 1.0, 1)
    run = program.Run(program.Program(*parts), Source(range(5)), Source(range(3)))
    found = run.fingerprints()
    assert (found["train"], found["val"]) == ("5 images", "3 images")
    assert found["classes"] == ["cat", "dog"]
    shorter = dataclasses.replace(run, train=Source(range(4))).fingerprints()
    assert found["order"] != shorter["order"]
    description = run.description()
    assert description["id2label"] == {"0": "cat", "1": "dog", "2": "class 2"}
    assert description["source"]["started_from"] == "a model"


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("folder:/home/me/acme#holdout=10%", "folder:acme#holdout=10%"),
        ("npz:~/secret/cifar_{split}.npz", "npz:cifar_{split}.npz"),
        ("/home/me/models/a/", "a/"),
        ("folder:/home/me/10:30/a\nb/photos", "folder:photos"),
        *(
            (each, each)
            for each in ("tfds:cifar10", "gs://bucket/a", "folder:here/photos", "caffe")
        ),
    ],
)
def test_a_published_model_does_not_name_the_folders_of_a_machine(spec, shown):
    assert program._without_folders(spec) == shown


def test_an_image_may_be_as_small_as_the_network_allows(config):
    def model_for(size):
        data = dataclasses.replace(config.data, image_size=size)
        return program.model_of(dataclasses.replace(config, data=data), 10)

    assert model_for(12).arch.num_classes == 10
    with pytest.raises(ConfigError, match=r"image_size 11 .* 12"):
        model_for(11)


@pytest.mark.parametrize("norm", ["lrn", "none"])
def test_groups_of_batch_norm_require_batch_norm(config, norm):
    def model_for(norm):
        model = dataclasses.replace(config.model, norm=norm, batch_norm_group=2)
        return program.model_of(dataclasses.replace(config, model=model), 10)

    assert model_for("batch_norm").batch_norm_group == 2
    with pytest.raises(ConfigError, match=rf"batch_norm_group is 2.*model\.norm is {norm}"):
        model_for(norm)


def test_a_batch_may_be_as_large_as_all_images_of_the_run(config):
    data = dataclasses.replace(config.data, source="digits#320")
    small = dataclasses.replace(config, data=data, epochs=0.1, batch_size=32)
    run = program.prepare(small)
    assert (len(run.train), run.program.total_steps) == (320, 1)
    with pytest.raises(ConfigError, match=r"batch_size is 48, .* 32 images"):
        program.prepare(dataclasses.replace(small, batch_size=48))


def test_every_field_of_the_data_and_the_augmentation_reaches_the_batches(monkeypatch, tmp_path):
    """With values that are not the defaults; host and start are the loop's."""
    given = {}
    monkeypatch.setattr(program, "train_batches", lambda *a, **options: given.update(options))
    data = DataConfig(image_size=20, resize_to=24, mean=(1.0, 2.0, 3.0), threads=3, workers=2)
    data = dataclasses.replace(data, decoder="fast")
    config = Config(seed=7, batch_size=24, data=data, augment=EVERYTHING)
    training_batches(config, None, start_step=5, host=1, hosts=2)
    assert given == {
        "batch_size": 24,
        "preprocessing": Preprocessing(image_size=20, resize_to=24, mean=(1.0, 2.0, 3.0)),
        "augmentation": EVERYTHING,
        "decoder": "fast",
        "seed": 7,
        "threads": 3,
        "workers": 2,
        "start_step": 5,
        "host": 1,
        "hosts": 2,
    }
    assert augmentation(config, 12).keywords == {
        "preprocessing": given["preprocessing"],
        "augmentation": EVERYTHING,
        "num_classes": 12,
        "size": None,
    }


def test_a_step_has_the_models_classes_and_the_loss_of_the_config():
    config = Config(loss=LossConfig(aux_weight=0.7, label_smoothing=0.2))
    model, optimizer = GoogLeNet(tiny_arch()), make_optimizer(config.optim, 10, 100)
    made = program_of(config, model, optimizer)
    step = made.train_step()
    assert step.keywords["loss"] == LossConfig(aux_weight=0.7, label_smoothing=0.2)
    assert (step.keywords["model"], step.keywords["optimizer"]) == (model, optimizer)
    assert step.keywords["augment"].keywords["num_classes"] == 10
    assert step.keywords["augment"].keywords["size"] is None
    assert made.train_step(12).keywords["augment"].keywords["size"] == 12
    assert step.keywords["gradient"] is compute_gradient
    assert "update" not in step.keywords
    canonical = dataclasses.replace(config, numerics="canonical")
    step = program_of(canonical, model, optimizer).train_step()
    assert step.keywords["update"] is isolated_update


@pytest.mark.parametrize(
    ("size", "share", "words"),
    [
        (24, 0.0, ["early_size is 24", "early_share is 0"]),
        (32, 0.5, ["early_size is 32", "below 32"]),
        (None, 0.5, ["early_size is None", "early_share is 0.5"]),
        (2, 0.5, ["early_size is 2", "too small"]),
        (16, 0.5, ["early_size is 16", "aux_4a/fc", "32 pixels"]),
    ],
)
def test_sizes_and_shares_that_the_first_steps_cannot_use_are_named(config, size, share, words):
    data = dataclasses.replace(config.data, image_size=32, resize_to=32)
    early = dataclasses.replace(config.augment, early_size=size, early_share=share)
    config = dataclasses.replace(config, data=data, augment=early)
    with pytest.raises(ConfigError) as error:
        program.prepare(config)
    assert all(word in str(error.value) for word in words), error.value


def test_steps_on_smaller_images_count_for_less_of_the_time_that_is_left(config):
    data = dataclasses.replace(config.data, image_size=32, resize_to=32)
    augment = dataclasses.replace(config.augment, early_size=16, early_share=0.4)
    config = dataclasses.replace(config, data=data, augment=augment)
    run = program.Program(config, None, None, None, steps_per_epoch=1.0, total_steps=10)
    assert run.early_time == 0.25
    assert [run.steps_left(step) for step in (0, 1, 3, 4, 5, 10)] == [7, 6.75, 6.25, 6, 5, 0]


@pytest.mark.parametrize(("given", "used"), [(None, 32), (8, 8)])
def test_an_evaluation_has_its_own_batch_size_if_it_is_given(given, used):
    config = Config(batch_size=32, eval_batch_size=given)
    assert program.Program(config, None, None, None, 1.0, 1).eval_batch_size == used


@pytest.mark.parametrize(("steps", "allowed"), [(2**31 - 1, True), (2**31, False)])
def test_the_steps_of_a_run_fit_in_int32(config, steps, allowed):
    config = dataclasses.replace(config, epochs=steps, batch_size=8, eval_batch_size=8)
    options = {"images": 8, "class_names": list("0123456789"), "mesh": data_mesh()}
    if allowed:
        assert program.make_program(config, **options).total_steps == steps
    else:
        with pytest.raises(ConfigError, match="2,147,483,648"):
            program.make_program(config, **options)


def test_two_classes_and_as_many_parameters_as_fit_the_memory_are_accepted(config, monkeypatch):
    mesh, model = sharding.data_mesh(), program.model_of(config, 2)
    shapes = program.abstract_variables(model, config.data.image_size)
    needed = sum(4 * x.size for x in jax.tree.leaves(shapes))
    monkeypatch.setattr(program, "machine_memory", lambda: needed)
    found = program.make_program(config, ("a", "b"), 320, mesh)
    assert found.model == model
    assert (found.steps_per_epoch, found.total_steps) == (20.0, 4)  # 0.2 epochs of 320 / 16
    with pytest.raises(DataError, match="1 class"):
        program.make_program(config, ("a",), 320, mesh)
    monkeypatch.setattr(program, "machine_memory", lambda: needed - 1)
    with pytest.raises(ConfigError, match="width_multiplier"):
        program.make_program(config, ("a", "b"), 320, mesh)
