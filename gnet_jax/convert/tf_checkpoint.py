"""Reads TensorFlow's checkpoints without TensorFlow.

A checkpoint of version 1 is one file. Version 2 has an .index file, and .data files with the values
of the tensors. Version 1's file and the .index are tables of sorted keys and values, in LevelDB's
format (leveldb/doc/table_format.md); the values are messages (tensorflow/core/protobuf/
saved_tensor_slice.proto and tensor_bundle.proto).
"""

import os
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from gnet_jax.convert.wire import TENSOR_SHAPE, message_class, to_array
from gnet_jax.data.sources.tfds import checksum
from gnet_jax.model_folder.folder import WeightsError

_MAGIC = bytes.fromhex("57fb808b247547db")  # ends every table
_FOOTER = 48  # bytes
_FLOAT = 1  # the number of the type float32
_MESSAGES = TENSOR_SHAPE | {
    # Version 1: the value of the key "" has `meta`; all others have `data`.
    "TensorMeta": {"name": (1, "bytes"), "shape": (2, "Shape"), "type": (3, "int32")},
    "Meta": {"tensor": (1, "TensorMeta[]")},
    "Values": {"float_val": (5, "float[]")},
    "Data": {"name": (1, "bytes"), "values": (3, "Values")},
    "SavedTensorSlices": {"meta": (1, "Meta"), "data": (2, "Data")},
    # Version 2: the value of the key "" is a BundleHeader.
    "BundleHeader": {"num_shards": (1, "int32")},
    "BundleEntry": {
        "dtype": (1, "int32"),
        "shape": (2, "Shape"),
        "shard_id": (3, "int32"),
        "offset": (4, "int64"),
        "size": (5, "int64"),  # in bytes
        "crc32c": (6, "fixed32"),
        "slices": (7, "bytes[]"),
    },
}

_Tensor = tuple[str, Any, Any]  # name, dimensions, values


def find_index(path: Path) -> Path:
    """Returns the .index file if `path` is a checkpoint's prefix or .data file, else `path`."""
    prefix = re.sub(r"\.data-[0-9]{5}-of-[0-9]{5}$", "", path.name)
    index = path.with_name(prefix + ".index")
    part = prefix != path.name or not path.exists()
    return index if part and index.is_file() else path


def is_checkpoint(file: Path) -> bool:
    """Returns whether the file is a TensorFlow checkpoint: a V1 file or the .index file of V2."""
    with file.open("rb") as opened:
        opened.seek(max(0, opened.seek(0, os.SEEK_END) - len(_MAGIC)))
        return opened.read() == _MAGIC


def read_checkpoint(file: Path) -> dict[str, np.ndarray]:
    """Returns the float32 tensors of a checkpoint by name; `is_checkpoint(file)` must be true.

    Verifies the checksums. Raises WeightsError if the checkpoint is corrupt, or if it has
    compressed blocks or a partitioned variable.
    """
    tensors = {}
    try:
        entries = dict(_read_table(file))
        if b"" not in entries:
            raise LookupError("the header is missing")
        found = _version_1(entries) or _version_2(entries, file)
        for name, dims, values in found:
            shape = tuple(dim.size for dim in dims)
            tensors[name] = to_array(b"", values, shape, f"{file}: {name}")
    except OSError as error:
        raise WeightsError(f"cannot read {error.filename or file}: {error.strerror}") from error
    except (LookupError, struct.error, DecodeError) as error:
        raise WeightsError(f"{file} or one of its .data files is corrupt: {error}") from error
    return tensors


def _version_1(entries: Mapping[bytes, bytes]) -> list[_Tensor]:
    """Returns (name, dimensions, values) for each float32 tensor, or [] for a version 2 file."""
    saved = message_class(_MESSAGES, "SavedTensorSlices")
    metas = saved.FromString(entries[b""]).meta.tensor
    dims = {meta.name: meta.shape.dim for meta in metas if meta.type == _FLOAT}
    found = []
    for data in [saved.FromString(value).data for value in entries.values() if metas]:
        if data.name in dims:
            name = data.name.decode(errors="replace")
            found.append((name, dims[data.name], data.values.float_val))
    return found


def _version_2(entries: Mapping[bytes, bytes], file: Path) -> Iterator[_Tensor]:
    """Yields (name, dimensions, values) for each float32 tensor of a version 2 checkpoint."""
    shards = message_class(_MESSAGES, "BundleHeader").FromString(entries[b""]).num_shards
    entry_class = message_class(_MESSAGES, "BundleEntry")
    for key, value in entries.items():
        entry = entry_class.FromString(value) if key else entry_class()
        if entry.dtype == _FLOAT:
            name = key.decode(errors="replace")
            if entry.slices:
                raise WeightsError(f"{file}: {name} is partitioned; save it as one variable")
            shard = file.with_suffix(f".data-{entry.shard_id:05d}-of-{shards:05d}")
            values = np.fromfile(shard, "<f4", entry.size // 4, offset=entry.offset)
            if checksum(values.tobytes()) != entry.crc32c:
                raise LookupError(f"the checksum of {name} in {shard.name} is wrong")
            yield name, entry.shape.dim, values


def _read_table(file: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys and values of a table."""
    data = file.read_bytes()
    footer = data[-_FOOTER:]
    _, at = _handle(footer, 0)  # of the metaindex, which has filters
    for _, handle in _block(data, _handle(footer, at)[0], file):
        yield from _block(data, _handle(handle, 0)[0], file)


def _block(data: bytes, span: tuple[int, int], file: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys and values of one block. A key begins with a part of the key before it."""
    start, end = span
    (expected,) = struct.unpack_from("<I", data, end + 1)
    if checksum(data[start : end + 1]) != expected:
        raise LookupError(f"the checksum of the block at byte {start} is wrong")
    if data[end]:  # the compression: 0 for none
        raise WeightsError(
            f"{file} has compressed blocks, which cannot be read; save it again with TensorFlow"
        )
    (restarts,) = struct.unpack_from("<I", data, end - 4)
    at, end, key = start, end - 4 - 4 * restarts, b""
    while at < end:
        shared, at = _varint(data, at)
        unshared, at = _varint(data, at)
        length, at = _varint(data, at)
        key = key[:shared] + data[at : at + unshared]
        at += unshared + length
        yield key, data[at - length : at]


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Returns the start and the end of the block in the handle at `at`, and the handle's end."""
    start, at = _varint(data, at)
    size, at = _varint(data, at)
    return (start, start + size), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns the number at `at`, of 7 bits a byte, and the index of the byte after it."""
    value, shift = data[at] & 127, 7
    while data[at] > 127:
        at += 1
        value |= (data[at] & 127) << shift
        shift += 7
    return value, at + 1
