"""Caffe's .caffemodel: its protobuf wire format, and its names for GoogLeNet's layers.

Read are both generations of the format (caffe.proto: NetParameter.layer, and the older .layers),
with or without the auxiliary heads. Only sizes and numbers are taken from the file.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from gnet_jax.config import Preprocessing
from gnet_jax.model.architecture import VARIANTS, Architecture
from gnet_jax.model.googlenet import CAFFE_BRANCHES, CAFFE_STEM
from gnet_jax.model_folder.variables import WeightsError, rows_to_channels_last, with_shapes_of

# Field numbers of caffe.proto.
_NET_FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 100}
_LAYER = {100: (1, 7), 2: (4, 6)}  # NetParameter's layer, layers: their fields for name, blobs
_TRANSFORM = {100: 100, 2: 36}  # of each, the field for transform_param
_SCALE, _CROP, _MEAN_FILE, _MEAN = 1, 3, 4, 5  # of TransformationParameter
_DATA, _SHAPE, _DOUBLE_DATA = 5, 7, 8  # of BlobProto
_FIRST, _SECOND = "conv1/7x7_s2", "inception_3a/1x1"  # tell a GoogLeNet
_HEADS, _CLASSIFIER = ("loss1", "loss2"), "loss3/classifier"
_LEGACY_SHAPE = (1, 2, 3, 4)  # of BlobProto: num, channels, height, width

PREPROCESSING = Preprocessing(
    image_size=224,
    resize="warp",
    resize_to=256,
    channels="BGR",
    mean=(104.0, 117.0, 123.0),
    std=(1.0, 1.0, 1.0),
)
"""Of the published weights (BVLC/caffe, models/bvlc_googlenet)."""


class _CutShortError(ValueError):
    """A message that ends inside of a field."""

    def __init__(self, number: int, rest: memoryview) -> None:
        super().__init__()
        self.number, self.rest = number, rest  # the field, and what there is of it


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, seven bits a byte, and the place after it."""
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
    """Number and value of each field: an int, or the bytes of a string, message or packed list.

    Raises:
        _CutShortError: where the message ends too early.
        ValueError: for what is no protobuf message.
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


def is_caffemodel(head: bytes) -> bool:
    """Whether a file that begins with `head` can be a NetParameter; the format has no signature.

    A name, input or layer must come first, and what it holds must be text or a message.
    """
    try:
        number, value = next(_fields(memoryview(head)))
    except _CutShortError as cut:
        if cut.number not in _LAYER:  # a layer may be longer than `head`, a name is not
            return False
        number, value = cut.number, cut.rest
    except (ValueError, StopIteration):
        return False
    if number in _LAYER and isinstance(value, memoryview):
        return _name(value, _LAYER[number][0]) is not None
    return number in (1, 3) and isinstance(value, memoryview) and _text(value) is not None


def _text(value: memoryview) -> str | None:
    try:
        text = bytes(value).decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None


def _name(layer: memoryview, number: int) -> str | None:
    """The layer's name, even where the rest of the layer is cut off."""
    try:
        for found, value in _fields(layer):
            if found == number and isinstance(value, memoryview):
                return _text(value)
    except ValueError:
        pass
    return None


def read_caffemodel(path: Path) -> dict[str, list[np.ndarray]]:
    """The float32 blobs of every layer that has some, by the layer's name, in the file's order.

    Raises:
        WeightsError: if the file is no caffemodel or is cut short, naming the layer.
    """
    layers: dict[str, list[np.ndarray]] = {}
    name: str | None = None
    try:
        for number, value in _fields(memoryview(path.read_bytes())):
            if number not in _NET_FIELDS:
                raise ValueError(f"field {number}")
            if number not in _LAYER or not isinstance(value, memoryview):
                continue
            name_field, blob_field = _LAYER[number]
            name = _name(value, name_field)
            if name is None:
                raise ValueError("a layer without a name")
            blobs = [_blob(v, name) for n, v in _fields(value) if n == blob_field]
            if blobs:
                layers[name] = blobs
    except _CutShortError as cut:
        inside = _name(cut.rest, _LAYER[cut.number][0]) if cut.number in _LAYER else None
        where = f"in layer {inside}" if inside else f"after layer {name}" if name else "at once"
        raise WeightsError(f"{path} is cut short {where}; copy or download it again") from cut
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except ValueError as error:
        raise WeightsError(f"{path} is not a caffemodel: it holds {error}") from error
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error
    if not layers:
        raise WeightsError(f"{path} holds no layer with weights")
    return layers


