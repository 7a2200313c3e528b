"""Files of torch that tests write without torch: nested checkpoints with tensors of any dtype."""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_KINDS = {
    np.dtype("<f4"): "FloatStorage",
    np.dtype("<f8"): "DoubleStorage",
    np.dtype("<f2"): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype("<i8"): "LongStorage",
    np.dtype("u1"): "ByteStorage",
}


class Named(NamedTuple):
    """An object of another program, pickled as a call of `module.name(*arguments)`."""

    module: str
    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None


class _Name(NamedTuple):
    module: str
    name: str

    def __call__(self) -> None: ...  # a pickler insists that it can be called


class _Storage(NamedTuple):
    kind: str
    key: str
    size: int


class _Pickler(pickle._Pickler):  # type: ignore[attr-defined,name-defined]
    """Pickles arrays as torch does its tensors, and their bytes into `storages`."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, 2)
        self.storages: list[bytes] = []

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _Storage):
            return ("storage", _Name("torch", obj.kind), obj.key, "cpu", obj.size)
        return None

    def _array(self, array: np.ndarray) -> None:
        strides = tuple(stride // array.itemsize for stride in array.strides)
        storage = _Storage(_KINDS[array.dtype], str(len(self.storages)), array.size)
        self.storages.append(array.ravel(order="K").tobytes())
        arguments = (storage, 0, array.shape, strides, False, OrderedDict())
        self.save_reduce(_Name("torch._utils", "_rebuild_tensor_v2"), arguments, obj=array)

    def _name(self, name: _Name) -> None:
        self.write(f"c{name.module}\n{name.name}\n".encode())

    def _named(self, value: Named) -> None:
        name = _Name(value.module, value.name)
        self.save_reduce(name, value.arguments, value.state, obj=value)

    dispatch = pickle._Pickler.dispatch | {  # type: ignore[attr-defined]
        np.ndarray: _array,
        _Name: _name,
        Named: _named,
    }


def save(value: Any, path: Path) -> None:
    """As `torch.save(value, path)`, with arrays in the place of tensors; strides are kept."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
        for key, data in enumerate(pickler.storages):
            archive.writestr(f"archive/data/{key}", data)
