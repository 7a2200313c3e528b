"""Caffe's .caffemodel: its protobuf wire format, and its names for GoogLeNet's layers.

Both generations of the format are read (caffe.proto: NetParameter.layer, and the older .layers),
with or without the auxiliary heads. The wire format is read here because protobuf's parser does not
say in which layer a file is cut short.
"""

import dataclasses
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gnet_jax.config import Preprocessing
from gnet_jax.convert.mapping import (
    Found,
    assumed_preprocessing,
    drop_heads,
    find_prefix,
    map_variables,
)
from gnet_jax.model import VARIANTS, Architecture
from gnet_jax.model.googlenet import CAFFE_BRANCHES, CAFFE_STEM
from gnet_jax.model_folder.variables import WeightsError


class _LayerFields(NamedTuple):
    """Field numbers of a layer's message in caffe.proto."""

    name: int
    blobs: int
    transform: int


_LAYERS = {100: _LayerFields(1, 7, 100), 2: _LayerFields(4, 6, 36)}  # NetParameter's layer, layers
_NET_FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 100}
_SCALE, _CROP, _MEAN_FILE, _MEAN = 1, 3, 4, 5  # of TransformationParameter
_DATA, _SHAPE, _DOUBLE_DATA = 5, 7, 8  # of BlobProto
_LEGACY_SHAPE = (1, 2, 3, 4)  # of BlobProto: num, channels, height, width

_HEADS = {"aux_4a": "loss1", "aux_4d": "loss2"}
_CLASSIFIER = "loss3/classifier"
_MARKERS = "conv1/7x7_s2", "inception_3a/1x1"

PREPROCESSING = Preprocessing(
    image_size=224,
    resize="warp",
    resize_to=256,
    channels="BGR",
    mean=(104.0, 117.0, 123.0),
    std=(1.0, 1.0, 1.0),
)
"""Of the published weights (BVLC/caffe, models/bvlc_googlenet)."""

PUBLISHED_SHA1 = "405fc5acd08a3bb12de8ee5e23a96bec22f08204"  # by its readme
WITHOUT_HEADS_SHA256 = "afb3ba04dbee93e6e3228f8c399c5f439a786fbeafdb5b5870a990de80f7477b"  # a copy

Layers = Mapping[str, list[np.ndarray]]  # the blobs of each layer that has some, in order


class CaffeModel(NamedTuple):
    """The contents of a .caffemodel."""

    layers: dict[str, list[np.ndarray]]
    preprocessing: Preprocessing
    note: str  # which parts of the preprocessing the file holds; "" if none


class _CutShortError(ValueError):
    """A message that ends inside a field."""

    def __init__(self, number: int, rest: memoryview) -> None:
        super().__init__()
        self.number, self.rest = number, rest  # the field, and what there is of it


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Returns the number at `at`, seven bits a byte, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _CutShortError(0, data[:0])
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than ten bytes")


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and value of each field: an int, or the bytes of anything else.

    Raises:
        _CutShortError: if the message ends too early.
        ValueError: if it is not a protobuf message.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > len(data):
            raise _CutShortError(number, data[at:])
        yield number, data[at : at + length]
        at += length


def _message(data: memoryview) -> dict[int, list[Any]]:
    """Returns the values of every field of a message by its number; missing fields are empty."""
    found: dict[int, list[Any]] = defaultdict(list)
    for number, value in _fields(data):
        found[number].append(value)
    return found


def _text(value: memoryview) -> str | None:
    try:
        text = bytes(value).decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None


def _name(layer: memoryview, number: int) -> str | None:
    """Returns the layer's name, even if the rest of the layer is cut off."""
    try:
        for found, value in _fields(layer):
            if found == number and isinstance(value, memoryview):
                return _text(value)
    except ValueError:
        pass
    return None


def is_caffemodel(head: bytes) -> bool:
    """Returns whether a file that begins with `head` can be a NetParameter.

    The format has no signature: a printable name or input, or a layer with a name, must come first.
    """
    try:
        number, value = next(_fields(memoryview(head)))
    except _CutShortError as cut:
        if cut.number not in _LAYERS:  # a layer may be longer than `head`, a name is not
            return False
        number, value = cut.number, cut.rest
    except (ValueError, StopIteration):
        return False
    if not isinstance(value, memoryview):
        return False
    if number in _LAYERS:
        return _name(value, _LAYERS[number].name) is not None
    return number in (1, 3) and _text(value) is not None