def read_preprocessing(path: Path) -> tuple[Preprocessing, str]:
    """The preprocessing of a file that `read_caffemodel` reads, and what of it the file tells.

    Files that a training run saved hold its data layer, with crop, mean and scale. The rest, and
    everything without a data layer, is that of the published weights.

    Raises:
        WeightsError: if the file tells a preprocessing that cannot be used.
    """
    for number, layer in _fields(memoryview(path.read_bytes())):
        if number in _LAYER and isinstance(layer, memoryview):
            for field, message in _fields(layer):
                if field == _TRANSFORM[number] and isinstance(message, memoryview) and message:
                    return _transform(message, f"the data layer {_name(layer, _LAYER[number][0])}")
    return PREPROCESSING, ""


def _transform(message: memoryview, where: str) -> tuple[Preprocessing, str]:
    scale, crop, means, mean_file = 1.0, 0, [], ""
    for number, value in _fields(message):
        if isinstance(value, int):
            crop = value if number == _CROP else crop
        elif number == _SCALE:
            (scale,) = np.frombuffer(value, "<f4").tolist()
        elif number == _MEAN_FILE:
            mean_file = _text(value) or "a file"
        elif number == _MEAN:
            means += np.frombuffer(value, "<f4").tolist()  # of a packed list, or one
    told = f"took crop, mean and scale from {where}"
    if mean_file:
        means = PREPROCESSING.mean
        told = f"took crop and scale from {where}, but not the mean, which is in {mean_file}"
    blue, green, red = means if len(means) == 3 else (means or [0.0])[:1] * 3
    size = crop or PREPROCESSING.image_size
    if not 0 < scale < np.inf or len(means) not in (0, 1, 3) or not np.isfinite(means).all():
        raise WeightsError(f"{where} has scale {scale} and mean {means}, which cannot be used")
    preprocessing = dataclasses.replace(
        PREPROCESSING,
        image_size=size,
        resize_to=max(size, PREPROCESSING.resize_to),
        mean=(blue, green, red),
        std=(1 / scale,) * 3,
    )
    return preprocessing, told


def _blob(message: int | memoryview, layer: str) -> np.ndarray:
    if not isinstance(message, memoryview):
        raise ValueError("a blob that is a number")
    floats, doubles, shape, legacy = [], [], None, {}
    for number, value in _fields(message):
        if isinstance(value, int):
            legacy[number] = value
        elif number == _DATA:
            floats.append(value)  # the whole list where it is packed, else one number of it
        elif number == _DOUBLE_DATA:
            doubles.append(value)
        elif number == _SHAPE:
            shape = _dims(value)
    if shape is None:
        shape = tuple(legacy.get(number, 1) for number in _LEGACY_SHAPE)
    if not shape or 0 in shape:
        raise WeightsError(f"layer {layer} has an empty blob, of shape {tuple(shape)}")
    dtype = "<f8" if doubles else "<f4"
    data = np.frombuffer(b"".join(doubles or floats), dtype).astype(np.float32)
    if data.size != np.prod(shape, dtype=object):
        raise WeightsError(f"layer {layer} has {data.size} numbers for a blob of shape {shape}")
    return data.reshape(shape)


def _dims(message: memoryview) -> tuple[int, ...]:
    dims = []
    for _, value in _fields(message):
        if isinstance(value, int):
            dims.append(value)
            continue
        at = 0
        while at < len(value):  # packed
            dim, at = _varint(value, at)
            dims.append(dim)
    return tuple(dims)


def _layer_names() -> dict[str, str]:
    """Caffe's layer for every module with weights, the auxiliary heads' last."""
    blocks = VARIANTS["paper"].widths
    names = dict(CAFFE_STEM)
    for block in blocks:
        at = f"inception_{block}"
        names |= {f"{at}/{ours}": f"{at}/{caffes}" for ours, caffes in CAFFE_BRANCHES.items()}
    names["classifier"] = _CLASSIFIER
    for head, loss in zip(("aux_4a", "aux_4d"), _HEADS, strict=True):
        names |= {f"{head}/{layer}": f"{loss}/{layer}" for layer in ("conv", "fc", "classifier")}
    return names


