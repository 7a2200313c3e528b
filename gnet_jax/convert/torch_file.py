"""Reads and writes torch's files of tensors without torch. Reading does not execute their content.

A .pth file is a pickle, and a pickle is a program that can call any function. This reader allows
only the names that tensors, dicts and plain data need. If a file uses any other name, it is
rejected before anything is called.
"""

import functools
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from gnet_jax.model_folder.folder import WeightsError

_KINDS = {"Float": "<f4", "Double": "<f8", "Half": "<f2", "BFloat16": ml_dtypes.bfloat16}
_KINDS |= {"Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "<i1", "Byte": "<u1", "Bool": "?"}
_STORAGES = {f"{kind}Storage": np.dtype(code) for kind, code in _KINDS.items()}
_LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # torch before 1.6
_ZIP_MAGIC = b"PK\x03\x04"
_DTYPES = ("float16", "float32", "float64", "bfloat16", "int32", "int64", "uint8", "bool")
_PLAIN = {"set", "frozenset", "complex", "bytearray", "list", "dict", "int", "float"}
# By module, the names of types of plain data in checkpoints (options, paths). It is ignored.
_SKIPPED_NAMES = {
    "argparse": {"Namespace"},
    "collections": {"Counter"},
    "builtins": _PLAIN,
    "__builtin__": _PLAIN,  # the module's name in Python 2's pickles
    "_codecs": {"encode"},  # for the bytes of NumPy scalars
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"scalar", "_reconstruct"},
    "numpy._core.multiarray": {"scalar", "_reconstruct"},
    "pathlib": {"Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
    "datetime": {"datetime", "timedelta"},
    "torch": {"Size", "device", "strided", *_DTYPES},
    "torch.serialization": {"_get_layout"},
}


class _Storage(NamedTuple):
    kind: str  # a key of _STORAGES
    key: str
    size: int  # elements


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Ignored:
    """Stands for an object of `_SKIPPED_NAMES`; discards all that the pickle adds to it."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    __setitem__ = __setstate__ = extend = append = __init__


class _Unpickler(pickle.Unpickler):
    """Loads strings, numbers, dicts and `_Tensor`s; ignores `_SKIPPED_NAMES`; rejects the rest."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return name
        if name in _SKIPPED_NAMES.get(module, ()) or name == "AttributeDict":  # Lightning's
            return _Ignored
        # These are bound methods, because a pickle cannot set attributes on them.
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("collections", "defaultdict"): self._dict,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): self._parameter,
        }
        if (module, name) in known:
            return known[module, name]
        raise WeightsError(
            f"refers to {module}.{name}, which is not a tensor; nothing was executed. Save only "
            "the weights: torch.save(model.state_dict(), PATH)"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", str(kind), str(key), _, int(size), *views) if kind in _STORAGES:
                if not any(views):
                    return self.storages.setdefault(key, _Storage(kind, key, size))
        raise WeightsError(f"refers to {str(pid)[:80]}, which is not a tensor's storage")

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in numbers):
            raise WeightsError("has a tensor whose storage, offset, shape or strides are invalid")
        return _Tensor(storage, offset, tuple(shape), tuple(strides))

    def _parameter(self, tensor: Any, *_: Any) -> Any:
        return tensor

    def _dict(self, *_: Any) -> dict[Any, Any]:
        return {}


