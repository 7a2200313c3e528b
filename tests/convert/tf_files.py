"""TensorFlow's files as tests write them: checkpoints of both versions, and a frozen graph."""

from collections.abc import Mapping, Sequence

import numpy as np

from gnet_jax.data.sources.tfds import checksum
from tests.convert.caffe_files import floats, message, number, varint

MAGIC = bytes.fromhex("57fb808b247547db")


def table(entries: Mapping[bytes, bytes], compression: int = 0) -> bytes:
    """A LevelDB table, three entries to a block and two to a restart."""
    out, index = b"", {}
    keys = sorted(entries)
    for start in range(0, len(keys), 3):
        chosen = keys[start : start + 3]
        content = block({key: entries[key] for key in chosen})
        index[chosen[-1]] = varint(len(out)) + varint(len(content))
        out += checked(content + bytes([compression]))
    handles = b""
    for content in (block({}), block(index)):
        handles += varint(len(out)) + varint(len(content))
        out += checked(content + bytes(1))
    return out + handles.ljust(40, b"\0") + MAGIC


def checked(content: bytes) -> bytes:
    return content + checksum(content).to_bytes(4, "little")


def block(entries: Mapping[bytes, bytes]) -> bytes:
    out, before, restarts = b"", b"", []
    for i, (key, value) in enumerate(entries.items()):
        shared = 0
        if i % 2:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        else:
            restarts.append(len(out))
        out += (
            varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        )
        before = key
    return out + np.array([*restarts, len(restarts)], "<u4").tobytes()


def dims(shape: Sequence[int]) -> bytes:
    return b"".join(message(2, number(1, n)) for n in shape)


def kind(array: np.ndarray) -> int:
    return {"float32": 1, "int64": 9}[array.dtype.name]


def checkpoint_v1(tensors: Mapping[str, np.ndarray], compression: int = 0) -> bytes:
    metas, entries = b"", {}
    for i, (name, array) in enumerate(tensors.items()):
        named = message(1, name.encode())
        metas += message(1, named + message(2, dims(array.shape)) + number(3, kind(array)))
        values = message(5 if kind(array) == 1 else 10, array.tobytes())
        data = named + message(3, number(1, kind(array)) + values)
        entries[b"\0%04d" % i] = message(2, data)
    return table({b"": message(1, metas)} | entries, compression)


def checkpoint_v2(tensors: Mapping[str, np.ndarray]) -> tuple[bytes, bytes]:
    """The .index file, and the one .data file."""
    data, entries = b"", {b"": number(1, 1)}
    for name, array in tensors.items():
        place = number(4, len(data)) + number(5, array.nbytes)
        place += b"\x35" + checksum(array.tobytes()).to_bytes(4, "little")  # field 6, fixed32
        entries[name.encode()] = number(1, kind(array)) + message(2, dims(array.shape)) + place
        data += array.tobytes()
    return table(entries), data


def node(name: str, operation: str, **attributes: bytes) -> bytes:
    """A NodeDef in a GraphDef; each attribute is an AttrValue."""
    body = message(1, name.encode()) + message(2, operation.encode()) + message(3, b"input")
    for key, value in attributes.items():
        body += message(5, message(1, key.encode()) + message(2, value))
    return message(1, body)


def const(name: str, array: np.ndarray, *, typed: bool = False) -> bytes:
    """A constant; `typed` stores it in float_val, where repeated last values are left out."""
    tensor = number(1, kind(array)) + message(2, dims(array.shape))
    if typed:
        values = array.ravel()
        last = np.flatnonzero(values != values[-1])[-1:] + 1
        tensor += floats(5, *values[: int(last.sum()) + 1])
    else:
        tensor += message(4, array.tobytes())
    return node(name, "Const", dtype=number(6, kind(array)), value=message(8, tensor))


def lrn(name: str, size: int, bias: float, alpha: float, power: float) -> bytes:
    values = {"bias": bias, "alpha": alpha, "beta": power}
    attributes = {key: floats(4, value) for key, value in values.items()}
    return node(name, "LRN", depth_radius=number(3, size // 2), **attributes)


def random_weights(
    widths: Mapping[str, Sequence[int]],
    stem: Sequence[int],
    classes: int,
    aux: tuple[int, int] | None = None,
) -> dict[str, np.ndarray]:
    """The weights of Google's network by their names in its graph, for images of 224x224."""
    generator, found = np.random.default_rng(0), {}

    def layer(name: str, *shape: int) -> None:
        bound = (6 / np.prod(shape[:-1])) ** 0.5  # keeps activations of size one
        found[f"{name}_w"] = generator.uniform(-bound, bound, shape).astype(np.float32)
        found[f"{name}_b"] = generator.uniform(-0.3, 0.3, shape[-1]).astype(np.float32)

    layer("conv2d0", 7, 7, 3, stem[0])
    layer("conv2d1", 1, 1, stem[0], stem[1])
    layer("conv2d2", 3, 3, stem[1], stem[2])
    channels = stem[2]
    for block, (b1, reduce3, b3, reduce5, b5, pool_proj) in widths.items():
        at = f"mixed{block}"
        layer(f"{at}_1x1", 1, 1, channels, b1)
        layer(f"{at}_3x3_bottleneck", 1, 1, channels, reduce3)
        layer(f"{at}_3x3", 3, 3, reduce3, b3)
        layer(f"{at}_5x5_bottleneck", 1, 1, channels, reduce5)
        layer(f"{at}_5x5", 5, 5, reduce5, b5)
        layer(f"{at}_pool_reduce", 1, 1, channels, pool_proj)
        channels = b1 + b3 + b5 + pool_proj
        if aux and block in ("4a", "4d"):
            i = ("4a", "4d").index(block)
            layer(f"head{i}_bottleneck", 1, 1, channels, aux[0])
            layer(f"nn{i}", 4 * 4 * aux[0], aux[1])
            layer(f"softmax{i}", aux[1], classes)
    layer("softmax2", channels, classes)
    return found


GOOGLES_LRN = (9, 1.0, 1e-4 / 9, 0.5)


def graph_bytes(
    weights: Mapping[str, np.ndarray],
    lrns: Sequence[tuple[int, float, float, float]] = (GOOGLES_LRN,) * 2,
    typed: Sequence[str] = (),
) -> bytes:
    """A part of a frozen graph: input, weights and some other nodes. `typed` is as in `const`."""
    out = node("input", "Placeholder", dtype=number(6, 1))
    for name, array in weights.items():
        out += const(name, array, typed=name in typed)
    out += const("mixed3a/concat_dim", np.array(3)) + node("mixed3a", "Concat", N=number(3, 4))
    return out + b"".join(lrn(f"localresponsenorm{i}", *each) for i, each in enumerate(lrns))