def find_network(
    layers: Mapping[str, list[np.ndarray]], where: str
) -> tuple[dict[str, list[np.ndarray]], list[str]]:
    """The layers of a GoogLeNet under Caffe's own names.

    Retraining gives classifiers new names, because Caffe copies every layer whose name it knows. So
    the layers with unknown names are the missing classifiers if there are as many, in the file's
    order. A common prefix of all names is dropped. Auxiliary heads with another number of classes
    than the main classifier are left out.

    Returns:
        The layers, for `from_caffe`, and a sentence for everything that was left out or taken for
        a classifier.

    Raises:
        WeightsError: naming layers if there is no GoogLeNet, more than one, or one whose
            classifiers cannot be told.
    """
    prefixes = [name.removesuffix(_FIRST) for name in layers if name.endswith(_FIRST)]
    prefixes = [prefix for prefix in prefixes if prefix + _SECOND in layers]
    if not prefixes:
        first = ", ".join(list(layers)[:3])
        raise WeightsError(f"{where} is not a Caffe GoogLeNet: it holds {first}, ...")
    if len(prefixes) > 1:
        raise WeightsError(
            f"{where} holds {len(prefixes)} networks, {' and '.join(p + _FIRST for p in prefixes)}"
        )
    network = {name.removeprefix(prefixes[0]): blobs for name, blobs in layers.items()}
    notes, usual = [], set(_layer_names().values())
    classifiers = [f"{loss}/classifier" for loss in _HEADS if f"{loss}/fc" in network]
    missing = [name for name in (*classifiers, _CLASSIFIER) if name not in network]
    unknown = [name for name in network if name not in usual]
    if missing and unknown and len(unknown) != len(missing):
        raise WeightsError(
            f"{where} has no layer {missing[0]}, and the layers {', '.join(unknown[:4])}, which "
            "GoogLeNet has not: the classifier cannot be told"
        )
    for usual_name, name in zip(missing, unknown, strict=False):
        network[usual_name] = network.pop(name)
        notes.append(f"took the layer {name} for {usual_name}")
    for loss in _HEADS:
        own, main = network.get(f"{loss}/classifier"), network.get(_CLASSIFIER)
        if own and main and own[-1].size != main[-1].size:
            network = {n: blobs for n, blobs in network.items() if not n.startswith(f"{loss}/")}
            notes.append(
                f"left out the auxiliary head {loss}, because it has {own[-1].size} classes and "
                f"the network {main[-1].size}"
            )
    return network, notes


def from_caffe(
    layers: Mapping[str, list[np.ndarray]], where: str
) -> tuple[Architecture, dict[str, np.ndarray]]:
    """The architecture and the flat variables that the layers of a GoogLeNet hold.

    Linear layers may be convolutions that see the whole of their input, which compute the same. The
    input's channels stay blue, green, red.

    Raises:
        WeightsError: naming the first layer that is missing, unknown or of an unfit shape.
    """
    left = dict(layers)
    heads = [loss for loss in _HEADS if any(n.startswith(f"{loss}/") for n in layers)]
    flat: dict[str, np.ndarray] = {}
    for module, name in _layer_names().items():
        if name.startswith(_HEADS) and name.split("/")[0] not in heads:
            continue
        if name not in left:
            raise WeightsError(f"{where} has no layer {name}; it holds no whole GoogLeNet")
        blobs = left.pop(name)
        if len(blobs) != 2:
            raise WeightsError(f"{where}: layer {name} has {len(blobs)} blobs; it must have 2")
        weights, bias = blobs
        dense = module.endswith(("/fc", "classifier"))
        if dense:
            kernel = _matrix(weights)
            if module.endswith("/fc"):
                channels = flat[f"params/{module.removesuffix('fc')}conv/conv/kernel"].shape[-1]
                if kernel.shape[0] % channels or not _is_square(kernel.shape[0] // channels):
                    raise WeightsError(
                        f"{where}: layer {name} has {kernel.shape[0]} inputs; they must be "
                        f"{channels} channels of a square of places"
                    )
                kernel = rows_to_channels_last(kernel, channels)
        elif weights.ndim == 4:
            kernel = weights.transpose(2, 3, 1, 0)
        else:
            raise WeightsError(
                f"{where}: layer {name} has a kernel of shape {weights.shape}; it must have 4 axes"
            )
        prefix = f"params/{module}" if dense else f"params/{module}/conv"
        flat[f"{prefix}/kernel"] = np.ascontiguousarray(kernel)
        flat[f"{prefix}/bias"] = bias.reshape(-1)
    if left:
        raise WeightsError(f"{where} has the layer {next(iter(left))}, which GoogLeNet has not")
    return with_shapes_of(flat, VARIANTS["paper"]), flat


def _matrix(weights: np.ndarray) -> np.ndarray:
    """The kernel (inputs, outputs) of a linear layer.

    Caffe has (outputs, inputs), in older files with two ones in front; a convolution over the whole
    of the layer's input has (outputs, channels, height, width).
    """
    if weights.ndim == 4 and weights.shape[:2] == (1, 1):
        weights = weights[0, 0]
    return weights.reshape(len(weights), -1).T


def _is_square(number: int) -> bool:
    return number > 0 and round(number**0.5) ** 2 == number
