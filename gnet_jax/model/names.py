"""The names of layers: in this network's module paths, in Caffe's network and in Google's graph."""

from collections.abc import Mapping
from typing import Any

from gnet_jax.errors import UserError, suggestion
from gnet_jax.model.widths import TABLE_1

# Caffe's name for each layer of this network (bvlc_googlenet/train_val.prototxt), by module path.
CAFFE_STEM = {"conv1": "conv1/7x7_s2", "conv2_reduce": "conv2/3x3_reduce", "conv2": "conv2/3x3"}
CAFFE_BRANCHES = {
    "b1": "1x1",
    "reduce3": "3x3_reduce",
    "b3": "3x3",
    "reduce5": "5x5_reduce",
    "b5": "5x5",
    "pool_proj": "pool_proj",
}
# The module paths of all convolutions outside the auxiliary heads.
CONVS = (*CAFFE_STEM, *(f"inception_{block}/{b}" for block in TABLE_1 for b in CAFFE_BRANCHES))
# Google's name (tensorflow_inception_graph.pb) for each of Caffe's layers outside the blocks.
_GOOGLE_LAYERS = {
    "conv1/7x7_s2": "conv2d0",
    "pool1/3x3_s2": "maxpool0",
    "pool1/norm1": "localresponsenorm0",
    "conv2/3x3_reduce": "conv2d1",
    "conv2/3x3": "conv2d2",
    "conv2/norm2": "localresponsenorm1",
    "pool2/3x3_s2": "maxpool1",
    "pool3/3x3_s2": "maxpool4",
    "pool4/3x3_s2": "maxpool10",
    "pool5/7x7_s1": "avgpool0",
    "loss3/classifier": "softmax2_pre_activation",
    "prob": "softmax2",
}
_BEFORE_RELU = "_pre_relu"


def caffe_name(path: str) -> str:
    """Returns Caffe's name of the layer at a module path, or `path` if Caffe does not have it."""
    block, _, branch = path.partition("/")
    if branch in CAFFE_BRANCHES:
        return f"{block}/{CAFFE_BRANCHES[branch]}"
    return CAFFE_STEM.get(path, path)


def google_name(layer: str) -> str:
    """Returns Google's name of Caffe's `layer`, or `layer` if Google's network does not have it."""
    if layer.startswith("inception_"):  # mixed4a, mixed4a_5x5_bottleneck, mixed4a_pool_reduce
        name = layer.removeprefix("inception_").removesuffix("/output").replace("/", "_")
        return "mixed" + name.replace("_reduce", "_bottleneck").replace("_proj", "_reduce")
    return _GOOGLE_LAYERS.get(layer, layer)


def find_layer(name: str, outputs: Mapping[str, Any]) -> tuple[str, int | None]:
    """Returns the key of `outputs` that `name` refers to, and the channel, or None for all.

    `name` is Caffe's name of a layer ("inception_4a/5x5"), the part before its "/" if only one
    layer has it ("pool5"), a block ("inception_4a"), or Google's name ("mixed4a_5x5"), and can end
    with a channel ("mixed4a:476"). `outputs` are the values of `endpoints`, or their shapes. Raises
    UserError for an unknown layer or channel, and for a value before a ReLU.
    """
    layer, colon, number = name.partition(":")
    google = {google_name(key): key for key in outputs}
    begun = [key for key in outputs if key.startswith(f"{layer}/")]
    if f"{layer}/output" in begun:
        begun = [f"{layer}/output"]
    key = layer if layer in outputs else begun[0] if len(begun) == 1 else google.get(layer)
    if key is None and (after := layer.removesuffix(_BEFORE_RELU)) in google and after != layer:
        raise UserError(f"{layer} is not recorded, because it is before the ReLU; use {after}")
    if key is None:
        blocks = (key.removesuffix("/output") for key in outputs)
        known = dict.fromkeys(begun) or dict.fromkeys([*blocks, *google])
        raise UserError(f"unknown layer {layer!r}; {suggestion(layer, known)}")
    channels = outputs[key].shape[-1]
    if colon and not (number.isdecimal() and int(number) < channels):
        raise UserError(f"unknown channel {name!r}; {layer} has channels 0 to {channels - 1}")
    return key, int(number) if colon else None
