"""TF-slim's Inception v1: its checkpoints, its names for the layers, and what it does to an image.

Kernels are HWIO here and there; the classifier is a 1x1 convolution there.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gnet_jax.config import Preprocessing
from gnet_jax.config.recipes import needs
from gnet_jax.model.architecture import VARIANTS, Architecture
from gnet_jax.model_folder.variables import WeightsError, with_shapes_of

_SCOPE = "InceptionV1/"
_STEM = {"conv1": "Conv2d_1a_7x7", "conv2_reduce": "Conv2d_2b_1x1", "conv2": "Conv2d_2c_3x3"}
_BRANCHES = {
    "b1": "Branch_0/Conv2d_0a_1x1",
    "reduce3": "Branch_1/Conv2d_0a_1x1",
    "b3": "Branch_1/Conv2d_0b_3x3",
    "reduce5": "Branch_2/Conv2d_0a_1x1",
    "b5": "Branch_2/Conv2d_0b_3x3",  # the paper has a 5x5 there
    "pool_proj": "Branch_3/Conv2d_0b_1x1",
}
# Of a convolution's variables: where they are here, and there. Batch norm has no gamma there.
_CONV = {
    ("params", "conv/kernel"): "weights",
    ("params", "norm/bias"): "BatchNorm/beta",
    ("batch_stats", "norm/mean"): "BatchNorm/moving_mean",
    ("batch_stats", "norm/var"): "BatchNorm/moving_variance",
}
_CLASSIFIER = "params/classifier/kernel"
AVERAGED = "/ExponentialMovingAverage"
_MAGIC = bytes.fromhex("57fb808b247547db")  # how a table of LevelDB ends: both kinds of checkpoint

ARCHITECTURE = Architecture(
    num_classes=1001,
    norm="batch_norm",
    branch5_kernel=3,
    pool4_window=2,
    stem_padding="same",
    aux_after=(),
    dropout=0.2,
)
"""slim's own network (tensorflow/models, research/slim/nets/inception_v1.py)."""

PREPROCESSING = Preprocessing(
    image_size=224,
    resize="warp",
    resize_to=256,
    channels="RGB",
    mean=(127.5, 127.5, 127.5),
    std=(127.5, 127.5, 127.5),
)
"""What slim evaluates with: the central 87.5 % of each side, warped to 224x224, in -1 to 1.

slim cuts first and resizes then, and does not smooth an image that it shrinks: the same part of the
photo, but not the same bits.
"""


def _names() -> dict[str, str]:
    """The name of every variable in slim, which has no scales, by ours."""
    modules = dict(_STEM)
    for block in VARIANTS["paper"].widths:
        mixed = f"Mixed_{block[0]}{chr(ord(block[1]) + 1)}"  # there, a is the pool in front
        modules |= {f"inception_{block}/{b}": f"{mixed}/{t}" for b, t in _BRANCHES.items()}
    modules["inception_5a/b5"] = "Mixed_5b/Branch_2/Conv2d_0a_3x3"  # sic
    names = {}
    for ours, theirs in modules.items():
        for (group, leaf), part in _CONV.items():
            names[f"{group}/{ours}/{leaf}"] = f"{_SCOPE}{theirs}/{part}"
    names[_CLASSIFIER] = f"{_SCOPE}Logits/Conv2d_0c_1x1/weights"
    names["params/classifier/bias"] = f"{_SCOPE}Logits/Conv2d_0c_1x1/biases"
    return names


def index_of(path: Path) -> Path:
    """The index of the checkpoint whose prefix or .data file `path` is, else `path` itself."""
    prefix = re.sub(r"\.data-[0-9]{5}-of-[0-9]{5}$", "", path.name)
    index = path.with_name(prefix + ".index")
    part = prefix != path.name or not path.exists()
    return index if part and index.is_file() else path


def is_checkpoint(file: Path) -> bool:
    """Whether the file is TensorFlow's older checkpoint, or the index of a newer, by content."""
    with file.open("rb") as opened:
        opened.seek(max(0, opened.seek(0, os.SEEK_END) - len(_MAGIC)))
        return opened.read() == _MAGIC


def read_checkpoint(file: Path) -> dict[str, np.ndarray]:
    """Everything in a checkpoint by name, through TensorFlow.

    Args:
        file: one for which `is_checkpoint` is true.

    Raises:
        WeightsError: if TensorFlow is not installed, or the file is damaged or no checkpoint.
    """
    try:
        import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]
    except ImportError as error:
        raise WeightsError(needs(f"{file}, a TensorFlow checkpoint,", error, "slim")) from error
    try:
        reader = tf.train.load_checkpoint(str(file).removesuffix(".index"))
        names = sorted(reader.get_variable_to_shape_map())
        return {name: np.asarray(reader.get_tensor(name)) for name in names}
    except Exception as error:  # whatever TensorFlow makes of its C++ code's status
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"{file} is damaged, or a file beside it is: {reason}") from error


def is_slim(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the names are those of slim's Inception v1."""
    return f"{_SCOPE}Conv2d_1a_7x7/weights" in tensors


def from_slim(
    tensors: Mapping[str, np.ndarray], where: str
) -> tuple[Architecture, dict[str, np.ndarray]]:
    """The architecture and the flat variables of slim's Inception v1.

    Where the run kept moving averages of its variables, these are taken, as slim evaluates them.
    An optimiser's variables are passed over.

    Raises:
        WeightsError: naming the first tensor that is missing, unknown or of an unfit shape.
    """
    names = _names()
    flat: dict[str, np.ndarray] = {}
    for ours, theirs in names.items():
        value = tensors.get(theirs + AVERAGED, tensors.get(theirs))
        if value is None:
            raise WeightsError(f"{where} has no {theirs}; it holds no whole Inception v1 of slim")
        rank = 4 if theirs.endswith("/weights") else 1
        if value.ndim != rank:
            raise WeightsError(f"{where}: {theirs} is {value.shape}; it must have rank {rank}")
        if ours == _CLASSIFIER:
            if value.shape[:2] != (1, 1):
                raise WeightsError(f"{where}: {theirs} is {value.shape}; it must begin with (1, 1)")
            value = value[0, 0]
        flat[ours] = np.asarray(value, np.float32)
        if ours.endswith("/norm/bias"):
            flat[ours.removesuffix("bias") + "scale"] = np.ones_like(flat[ours])
    known = set(names.values())
    for name in tensors:
        slot = name.rpartition("/")[0] in known  # such as .../weights/RMSProp
        if name.startswith(_SCOPE) and name not in known and not slot:
            raise WeightsError(f"{where} has {name}, which slim's Inception v1 has not")
    return with_shapes_of(flat, ARCHITECTURE), flat
