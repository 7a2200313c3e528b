"""Caffe files that tests write: the wire format, and the network's description in words."""

from collections.abc import Iterable, Mapping

import numpy as np

from gnet_jax.model.architecture import Architecture
from gnet_jax.model.names import CAFFE_BRANCHES
from gnet_jax.model.widths import Widths

BLOCKS = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
NARROW = Architecture(
    num_classes=5,
    widths={block: Widths(3 + i, 4, 5, 2, 3, 4) for i, block in enumerate(BLOCKS)},
    stem_widths=(6, 5, 8),
    aux_widths=(7, 9),
)


def random_layers(
    arch: Architecture = NARROW, aux_after: tuple[str, ...] = ("4a", "4d")
) -> dict[str, list[np.ndarray]]:
    """The layers of a whole GoogLeNet in Caffe's shapes, for images of 224x224."""
    generator = np.random.default_rng(0)

    def layer(*shape: int) -> list[np.ndarray]:
        bound = np.sqrt(3 / np.prod(shape[1:]))
        weights = generator.uniform(-bound, bound, shape).astype(np.float32)
        return [weights, generator.uniform(0, 0.3, shape[:1]).astype(np.float32)]

    conv1, reduce2, conv2 = arch.stem_widths
    layers = {
        "conv1/7x7_s2": layer(conv1, 3, 7, 7),
        "conv2/3x3_reduce": layer(reduce2, conv1, 1, 1),
        "conv2/3x3": layer(conv2, reduce2, 3, 3),
    }
    channels = conv2
    for block, w in arch.widths.items():
        at = f"inception_{block}"
        layers |= {
            f"{at}/1x1": layer(w.b1, channels, 1, 1),
            f"{at}/3x3_reduce": layer(w.reduce3, channels, 1, 1),
            f"{at}/3x3": layer(w.b3, w.reduce3, 3, 3),
            f"{at}/5x5_reduce": layer(w.reduce5, channels, 1, 1),
            f"{at}/5x5": layer(w.b5, w.reduce5, 5, 5),
            f"{at}/pool_proj": layer(w.pool_proj, channels, 1, 1),
        }
        channels = w.b1 + w.b3 + w.b5 + w.pool_proj
        if block in aux_after:
            loss = {"4a": "loss1", "4d": "loss2"}[block]
            conv, units = arch.aux_widths
            layers[f"{loss}/conv"] = layer(conv, channels, 1, 1)
            layers[f"{loss}/fc"] = layer(units, conv * 4 * 4)
            layers[f"{loss}/classifier"] = layer(arch.num_classes, units)
    return layers | {"loss3/classifier": layer(arch.num_classes, channels)}


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def floats(field: int, *values: float) -> bytes:
    return b"".join(varint(field << 3 | 5) + np.float32(value).tobytes() for value in values)


def blob(array: np.ndarray, *, legacy_shape: bool, packed: bool, dtype: str) -> bytes:
    data, field = array.astype(dtype).tobytes(), 5 if dtype == "<f4" else 8
    if packed:
        numbers = message(field, data)
    else:
        size = np.dtype(dtype).itemsize
        tag = varint(field << 3 | (5 if size == 4 else 1))
        numbers = b"".join(tag + data[i : i + size] for i in range(0, len(data), size))
    if legacy_shape:
        shape = (1,) * (4 - array.ndim) + array.shape
        return b"".join(number(i + 1, n) for i, n in enumerate(shape)) + numbers
    return numbers + message(7, message(1, b"".join(varint(n) for n in array.shape)))