def read_caffemodel(path: Path) -> CaffeModel:
    """Returns the layers in a file, as float32, and the preprocessing of its data layer.

    Only files that a training run saved have a data layer, with crop, mean and scale. The rest is
    that of the published weights.

    Raises:
        WeightsError: if the file is not a caffemodel, or cut short (naming the layer), or has a
            preprocessing that cannot be used.
    """
    layers: dict[str, list[np.ndarray]] = {}
    preprocessing, note, name = PREPROCESSING, "", None
    try:
        for number, layer in _fields(memoryview(path.read_bytes())):
            if number not in _NET_FIELDS:
                raise ValueError(f"field {number}")
            if number not in _LAYERS or not isinstance(layer, memoryview):
                continue
            fields = _LAYERS[number]
            name = _name(layer, fields.name)
            if name is None:
                raise ValueError("a layer without a name")
            parts = _message(layer)
            if not note and any(parts[fields.transform]):
                transform = next(filter(None, parts[fields.transform]))
                preprocessing, note = _preprocessing(transform, f"the data layer {name}")
            if blobs := [_blob(each, name) for each in parts[fields.blobs]]:
                layers[name] = blobs
    except _CutShortError as cut:
        inside = _name(cut.rest, _LAYERS[cut.number].name) if cut.number in _LAYERS else None
        where = f"in layer {inside}" if inside else f"after layer {name}"
        raise WeightsError(f"{path} is cut short {where}; copy or download it again") from cut
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except (ValueError, TypeError) as error:  # TypeError: a number instead of a message
        raise WeightsError(f"{path} is not a caffemodel: it holds {error}") from error
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error
    if not layers:
        raise WeightsError(f"{path} has no layer with weights")
    return CaffeModel(layers, preprocessing, note)


def _preprocessing(message: memoryview, where: str) -> tuple[Preprocessing, str]:
    fields = _message(message)
    (scale,) = np.frombuffer(fields[_SCALE][-1], "<f4").tolist() if fields[_SCALE] else (1.0,)
    crop = fields[_CROP][-1] if fields[_CROP] else 0
    means = np.frombuffer(b"".join(fields[_MEAN]), "<f4").tolist()
    note = f"read crop, mean and scale from {where}"
    if fields[_MEAN_FILE]:
        means = list(PREPROCESSING.mean)
        file = _text(fields[_MEAN_FILE][-1]) or "a file"
        note = f"read crop and scale from {where}, but not the mean, which is in {file}"
    if not 0 < scale < math.inf or len(means) not in (0, 1, 3) or not np.isfinite(means).all():
        raise WeightsError(f"{where} has scale {scale} and mean {means}, which cannot be used")
    blue, green, red = means if len(means) == 3 else (means or [0.0]) * 3
    size = crop or PREPROCESSING.image_size
    preprocessing = dataclasses.replace(
        PREPROCESSING,
        image_size=size,
        resize_to=max(size, PREPROCESSING.resize_to),
        mean=(blue, green, red),
        std=(1 / scale,) * 3,
    )
    return preprocessing, note


def _blob(message: memoryview, layer: str) -> np.ndarray:
    fields = _message(message)
    if fields[_SHAPE]:
        shape = _dims(fields[_SHAPE][-1])
    else:
        shape = tuple(fields[number][-1] if fields[number] else 1 for number in _LEGACY_SHAPE)
    dtype = "<f8" if fields[_DOUBLE_DATA] else "<f4"
    # Either the whole list where it is packed, or one number each.
    numbers = b"".join(fields[_DOUBLE_DATA] or fields[_DATA])
    data = np.frombuffer(numbers, dtype).astype(np.float32)
    if not data.size or not shape or data.size != math.prod(shape):
        raise WeightsError(f"layer {layer} has {data.size} numbers for a blob of shape {shape}")
    return data.reshape(shape)


def _dims(message: memoryview) -> tuple[int, ...]:
    dims = []
    for value in _message(message)[1]:
        if isinstance(value, int):
            dims.append(value)
            continue
        at = 0
        while at < len(value):  # packed
            dim, at = _varint(value, at)
            dims.append(dim)
    return tuple(dims)


def load(src: Path, sha256: str) -> Found:
    """Returns the network in a .caffemodel.

    Raises:
        WeightsError: as `read_caffemodel`, `find_network` and `from_caffe`.
    """
    found = read_caffemodel(src)
    layers, notes = find_network(found.layers, str(src))
    arch, flat = from_caffe(layers, str(src))
    source = {"format": "caffemodel"}
    with src.open("rb") as file:
        sha1 = hashlib.file_digest(file, "sha1").hexdigest()
    if sha1 == PUBLISHED_SHA1 or sha256 == WITHOUT_HEADS_SHA256:
        source |= {"license": "unrestricted", "origin": "BVLC/caffe models/bvlc_googlenet"}
    else:
        notes += [found.note] if found.note else []
        whose = "Caffe's published GoogLeNet" + (" for the rest" if found.note else "")
        notes.append(assumed_preprocessing(whose, found.preprocessing))
    return Found(arch, flat, found.preprocessing, source, notes)


