"""Small networks, and real data where the machine has them."""

import dataclasses
import functools
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from gnet_jax.config import Preprocessing
from gnet_jax.convert.torchvision import to_torchvision
from gnet_jax.model.architecture import architecture
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model_folder import TrainedModel
from gnet_jax.model_folder.folder import expected_shapes, flatten, unflatten


def shared(name: str) -> Path:
    """A file of the data folder beside the checkout; skips the test where it is absent."""
    beside = Path(__file__).parents[2] / "../shared/data"
    file = Path(os.environ.get("GNET_SHARED_DATA", beside)) / name
    if not file.is_file():
        pytest.skip(f"{name} is not in {file.parent} (GNET_SHARED_DATA names another folder)")
    return file


def photos(count: int) -> list[bytes]:
    """The first `count` JPEG files of the clothing set's test split."""
    with tarfile.open(shared("clothing-small.tar")) as tar:
        members = sorted(m.name for m in tar if m.name.endswith(".jpg") and "test/" in m.name)
        spread = members[:: len(members) // count][:count]
        return [tar.extractfile(name).read() for name in spread]


cached_shapes = functools.lru_cache(expected_shapes)


def random_variables(model: GoogLeNet, image_size: int) -> dict:
    """Random variables that keep activations of size one, variances above zero among them."""
    generator = np.random.default_rng(0)
    flat = {}
    for name, shape in cached_shapes(model, image_size).items():
        if name.endswith("kernel"):
            bound = (6 / np.prod(shape[:-1])) ** 0.5
            value = generator.uniform(-bound, bound, shape)
        else:
            value = generator.uniform(0.5, 1.5, shape) - (1 if name.endswith("bias") else 0)
        flat[name] = value.astype(np.float32)
    return unflatten(flat)


@pytest.fixture
def small() -> TrainedModel:
    """A narrow net with auxiliary heads for 32x32 images of three classes."""
    return small_folder()


def small_folder(variant: str = "paper", image_size: int = 32, **knobs) -> TrainedModel:
    """A narrow net of three blocks, with random variables, for images of three classes."""
    knobs = {"width_multiplier": 1 / 16, "stem": "small", "aux_after": ()} | knobs
    arch = architecture(variant, 3, **knobs)
    if arch.head == "average_pool":  # compile time is test time; the other head reads 5b's width
        arch = dataclasses.replace(arch, widths={b: arch.widths[b] for b in ("3a", "4a", "5a")})
    model = GoogLeNet(arch)
    preprocessing = Preprocessing(image_size=image_size, resize_to=image_size, channels="BGR")
    names = ("ant", "bee", "crane, größer")
    source = {"file": "none", "format": "test", "sha256": "0"}
    variables = random_variables(model, image_size)
    return TrainedModel(model, variables, preprocessing, names, source)


def narrow_torchvision(classes=7, aux_after=("4a", "4d")):
    """The architecture of torchvision's network, and flat variables a sixteenth as wide."""
    knobs = {"num_classes": classes, "aux_after": aux_after}
    narrow = GoogLeNet(architecture("torchvision", width_multiplier=1 / 16, **knobs))
    return architecture("torchvision", **knobs), flatten(random_variables(narrow, 224))


@pytest.fixture(scope="session")
def plain():
    """torchvision's state dict of a narrow network with seven classes, without auxiliary heads."""
    return to_torchvision(*narrow_torchvision(aux_after=()))


@pytest.fixture(scope="session")
def caffemodel() -> Path:
    """The published Caffe weights."""
    return shared("bvlc_googlenet.caffemodel")
