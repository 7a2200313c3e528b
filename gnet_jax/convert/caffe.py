"""Reads Caffe's network from .caffemodel files of both formats, and from ONNX's model zoo."""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from gnet_jax.config import Preprocessing
from gnet_jax.convert import mapping
from gnet_jax.convert.published import PUBLISHED
from gnet_jax.convert.wire import message_class, to_array
from gnet_jax.model.architecture import VARIANTS, Architecture
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model.names import CONVS, caffe_name
from gnet_jax.model_folder.folder import TrainedModel, WeightsError, unflatten

_SIDES = ("num", "channels", "height", "width")  # the fields that hold the shape of older blobs
# The messages of caffe.proto that are read here, with only the fields that are needed.
_MESSAGES = {
    "BlobShape": {"dim": (1, "int64[]")},
    "BlobProto": {name: (n, "int32") for n, name in enumerate(_SIDES, start=1)}
    | {"data": (5, "float[]"), "shape": (7, "BlobShape"), "double_data": (8, "double[]")},
    "TransformationParameter": {
        "scale": (1, "float"),
        "crop_size": (3, "uint32"),
        "mean_file": (4, "bytes"),
        "mean_value": (5, "float[]"),
    },
    "LayerParameter": {
        "name": (1, "bytes"),
        "blobs": (7, "BlobProto[]"),
        "transform_param": (100, "TransformationParameter"),
    },
    "V1LayerParameter": {
        "name": (4, "bytes"),
        "blobs": (6, "BlobProto[]"),
        "transform_param": (36, "TransformationParameter"),
    },
    "NetParameter": {"layer": (100, "LayerParameter[]"), "layers": (2, "V1LayerParameter[]")},
}
_ONNX = {
    "TensorProto": {
        "dims": (1, "int64[]"),
        "data_type": (2, "int32"),
        "float_data": (4, "float[]"),
        "name": (8, "bytes"),
        "raw_data": (9, "bytes"),
    },
    "GraphProto": {"initializer": (5, "TensorProto[]")},
    "ModelProto": {"graph": (7, "GraphProto")},
}
_PARTS = {"params/{}/kernel": "weights of {}", "params/{}/bias": "bias of {}"}
_HEADS = {"aux_4a": "loss1", "aux_4d": "loss2"}
_CLASSIFIER = "loss3/classifier"
_MARKERS = "conv1/7x7_s2", "inception_3a/1x1"

PREPROCESSING = Preprocessing(resize="warp", channels="BGR", mean=(104.0, 117.0, 123.0))
"""The preprocessing of the published weights (BVLC/caffe, models/bvlc_googlenet)."""

# A copy of the published file without auxiliary heads.
WITHOUT_HEADS_SHA256 = "afb3ba04dbee93e6e3228f8c399c5f439a786fbeafdb5b5870a990de80f7477b"

Layers = Mapping[str, list[np.ndarray]]  # the arrays of each layer that has any


def read_caffemodel(path: Path) -> tuple[dict[str, list[np.ndarray]], Preprocessing, str]:
    """Returns a file's layers (float32 arrays), its preprocessing, and a note on the preprocessing.

    A file saved by a training run has a data layer with preprocessing. The note lists the values
    read from this layer; without one, it is empty. Other values are those of the published weights.
    Raises WeightsError if the file is not a caffemodel, is corrupt (the error names the last
    complete layer) or has invalid preprocessing.
    """
    net = message_class(_MESSAGES, "NetParameter")()
    try:
        net.ParseFromString(path.read_bytes())
    except DecodeError as error:
        # protobuf keeps what it has parsed before the error.
        names = [_text(layer.name) for layer in (*net.layer, *net.layers) if layer.name]
        problem = "of an unknown format, or cut short; docs/pretrained.md lists the formats"
        if names:
            problem = f"corrupt or cut short after layer {names[-1]}; copy or download it again"
        raise WeightsError(f"{path} is {problem}") from error
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error
    layers: dict[str, list[np.ndarray]] = {}
    preprocessing, note = PREPROCESSING, ""
    for layer in (*net.layer, *net.layers):
        name, message = _text(layer.name), layer.transform_param
        if message.ByteSize() and not note:
            preprocessing, note = _preprocessing(message, f"the data layer {name}", path)
        if layer.blobs:
            layers[name] = [_blob(blob, f"{path}: layer {name}") for blob in layer.blobs]
    if not layers:
        raise WeightsError(f"{path} is not a caffemodel: it has no layer with weights")
    return layers, preprocessing, note


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _preprocessing(message: Any, where: str, path: Path) -> tuple[Preprocessing, str]:
    scale = message.scale if message.HasField("scale") else 1.0
    means = list(message.mean_value)
    note = f"read crop, mean and scale from {where}"
    if message.mean_file:
        means = list(PREPROCESSING.mean)
        file = _text(message.mean_file)
        note = f"read crop and scale from {where}, but not the mean, which is in {file}"
    if not 0 < scale < math.inf or len(means) not in (0, 1, 3) or not np.isfinite(means).all():
        raise WeightsError(f"{path}: {where} has an invalid scale ({scale}) or mean ({means})")
    size = message.crop_size or PREPROCESSING.image_size
    return dataclasses.replace(
        PREPROCESSING,
        image_size=size,
        resize_to=max(size, PREPROCESSING.resize_to),
        mean=tuple(means if len(means) == 3 else (means or [0.0]) * 3),
        std=(1 / scale,) * 3,
    ), note


def _blob(message: Any, where: str) -> np.ndarray:
    shape = tuple(message.shape.dim)
    if not message.HasField("shape"):
        shape = tuple(getattr(message, side) if message.HasField(side) else 1 for side in _SIDES)
    data = np.array(message.double_data or message.data, np.float32)
    if not data.size or not shape or min(shape) < 0 or data.size != math.prod(shape):
        raise WeightsError(f"{where} has {data.size} numbers for a blob of shape {shape}")
    return data.reshape(shape)


