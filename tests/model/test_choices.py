"""An unknown choice is an error, and never taken for one of the known ones."""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from gnet_jax.config import AugmentConfig, Config, ConfigError, OptimConfig, Preprocessing, check
from gnet_jax.config.command import Launch
from gnet_jax.data.augment import preprocess
from gnet_jax.data.batches import cropper
from gnet_jax.data.decode import central_crop, pillow_crop
from gnet_jax.data.sources import DigitsSource
from gnet_jax.lab.look.contact_sheet import describe_augmentation, to_pixels
from gnet_jax.lab.look.inside import filters_figure
from gnet_jax.model.architecture import grid_sizes
from gnet_jax.model.googlenet import GoogLeNet, abstract_variables
from gnet_jax.model_folder.card import model_card
from gnet_jax.pods.plan import array_bytes
from gnet_jax.pods.topology import parse_topology
from gnet_jax.training.hosts.start import should_join
from gnet_jax.training.optimizer import averaging_rate, learning_rate_schedule, make_optimizer
from tests.tiny import tiny_arch

ODD: Any = "something_else"
PHOTO = Image.new("RGB", (8, 6))
SQUARE = np.zeros((1, 4, 4, 3), np.float32)
P = Preprocessing(image_size=4, resize_to=4)


def odd(value: Any, field: str) -> Any:
    return dataclasses.replace(value, **{field: ODD})


def shapes(**fields: Any) -> Any:
    return abstract_variables(GoogLeNet(tiny_arch(**fields)), 64)


def optimizer(field: str) -> Any:
    return odd(OptimConfig(), field)


def crop(**fields: Any) -> np.ndarray:
    generator = np.random.default_rng(0)
    return pillow_crop(np.asarray(PHOTO), generator, P, AugmentConfig(**fields))


CASES = {
    "norm": partial(shapes, norm=ODD),
    "stem": partial(shapes, stem=ODD),
    "stem_padding": partial(shapes, stem="imagenet", stem_padding=ODD),
    "head": partial(shapes, head=ODD),
    "aux_pool": partial(shapes, aux_pool=ODD),
    "aux_pool of a size": lambda: grid_sizes(tiny_arch(aux_pool=ODD), 32),
    "optimizer": lambda: make_optimizer(optimizer("optimizer"), 10, 100),
    "schedule": lambda: learning_rate_schedule(optimizer("schedule"), 10, 100),
    "averaging": lambda: averaging_rate(optimizer("averaging"), 10),
    "channels": lambda: preprocess(SQUARE, preprocessing=odd(P, "channels")),
    "channels back": lambda: to_pixels(SQUARE, odd(P, "channels")),
    "channels of filters": lambda: filters_figure(np.zeros((3, 3, 3, 1)), ODD),
    "resize": lambda: central_crop(PHOTO, odd(P, "resize")),
    "crop": partial(crop, crop=ODD),
    "crop in words": lambda: describe_augmentation(AugmentConfig(crop=ODD)),
    "interpolation": partial(crop, interpolation=ODD),
    "decoder": lambda: cropper(ODD),
    "split": lambda: DigitsSource(ODD),
    "distributed": lambda: should_join(Launch(distributed=ODD)),
    "chip": lambda: parse_topology(f"{ODD}:8"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_unknown_choice_is_refused_by_name(case):
    with pytest.raises(ValueError, match=ODD):
        CASES[case]()


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ("", "numerics"),
        ("", "dead_heads"),
        ("data", "channels"),
        ("data", "resize"),
        ("data", "decoder"),
        ("augment", "crop"),
        ("augment", "interpolation"),
        ("optim", "averaging"),
        ("model", "dtype"),
    ],
)
def test_a_config_made_in_python_is_checked_for_its_choices(part, field):
    config = Config()
    below = odd(getattr(config, part) if part else config, field)
    with pytest.raises(ConfigError, match=f"{field} is '{ODD}'"):
        check(dataclasses.replace(config, **{part: below}) if part else below)


def test_arrays_of_an_unknown_type_in_a_program_are_refused():
    assert array_bytes("(bf16[2,3]{1,0}, f8e4m3fn[4], s2[4], token[])") == 12 + 4 + 1
    with pytest.raises(ValueError, match="q8"):
        array_bytes("q8[4]")


def test_a_card_names_no_resizing_that_it_does_not_know():
    config = {
        "architecture": {"norm": "lrn", "aux_after": []},
        "num_classes": 2,
        "dtype": "float32",
        "preprocessing": {
            "resize": ODD,
            "resize_to": 4,
            "image_size": 4,
            "mean": [0.0],
            "std": [1.0],
        },
        "source": {},
    }
    with pytest.raises(ValueError, match=ODD):
        model_card(config, {"params/classifier/kernel": np.zeros((2, 2))}, "model")


def test_stages_beyond_the_papers_have_sizes_and_pools():
    arch = tiny_arch()
    widths = dict(arch.widths) | {"6a": arch.widths["5a"]}
    deeper = dataclasses.replace(arch, widths=widths)
    assert grid_sizes(deeper, 64) == {"stem": 64, "3": 32, "4": 16, "5": 8, "6": 4, "aux_4a": 5}
    params = abstract_variables(GoogLeNet(deeper), 64)["params"]
    assert "inception_6a" in params
    with pytest.raises(ValueError, match="too small"):
        jax.eval_shape(lambda: GoogLeNet(deeper).init(jax.random.key(0), np.zeros((1, 2, 2, 3))))
