"""Reads TF-slim's Inception v1. Its kernels are HWIO; its classifier is a 1x1 convolution."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gnet_jax.config import Preprocessing
from gnet_jax.convert import mapping
from gnet_jax.convert.tf_checkpoint import read_checkpoint
from gnet_jax.model.architecture import Architecture
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model_folder.folder import TrainedModel, unflatten

_SCOPE = "InceptionV1/"
_STEM = {"conv1": "Conv2d_1a_7x7", "conv2_reduce": "Conv2d_2b_1x1", "conv2": "Conv2d_2c_3x3"}
_BRANCHES = {
    "b1": "Branch_0/Conv2d_0a_1x1",
    "reduce3": "Branch_1/Conv2d_0a_1x1",
    "b3": "Branch_1/Conv2d_0b_3x3",
    "reduce5": "Branch_2/Conv2d_0a_1x1",
    "b5": "Branch_2/Conv2d_0b_3x3",  # in the paper, a 5x5 convolution
    "pool_proj": "Branch_3/Conv2d_0b_1x1",
}
_CONV = {
    "params/{}/conv/kernel": f"{_SCOPE}{{}}/weights",
    "params/{}/norm/bias": f"{_SCOPE}{{}}/BatchNorm/beta",  # slim has no gamma
    "batch_stats/{}/norm/mean": f"{_SCOPE}{{}}/BatchNorm/moving_mean",
    "batch_stats/{}/norm/var": f"{_SCOPE}{{}}/BatchNorm/moving_variance",
}
_CLASSIFIER = f"{_SCOPE}Logits/Conv2d_0c_1x1/"
_MARKERS = f"{_SCOPE}Conv2d_1a_7x7/weights", f"{_SCOPE}Mixed_3b/Branch_0/Conv2d_0a_1x1/weights"
_AVERAGED = "/ExponentialMovingAverage"

ARCHITECTURE = Architecture(
    num_classes=1001,
    norm="batch_norm",
    branch5_kernel=3,
    pool4_window=2,
    stem_padding="same",
    aux_after=(),
    dropout=0.2,
)
"""The network in TF-slim (tensorflow/models, research/slim/nets/inception_v1.py)."""

_HALF = (127.5, 127.5, 127.5)
PREPROCESSING = Preprocessing(resize="warp", mean=_HALF, std=_HALF)
"""The preprocessing of slim's evaluation: the central 87.5 % of each side, values from -1 to 1.

slim resizes after the crop and without antialiasing, so its pixels differ slightly.
"""


def load(src: Path) -> tuple[TrainedModel, list[str]]:
    """Returns the network in a checkpoint (no class names), and notes on what was assumed.

    `is_checkpoint` must be true for `src`. Raises WeightsError if it is not a valid Inception v1.
    """
    tensors = read_checkpoint(src)
    arch, flat = from_slim(tensors, str(src))
    notes = [mapping.assumed_preprocessing("TF-slim", PREPROCESSING)]
    if any(name.endswith(_AVERAGED) for name in tensors):
        notes.append("used the moving averages of the variables, as TF-slim's evaluation does")
    source = {"format": "TF-slim checkpoint"}
    return TrainedModel(GoogLeNet(arch), unflatten(flat), PREPROCESSING, (), source), notes


def from_slim(
    tensors: Mapping[str, np.ndarray], where: str
) -> tuple[Architecture, dict[str, np.ndarray]]:
    """Returns the architecture and the flat variables of slim's Inception v1.

    A variable's moving average is used if there is one, as in slim's evaluation. Optimiser state is
    ignored.
    """
    prefix = mapping.find_prefix(tensors, _MARKERS, "TF-slim's Inception v1", where)
    tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    modules = dict(_STEM)
    for block in ARCHITECTURE.widths:
        # In slim, "a" is the pool before the blocks.
        mixed = f"Mixed_{block[0]}{chr(ord(block[1]) + 1)}"
        modules |= {f"inception_{block}/{b}": f"{mixed}/{t}" for b, t in _BRANCHES.items()}
    modules["inception_5a/b5"] = "Mixed_5b/Branch_2/Conv2d_0a_3x3"  # 0b in all other blocks of slim
    names = mapping.name_variables(modules, _CONV) | {
        "params/classifier/kernel": f"{_CLASSIFIER}weights",
        "params/classifier/bias": f"{_CLASSIFIER}biases",
    }
    known = set(names.values())
    own = {
        name: value
        for name, value in tensors.items()
        if name.startswith(_SCOPE) and name.rpartition("/")[0] not in known  # not weights/RMSProp
    }
    own |= {name: tensors[name + _AVERAGED] for name in known if name + _AVERAGED in tensors}
    weights = own.get(f"{_CLASSIFIER}weights")
    if weights is not None and weights.shape[:2] == (1, 1):
        own[f"{_CLASSIFIER}weights"] = weights[0, 0]
    arch, flat = mapping.map_variables(own, names, where, ARCHITECTURE, channels_first=False)
    biases = {name: value for name, value in flat.items() if name.endswith("/norm/bias")}
    scales = {name.removesuffix("bias") + "scale": np.ones_like(b) for name, b in biases.items()}
    return arch, flat | scales