def _layer_names(heads: Mapping[str, str]) -> dict[str, str]:
    """Returns Caffe's layer for every module with weights, the auxiliary heads' last."""
    names = dict(CAFFE_STEM)
    for block in VARIANTS["paper"].widths:
        at = f"inception_{block}"
        names |= {f"{at}/{ours}": f"{at}/{caffes}" for ours, caffes in CAFFE_BRANCHES.items()}
    names["classifier"] = _CLASSIFIER
    for head, loss in heads.items():
        names |= {f"{head}/{layer}": f"{loss}/{layer}" for layer in ("conv", "fc", "classifier")}
    return names


def find_network(layers: Layers, where: str) -> tuple[dict[str, list[np.ndarray]], list[str]]:
    """Returns the layers of a GoogLeNet under Caffe's own names.

    Retraining renames classifiers, because Caffe copies the weights of every layer whose name it
    knows. If as many layers have unknown names as classifiers are missing, they are the
    classifiers, in the file's order. A common prefix of all names is dropped. Auxiliary heads with
    another number of classes than the main classifier are skipped.

    Returns:
        The layers for `from_caffe`, and a note on everything that was skipped or renamed.

    Raises:
        WeightsError: naming layers if there is no GoogLeNet, more than one, or one whose
            classifiers are ambiguous.
    """
    prefix = find_prefix(layers, _MARKERS, "a Caffe GoogLeNet", where)
    network = {name.removeprefix(prefix): blobs for name, blobs in layers.items()}
    usual = set(_layer_names(_HEADS).values())
    classifiers = [f"{loss}/classifier" for loss in _HEADS.values() if f"{loss}/fc" in network]
    missing = [name for name in (*classifiers, _CLASSIFIER) if name not in network]
    unknown = [name for name in network if name not in usual]
    if missing and unknown and len(unknown) != len(missing):
        raise WeightsError(
            f"{where} has no layer {missing[0]}, but the unknown layers {', '.join(unknown[:4])}: "
            "which one is the classifier is ambiguous"
        )
    notes = []
    for usual_name, name in zip(missing, unknown, strict=False):
        network[usual_name] = network.pop(name)
        notes.append(f"used the layer {name} as {usual_name}")
    if _CLASSIFIER in network:
        heads = {f"{loss}/": f"{loss}/classifier" for loss in _HEADS.values()}
        classes = {head: network[name][-1].size for head, name in heads.items() if name in network}
        notes += drop_heads(network, classes, network[_CLASSIFIER][-1].size)
    return network, notes


def from_caffe(layers: Layers, where: str) -> tuple[Architecture, dict[str, np.ndarray]]:
    """Returns the architecture and the flat variables that the layers of a GoogLeNet hold.

    A linear layer may be a convolution over its whole input, which computes the same. The input's
    channels stay blue, green, red.

    Raises:
        WeightsError: naming the first layer that is missing, unknown or of another shape.
    """
    tensors = {}
    for name, blobs in layers.items():
        if len(blobs) != 2:
            raise WeightsError(f"{where}: layer {name} has {len(blobs)} blobs; expected 2")
        weights, bias = blobs
        if name.endswith(("/fc", "/classifier")):
            weights = _as_matrix(weights)
        tensors[f"weights of {name}"], tensors[f"bias of {name}"] = weights, bias.reshape(-1)
    heads = {h: loss for h, loss in _HEADS.items() if any(n.startswith(f"{loss}/") for n in layers)}
    names = {}
    for module, layer in _layer_names(heads).items():
        ours = module if module.endswith(("/fc", "classifier")) else f"{module}/conv"
        names[f"params/{ours}/kernel"] = f"weights of {layer}"
        names[f"params/{ours}/bias"] = f"bias of {layer}"
    return map_variables(tensors, names, where, VARIANTS["paper"])


def _as_matrix(weights: np.ndarray) -> np.ndarray:
    """Returns the matrix (outputs, inputs) of a linear layer.

    Older files have two ones in front; a convolution over the whole of the layer's input has
    (outputs, channels, height, width).
    """
    if weights.ndim == 4 and weights.shape[:2] == (1, 1):
        weights = weights[0, 0]
    return weights.reshape(len(weights), -1)
