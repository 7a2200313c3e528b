"""Reads inception5h, Google's release of the network, from a frozen TensorFlow graph.

This is the network of DeepDream, Lucid and OpenAI Microscope. Its kernels are HWIO, and the weights
of its linear layers are (inputs, outputs), with feature maps flattened in the order H, W, C.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

from gnet_jax.config import Preprocessing
from gnet_jax.convert import mapping
from gnet_jax.convert.wire import TENSOR_SHAPE, message_class, to_array
from gnet_jax.model.architecture import VARIANTS, Architecture
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model.names import CONVS, caffe_name, google_name
from gnet_jax.model_folder.folder import TrainedModel, WeightsError, unflatten

_MESSAGES = TENSOR_SHAPE | {
    "Tensor": {
        "dtype": (1, "int32"),
        "tensor_shape": (2, "Shape"),
        "tensor_content": (4, "bytes"),
        "float_val": (5, "float[]"),
    },
    "AttrValue": {"i": (3, "int64"), "f": (4, "float"), "tensor": (8, "Tensor")},
    "Attr": {"key": (1, "bytes"), "value": (2, "AttrValue")},
    "NodeDef": {"name": (1, "bytes"), "op": (2, "bytes"), "attr": (5, "Attr[]")},
    "GraphDef": {"node": (1, "NodeDef[]")},
}
_MAX_VALUES = 2**27  # of a constant; the largest weights of the network have 2 million
_FLOAT = 1  # the number of the type float32
_LRN = {b"bias": 1.0, b"alpha": 1.0, b"beta": 0.5}  # TensorFlow's defaults
_HEADS = {"aux_4a": 0, "aux_4d": 1}
_PARTS = {"params/{}/kernel": "{}_w", "params/{}/bias": "{}_b"}
_MARKERS = "conv2d0_w", "mixed3a_1x1_w"
_VARIANT = VARIANTS["google_release"]

LABELS = "imagenet_comp_graph_label_strings.txt"
"""The file of class names in inception5h.zip."""
PREPROCESSING = Preprocessing(mean=(117.0, 117.0, 117.0))
"""Google's examples subtract 117; the resizing is that of the paper's evaluation with one crop."""


def is_graph(head: bytes) -> bool:
    """Returns whether a file that begins with `head` looks like a GraphDef.

    It begins with the tag of a node and the node's length; a node begins with the tag of its name.
    """
    length = head[1:].lstrip(bytes(range(128, 256)))  # without the bytes that continue a number
    return head[:1] == length[1:2] == b"\n"


def load(src: Path) -> tuple[TrainedModel, list[str]]:
    """Returns the network in a frozen graph (no class names), and notes on what was assumed.

    Raises WeightsError if the file is corrupt, or not this network.
    """
    tensors, lrns = read_graph(src)
    arch, flat = from_graph(tensors, lrns, str(src))
    notes = [mapping.assumed_preprocessing("Google's examples", PREPROCESSING)]
    source = {"format": "TensorFlow graph"}
    return TrainedModel(GoogLeNet(arch), unflatten(flat), PREPROCESSING, (), source), notes


def read_graph(file: Path) -> tuple[dict[str, np.ndarray], list[tuple[int, float, float, float]]]:
    """Returns two values: the float32 constants of a graph by name, and a tuple for each LRN node.

    The tuples are values of `Architecture.lrn`.
    """
    try:
        nodes = message_class(_MESSAGES, "GraphDef").FromString(file.read_bytes()).node
    except DecodeError as error:
        raise WeightsError(f"{file} is a corrupt TensorFlow graph; download it again") from error
    tensors, lrns = {}, []
    for node in nodes:
        name, found = node.name.decode(errors="replace"), {a.key: a.value for a in node.attr}
        if node.op == b"Const" and b"value" in found and found[b"value"].tensor.dtype == _FLOAT:
            tensor = found[b"value"].tensor
            shape = [dim.size for dim in tensor.tensor_shape.dim]
            values, size = np.array(tensor.float_val, np.float32), math.prod(shape)
            if 0 < len(values) < size <= _MAX_VALUES:  # equal last values are left out
                values = np.append(values, np.full(size - len(values), values[-1]))
            tensors[name] = to_array(tensor.tensor_content, values, shape, f"{file}: {name}")
        if node.op == b"LRN":
            radius = found[b"depth_radius"].i if b"depth_radius" in found else 5
            given = [found[key].f if key in found else _LRN[key] for key in _LRN]
            # The shortest text of a float32 number: 1e-4, not 9.999999747378752e-05.
            lrns.append((2 * radius + 1, *(float(str(np.float32(value))) for value in given)))
    return tensors, lrns


def from_graph(
    tensors: Mapping[str, np.ndarray], lrns: Collection[tuple[int, float, float, float]], where: str
) -> tuple[Architecture, dict[str, np.ndarray]]:
    """Returns the architecture and the flat variables of a graph.

    The LRN is that of the graph, or the variant's if the graph has none. Constants that are not
    named as weights are ignored.
    """
    if len(set(lrns)) > 1:
        raise WeightsError(f"{where} has different LRNs, {lrns}; both must be the same")
    prefix = mapping.find_prefix(tensors, _MARKERS, "Google's inception5h", where)
    own = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix) and name.endswith(("_w", "_b"))
    }
    modules = {f"{path}/conv": google_name(caffe_name(path)) for path in CONVS}
    for head, i in _HEADS.items():
        if f"nn{i}_w" in own:
            modules |= {f"{head}/conv/conv": f"head{i}_bottleneck", f"{head}/fc": f"nn{i}"}
            modules[f"{head}/classifier"] = f"softmax{i}"
    modules["classifier"] = "softmax2"
    names = mapping.name_variables(modules, _PARTS)
    base = dataclasses.replace(_VARIANT, lrn=[*lrns, _VARIANT.lrn][0])
    base.check()
    return mapping.map_variables(own, names, where, base, channels_first=False)
