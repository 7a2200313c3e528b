"""A GoogLeNet small enough to compile in a second, with weights that were never trained."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from gnet_jax.config import Preprocessing
from gnet_jax.data.sources import Example
from gnet_jax.model.googlenet import GoogLeNet, init
from gnet_jax.model_folder import TrainedModel
from tests.tiny import tiny_arch

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
SMALL = Preprocessing(image_size=32, resize_to=37, mean=(120, 110, 100), std=(60, 60, 60))


class Photos:
    """A labelled source of photos of four shapes, held as pixels."""

    def __init__(self, pictures: list[Image.Image]) -> None:
        self.class_names = CLASSES
        self.images: list[Any] = [np.asarray(picture) for picture in pictures]
        self.labels = [int(n) for n in np.random.default_rng(0).integers(0, 7, len(pictures))]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], self.labels[index])

    def describe(self, index):
        return f"example {index}"

    def fingerprint(self) -> str:
        return "photos"


@pytest.fixture(scope="session")
def make_model() -> Callable[..., TrainedModel]:
    def make(seed: int, preprocessing: Preprocessing = SMALL) -> TrainedModel:
        model = GoogLeNet(dataclasses.replace(tiny_arch(), num_classes=7))
        variables = init(model, jax.random.PRNGKey(seed), preprocessing.image_size)
        # Untrained, the biases drown the picture: make the logits depend on what is seen.
        variables["params"]["classifier"]["kernel"] *= 20
        return TrainedModel(model, variables, preprocessing, CLASSES, {"format": "test"})

    return make


@pytest.fixture(scope="session")
def model_a(make_model: Callable[..., TrainedModel]) -> TrainedModel:
    return make_model(1)


@pytest.fixture(scope="session")
def model_b(make_model: Callable[..., TrainedModel]) -> TrainedModel:
    """Of another preprocessing than model a."""
    warp = Preprocessing(image_size=32, resize="warp", resize_to=40, channels="BGR", std=(9, 9, 9))
    return make_model(2, warp)


@pytest.fixture(scope="session")
def make_photo() -> Callable[..., Image.Image]:
    """Smooth coloured blobs: crops, mirrors and scales of them all differ."""

    def make(seed: int, width: int = 60, height: int = 45) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    return make


@pytest.fixture
def make_photos(make_photo: Callable[..., Image.Image]) -> Callable[[int], Photos]:
    shapes = [(60, 45), (45, 60), (50, 50), (97, 41)]
    return lambda count: Photos([make_photo(i, *shapes[i % 4]) for i in range(count)])