def is_torch_file(head: bytes) -> bool:
    """Returns whether a file that begins with `head` has one of torch's two formats."""
    return head.startswith((_LEGACY_MAGIC, _ZIP_MAGIC))


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Returns all tensors of the file by name; floats are converted to float32.

    Keys of nested dicts are joined by slashes: "state_dict/conv1.conv.weight". Raises WeightsError
    if the file contains no tensor, is corrupt, or refers to anything except tensors and plain data.
    """
    try:
        with path.open("rb") as file:
            read = _read_zip if file.read(4) == _ZIP_MAGIC else _read_legacy
            file.seek(0)
            value, storage_bytes = read(file)
            found = _find_tensors(value)
            if not found:
                raise WeightsError("contains no state dict; save model.state_dict()")
            stored = sum({t.storage.key: t.storage.size for t in found.values()}.values())
            used = sum(math.prod(t.shape) for t in found.values())
            if used > 8 * stored:  # otherwise, a small file could fill the memory
                raise WeightsError(f"has tensors with {used} numbers, but stores only {stored}")
            storage_bytes = functools.lru_cache(1)(storage_bytes)  # tensors may share a storage
            return {name: _array(t, storage_bytes(t.storage)) for name, t in found.items()}
    except WeightsError as error:
        raise WeightsError(f"{path} {error}") from error
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a corrupt pickle can raise anything
        raise WeightsError(f"{path} is corrupt or cut short; copy or download it again") from error


def _read_zip(file: BinaryIO) -> tuple[Any, Callable[[_Storage], bytes]]:
    archive = zipfile.ZipFile(file)
    members = {info.filename: info for info in archive.infolist()}
    roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise WeightsError("is a zip archive, but not one of torch's: it has no data.pkl")
    (root,) = roots
    data = members[f"{root}data.pkl"]

    def storage_bytes(storage: _Storage) -> bytes:
        info = members.get(f"{root}data/{storage.key}")
        if info is None or info.compress_type != zipfile.ZIP_STORED:
            raise WeightsError(f"has no uncompressed data for storage {storage.key}")
        return archive.read(info)

    with archive.open(data) as stream:
        return _Unpickler(stream).load(), storage_bytes


def _read_legacy(file: BinaryIO) -> tuple[Any, Callable[[_Storage], bytes]]:
    """Read five pickles (magic, version, machine, state dict, storage keys) and the storages."""
    if file.read(len(_LEGACY_MAGIC)) != _LEGACY_MAGIC:
        raise WeightsError("is a pickle, but not one of torch's")
    version, machine = _Unpickler(file).load(), _Unpickler(file).load()
    if version != 1001 or not machine.get("little_endian"):
        raise WeightsError(f"has version {version} or big-endian data; needs 1001, little-endian")
    unpickler = _Unpickler(file)
    value, keys = unpickler.load(), _Unpickler(file).load()
    data = {}
    for key in keys:
        (size,) = struct.unpack("<q", file.read(8))
        storage = unpickler.storages[key]
        if size != storage.size:
            raise WeightsError(f"has a storage of {size} elements instead of {storage.size}")
        data[key] = file.read(size * _STORAGES[storage.kind].itemsize)
    return value, lambda storage: data[storage.key]


def _find_tensors(value: Any) -> dict[str, _Tensor]:
    """Returns all tensors in nested dicts and lists by name. Each container is visited once."""
    found: dict[str, _Tensor] = {}
    seen: set[int] = set()
    waiting = [("", value)]
    for path, container in waiting:  # the loop appends to `waiting`
        if id(container) in seen or not isinstance(container, dict | list | tuple):
            continue
        seen.add(id(container))
        entries = container.items() if isinstance(container, dict) else enumerate(container)
        for key, child in entries:
            if isinstance(child, _Tensor):
                found[f"{path}{key}"] = child
            else:
                waiting.append((f"{path}{key}/", child))
    return found


def _array(tensor: _Tensor, data: bytes) -> np.ndarray:
    dtype = _STORAGES[tensor.storage.kind]
    strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
    # NumPy raises an error if the tensor extends beyond `data`.
    array = np.ndarray(tensor.shape, dtype, data, tensor.offset * dtype.itemsize, strides)
    return array.copy() if dtype.kind in "biu" else array.astype(np.float32)


def write_torch(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write float32 and int64 arrays as a state dict that `torch.load(weights_only=True)` reads."""
    # np.ascontiguousarray would add an axis to 0-dimensional arrays.
    whole = {name: np.array(v, order="C") for name, v in tensors.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", _pickled(whole))
        archive.writestr("archive/byteorder", "little")
        for key, array in enumerate(whole.values()):
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")


def _pickled(tensors: Mapping[str, np.ndarray]) -> bytes:
    # Write opcode by opcode, because the module pickle only writes names that it can import, and
    # torch may not be installed.

    def glob(module: str, name: str) -> bytes:
        return pickle.GLOBAL + f"{module}\n{name}\n".encode()

    def text(value: str) -> bytes:
        return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()

    def number(value: int) -> bytes:
        return pickle.BININT + struct.pack("<i", value)

    def numbers(values: tuple[int, ...]) -> bytes:
        return pickle.MARK + b"".join(map(number, values)) + pickle.TUPLE

    empty = glob("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    kinds = {np.dtype("float32"): "FloatStorage", np.dtype("int64"): "LongStorage"}
    out = [pickle.PROTO, b"\x02", empty, pickle.MARK]
    for key, (name, array) in enumerate(tensors.items()):
        strides = tuple(stride // array.itemsize for stride in array.strides)
        storage = glob("torch", kinds[array.dtype]) + text(str(key)) + text("cpu")
        out += [text(name), glob("torch._utils", "_rebuild_tensor_v2"), pickle.MARK]
        out += [pickle.MARK, text("storage"), storage, number(array.size), pickle.TUPLE]
        out += [pickle.BINPERSID, number(0), numbers(array.shape), numbers(strides)]
        out += [pickle.NEWFALSE, empty, pickle.TUPLE, pickle.REDUCE]
    return b"".join([*out, pickle.SETITEMS, pickle.STOP])