def read_onnx(path: Path) -> dict[str, list[np.ndarray]]:
    """Returns the layers (float32 arrays) of an ONNX file whose constants have Caffe2's names.

    Their names are those of Caffe's layers, followed by _w_0 or _b_0. Raises WeightsError.
    """
    try:
        graph = message_class(_ONNX, "ModelProto").FromString(path.read_bytes()).graph
    except DecodeError as error:
        raise WeightsError(f"{path} is a corrupt ONNX file; copy or download it again") from error
    layers: dict[str, list[np.ndarray]] = {}
    # Weights before biases; otherwise in the order of the file, in which classifiers are paired.
    for tensor in sorted(graph.initializer, key=lambda each: each.name.endswith(b"_b_0")):
        name = _text(tensor.name)
        if tensor.data_type == 1:  # float32
            array = to_array(tensor.raw_data, tensor.float_data, tensor.dims, f"{path}: {name}")
            layers.setdefault(re.sub("_[wb]_0$", "", name), []).append(array)
    return layers


def load(src: Path, sha256: str, *, onnx: bool = False) -> tuple[TrainedModel, list[str]]:
    """Returns the network in a .caffemodel or, if `onnx`, an ONNX file, and notes on what was
    assumed, skipped or renamed.

    The model has no class names. `sha256` is the hash of the file. Raises WeightsError.
    """
    layers, pixels, note = (read_onnx(src), PREPROCESSING, "") if onnx else read_caffemodel(src)
    network, notes = find_network(layers, str(src))
    arch, flat = from_caffe(network, str(src))
    source = {"format": "ONNX" if onnx else "caffemodel"}
    published = PUBLISHED["caffe"]
    if sha256 in (published.sha256, WITHOUT_HEADS_SHA256):
        source |= published.facts
    else:
        notes += [note] if note else []
        whose = "Caffe's published GoogLeNet" + (" for the rest" if note else "")
        notes.append(mapping.assumed_preprocessing(whose, pixels))
    return TrainedModel(GoogLeNet(arch), unflatten(flat), pixels, (), source), notes


def _layer_names(heads: Mapping[str, str]) -> dict[str, str]:
    """Returns Caffe's names of modules with weights; `heads` maps auxiliary heads to Caffe's."""
    convs = {path: caffe_name(path) for path in CONVS}
    convs |= {f"{head}/conv": f"{loss}/conv" for head, loss in heads.items()}
    names = {f"{module}/conv": layer for module, layer in convs.items()}
    for head, loss in heads.items():
        names |= {f"{head}/{layer}": f"{loss}/{layer}" for layer in ("fc", "classifier")}
    return names | {"classifier": _CLASSIFIER}


def find_network(layers: Layers, where: str) -> tuple[dict[str, list[np.ndarray]], list[str]]:
    """Returns the GoogLeNet layers in a file, with Caffe's usual names, and notes on all changes.

    A prefix of the network's names is removed. An auxiliary head is skipped if its number of
    classes is not the classifier's. Raises WeightsError if there is no GoogLeNet or more than one,
    or if it is unclear which layers are the classifiers. `where` names the file in errors.
    """
    prefix = mapping.find_prefix(layers, _MARKERS, "a Caffe GoogLeNet", where)
    network = {name.removeprefix(prefix): blobs for name, blobs in layers.items()}
    usual = set(_layer_names(_HEADS).values())
    classifiers = [f"{loss}/classifier" for loss in _HEADS.values() if f"{loss}/fc" in network]
    # To retrain a classifier, users of Caffe rename it, because Caffe copies the weights of all
    # layers whose names match. So if equally many are unknown and missing, the unknown are these.
    missing = [name for name in (*classifiers, _CLASSIFIER) if name not in network]
    unknown = [name for name in network if name not in usual]
    if missing and unknown and len(unknown) != len(missing):
        raise WeightsError(f"{where} has no {missing[0]}; unknown layers: {', '.join(unknown[:4])}")
    notes = []
    for usual_name, name in zip(missing, unknown, strict=False):
        network[usual_name] = network.pop(name)
        notes.append(f"used the layer {name} as the classifier {usual_name}")
    if _CLASSIFIER in network:
        heads = {f"{loss}/": f"{loss}/classifier" for loss in _HEADS.values()}
        classes = {head: network[name][-1].size for head, name in heads.items() if name in network}
        notes += mapping.drop_heads(network, classes, network[_CLASSIFIER][-1].size)
    return network, notes


def from_caffe(layers: Layers, where: str) -> tuple[Architecture, dict[str, np.ndarray]]:
    """Returns the architecture and the flat variables of a GoogLeNet from its Caffe layers.

    A linear layer may be stored as a convolution. The network still expects BGR images.
    """
    tensors = {}
    for name, blobs in layers.items():
        if len(blobs) != 2 or blobs[0].size % blobs[1].size:
            shapes = ", ".join(str(blob.shape) for blob in blobs)
            raise WeightsError(f"{where}: layer {name} needs weights and bias, but has {shapes}")
        weights, bias = blobs
        if name.endswith(("/fc", "/classifier")):
            weights = weights.reshape(bias.size, -1)
        tensors[f"weights of {name}"], tensors[f"bias of {name}"] = weights, bias.reshape(-1)
    heads = {h: loss for h, loss in _HEADS.items() if any(n.startswith(f"{loss}/") for n in layers)}
    names = mapping.name_variables(_layer_names(heads), _PARTS)
    return mapping.map_variables(tensors, names, where, VARIANTS["paper"])