def caffemodel_bytes(
    layers: Mapping[str, Iterable[np.ndarray]],
    *,
    v1: bool = False,
    packed: bool = True,
    dtype: str = "<f4",
    transform: bytes = b"",
) -> bytes:
    """A NetParameter; `v1` is the older generation, with four-dimensional shapes.

    `transform` is the transform_param of a data layer.
    """
    layer_field, name_field, blob_field = (2, 4, 6) if v1 else (100, 1, 7)
    out = message(1, b"GoogleNet")
    if transform:
        data = message(name_field, b"data") + message(36 if v1 else 100, transform)
        out += message(layer_field, data)
    for name, blobs in layers.items():
        body = message(name_field, name.encode())
        if v1:
            body = message(2, b"bottom") + body + number(5, 4)  # bottom; type: CONVOLUTION
        else:
            body += message(2, b"Convolution")
        for array in blobs:
            body += message(blob_field, blob(array, legacy_shape=v1, packed=packed, dtype=dtype))
        out += message(layer_field, body)
    return out


def prototxt(layers: Mapping[str, list[np.ndarray]], size: int) -> bytes:
    """bvlc_googlenet's deploy.prototxt, with the auxiliary heads where `layers` has them."""
    text = [f'name: "GoogleNet" input: "data" input_dim: 1 input_dim: 3 '
            f"input_dim: {size} input_dim: {size}"]  # fmt: skip

    def layer(name: str, kind: str, bottoms: list[str], parameters: str = "") -> str:
        sources = " ".join(f'bottom: "{b}"' for b in bottoms)
        text.append(
            f'layer {{ name: "{name}" type: "{kind}" {sources} top: "{name}" {parameters} }}'
        )
        return name

    def conv(name: str, bottom: str, stride: int = 1) -> str:
        outputs, _, kernel, _ = layers[name][0].shape
        layer(name, "Convolution", [bottom],
              f"convolution_param {{ num_output: {outputs} kernel_size: {kernel} "
              f"pad: {kernel // 2} stride: {stride} }}")  # fmt: skip
        return layer(f"{name}/relu", "ReLU", [name])

    def linear(name: str, bottom: str) -> str:
        outputs = layers[name][0].shape[0]
        return layer(
            name, "InnerProduct", [bottom], f"inner_product_param {{ num_output: {outputs} }}"
        )

    def pool(
        name: str, bottom: str, kernel: int, stride: int, pad: int = 0, kind: str = "MAX"
    ) -> str:
        return layer(name, "Pooling", [bottom],
                     f"pooling_param {{ pool: {kind} kernel_size: {kernel} stride: {stride} "
                     f"pad: {pad} }}")  # fmt: skip

    def lrn(name: str, bottom: str) -> str:
        return layer(name, "LRN", [bottom], "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")

    x = lrn("pool1/norm1", pool("pool1/3x3_s2", conv("conv1/7x7_s2", "data", 2), 3, 2))
    x = lrn("conv2/norm2", conv("conv2/3x3", conv("conv2/3x3_reduce", x)))
    x = pool("pool2/3x3_s2", x, 3, 2)
    for block in BLOCKS:
        if block in ("4a", "5a"):
            x = pool(f"pool{int(block[0]) - 1}/3x3_s2", x, 3, 2)
        at = {ours: f"inception_{block}/{name}" for ours, name in CAFFE_BRANCHES.items()}
        pooled = pool(f"inception_{block}/pool", x, 3, 1, 1)
        conv5 = conv(at["b5"], conv(at["reduce5"], x))
        conv3 = conv(at["b3"], conv(at["reduce3"], x))
        branches = [conv(at["b1"], x), conv3, conv5, conv(at["pool_proj"], pooled)]
        x = layer(f"inception_{block}/output", "Concat", branches)
        loss = {"4a": "loss1", "4d": "loss2"}.get(block)
        if loss and f"{loss}/conv" in layers:
            y = conv(f"{loss}/conv", pool(f"{loss}/ave_pool", x, 5, 3, kind="AVE"))
            y = layer(f"{loss}/relu_fc", "ReLU", [linear(f"{loss}/fc", y)])
            linear(f"{loss}/classifier", y)
    x = layer("pool5", "Pooling", [x], "pooling_param { pool: AVE global_pooling: true }")
    linear("loss3/classifier", x)
    return "\n".join(text).encode()
