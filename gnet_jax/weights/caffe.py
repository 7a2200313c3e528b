"""Caffe's .caffemodel: its protobuf wire format, and its names for GoogLeNet's layers.

Read are both generations of the format (caffe.proto: NetParameter.layer, and the older .layers),
with or without the auxiliary heads. Only sizes and numbers are taken from the file.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gnet_jax.config import Preprocessing
from gnet_jax.model import VARIANTS, Architecture
from gnet_jax.model.googlenet import CAFFE_BRANCHES, CAFFE_STEM
from gnet_jax.weights.variables import WeightsError, rows_to_channels_last, with_shapes_of

# Field numbers of caffe.proto.
_NET_FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 100}
_LAYER = {100: (1, 7), 2: (4, 6)}  # NetParameter's layer, layers: their fields for name, blobs
_DATA, _SHAPE, _DOUBLE_DATA = 5, 7, 8  # of BlobProto
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
    names["classifier"] = "loss3/classifier"
    for head, loss in (("aux_4a", "loss1"), ("aux_4d", "loss2")):
        names |= {f"{head}/{layer}": f"{loss}/{layer}" for layer in ("conv", "fc", "classifier")}
    return names


def from_caffe(
    layers: dict[str, list[np.ndarray]], where: str
) -> tuple[Architecture, dict[str, np.ndarray]]:
    """The architecture and the flat variables that the layers of a GoogLeNet hold.

    A retrained classifier under a name that goes on after Caffe's ("loss3/classifier_pets") is
    taken too. The input's channels stay blue, green, red.

    Raises:
        WeightsError: naming the first layer that is missing, unknown or of an unfit shape.
    """
    left = dict(layers)
    heads = [loss for loss in ("loss1", "loss2") if any(n.startswith(f"{loss}/") for n in layers)]
    flat: dict[str, np.ndarray] = {}
    for module, name in _layer_names().items():
        if name.startswith(("loss1", "loss2")) and name.split("/")[0] not in heads:
            continue
        renamed = [n for n in left if n.startswith(name)] if module.endswith("classifier") else []
        found = name if name in left else renamed[0] if len(renamed) == 1 else None
        if found is None:
            raise WeightsError(f"{where} has no layer {name}; it holds no whole GoogLeNet")
        blobs = left.pop(found)
        if len(blobs) != 2:
            raise WeightsError(f"{where}: layer {found} has {len(blobs)} blobs; it must have 2")
        weights, bias = blobs
        dense = module.endswith(("/fc", "classifier"))
        if dense:  # older files write a matrix as (1, 1, outputs, inputs)
            kernel = weights.reshape(-1, weights.shape[-1]).T
            if module.endswith("/fc"):
                channels = flat[f"params/{module.removesuffix('fc')}conv/conv/kernel"].shape[-1]
                if kernel.shape[0] % channels or not _is_square(kernel.shape[0] // channels):
                    raise WeightsError(
                        f"{where}: layer {found} has {kernel.shape[0]} inputs; they must be "
                        f"{channels} channels of a square of places"
                    )
                kernel = rows_to_channels_last(kernel, channels)
        elif weights.ndim == 4:
            kernel = weights.transpose(2, 3, 1, 0)
        else:
            raise WeightsError(
                f"{where}: layer {found} has a kernel of shape {weights.shape}; it must have 4 axes"
            )
        prefix = f"params/{module}" if dense else f"params/{module}/conv"
        flat[f"{prefix}/kernel"] = np.ascontiguousarray(kernel)
        flat[f"{prefix}/bias"] = bias.reshape(-1)
    if left:
        raise WeightsError(f"{where} has the layer {next(iter(left))}, which GoogLeNet has not")
    return with_shapes_of(flat, VARIANTS["paper"]), flat


def _is_square(number: int) -> bool:
    return number > 0 and round(number**0.5) ** 2 == number
