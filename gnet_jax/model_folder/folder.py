"""The model folder in which a trained model is stored. It contains:

model.safetensors   all variables by path: "params/conv1/conv/kernel", "batch_stats/..."
config.json         architecture, dtype, preprocessing, class names, origin of the weights, and the
                    sha256 of model.safetensors
README.md           a model card with an example
"""

import dataclasses
import hashlib
import json
import os
import sys
import tempfile
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
from flax import traverse_util
from safetensors.numpy import save

import gnet_jax
from gnet_jax.config import Preprocessing, UserError, check_preprocessing, json_text
from gnet_jax.config.bucket import Place
from gnet_jax.config.paths import typed_path
from gnet_jax.model import custom
from gnet_jax.model.architecture import Architecture
from gnet_jax.model.googlenet import GoogLeNet, abstract_variables
from gnet_jax.model_folder.trained import TrainedModel
from gnet_jax.ops.fast import FAST
from gnet_jax.ops.reference import REFERENCE

T = TypeVar("T")

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"

_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16}
_DTYPES = {**_FLOATS, "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}
# Fields that files of older versions lack. They are read with the default values.
ADDED_LATER = ("stem_padding", "block", "lrn")


class WeightsError(UserError):
    """A weights file is missing or corrupt, or does not match the network."""


def write_folder(path: str | Path, folder: TrainedModel) -> None:
    """Write a model folder atomically.

    If the process is killed, `path` is the old folder, the new folder, or missing. An existing
    model folder is replaced if it contains no other files. Raises WeightsError if `path` contains
    anything else, is the working directory or cannot be written, or if `check_folder` or
    `config_of` raises it.
    """
    from gnet_jax.model_folder.card import model_card

    path = typed_path(path).resolve()
    _refuse_to_overwrite(path)
    flat = flatten(folder.variables)
    check_folder(folder, f"the model for {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".model-", dir=path.parent, ignore_cleanup_errors=True
        ) as partial:
            new, old = Path(partial, "new"), Path(partial, "old")
            new.mkdir()
            write_tensors(new / WEIGHTS_FILE, flat, {"format": "gnet_jax"})
            config = config_of(folder) | {"weights_sha256": _sha256(new / WEIGHTS_FILE)}
            texts = {
                CONFIG_FILE: json_text(config, indent=2, ensure_ascii=False) + "\n",
                CARD_FILE: model_card(config, flat, path.name),
            }
            for name, text in texts.items():
                # File names may contain bytes that are not UTF-8. `json.loads` reads the escapes.
                (new / name).write_text(text, "utf-8", errors="backslashreplace")
            try:
                if path.exists():
                    path.rename(old)
                new.rename(path)
            except BaseException:  # also Ctrl-C, even if the rename was done
                if old.exists() and not path.exists():
                    old.rename(path)
                raise
    except OSError as error:
        raise WeightsError(f"cannot write {path}: {error.strerror}") from error


def _refuse_to_overwrite(path: Path) -> None:
    found, config = set(), {}
    try:
        found = {each.name for each in path.iterdir()} if path.exists() else found
        if CONFIG_FILE in found:
            config = json.loads((path / CONFIG_FILE).read_text("utf-8-sig"))
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error
    except ValueError:
        pass  # a folder with a corrupt config.json is not a model folder
    if isinstance(config, dict) and "gnet_jax" in config:
        found -= {WEIGHTS_FILE, CONFIG_FILE, CARD_FILE}
    if found:
        raise WeightsError(f"{path} is not a model folder: replacing it would delete {min(found)}")
    if path.exists() and path.samefile(os.curdir):  # a shell in it would have no folder
        raise WeightsError(f"{path} is the working directory; give the path of another folder")


def is_model_folder(path: Place) -> bool:
    """Returns whether `path` is a folder with the two files that a model folder needs."""
    return (path / WEIGHTS_FILE).is_file() and (path / CONFIG_FILE).is_file()


def read_folder(path: str | Path) -> TrainedModel:
    """Returns the model in the model folder `path`.

    Verifies the sha256 of the weights and the names and shapes of all tensors. Raises WeightsError
    if the folder is missing or corrupt, or if its weights do not match its architecture.
    """
    path = typed_path(path)
    if not is_model_folder(path):
        raise WeightsError(f"{path} is not a folder with {WEIGHTS_FILE} and {CONFIG_FILE}")
    weights, file = path / WEIGHTS_FILE, path / CONFIG_FILE
    tensors, _ = read_tensors(weights)
    try:
        config = json.loads(file.read_text("utf-8-sig"))  # some editors add a byte-order mark
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} is corrupt: {error}") from error
    if isinstance(config, dict) and "gnet_jax" not in config:
        raise WeightsError(f"{path} is a model of another library; gnet_jax did not write it")
    folder = folder_of(config, tensors, path)
    sha256 = _sha256(weights)
    if config.get("weights_sha256", sha256) != sha256:
        raise WeightsError(f"{weights} is corrupt: its sha256 is not that in {CONFIG_FILE}")
    return folder


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def check_folder(folder: TrainedModel, where: str) -> None:
    """Raises WeightsError if the class names or variables do not match the model.

    The names and shapes of the variables must be those of the network, and all values must be
    finite. (The shapes of fully connected layers depend on the image size.) The message names
    `where`, a file or folder, and the first problem.
    """
    classes = folder.model.arch.num_classes
    if classes < 2:
        raise WeightsError(f"{where} has {classes} output; a softmax needs at least 2")
    if len(folder.class_names) != classes:
        raise WeightsError(f"{where} has {len(folder.class_names)} names for {classes} classes")
    try:
        expected = expected_shapes(folder.model, folder.preprocessing.image_size)
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise WeightsError(f"{where} describes a network that cannot be built: {error}") from error
    flat = flatten(folder.variables)
    for name in sorted(expected.keys() | flat.keys()):
        found = flat[name].shape if name in flat else "absent"
        wanted = expected.get(name, "absent")
        if found != wanted:
            raise WeightsError(
                f"{where} does not match its architecture: {name} is {found} instead of {wanted}"
            )
        if not np.isfinite(flat[name]).all():
            raise WeightsError(f"{where}: {name} has values that are not finite")


# Variables as a tree, as a dict by path, and in a safetensors file.


def flatten(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns all variables in float32 by path, such as "params/inception_3a/b1/conv/kernel"."""
    leaves = traverse_util.flatten_dict(dict(variables), sep="/").items()
    return {name: np.asarray(value, np.float32) for name, value in leaves}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tree `{"params": ..., "batch_stats": ...}` of the variables `flat`."""
    return {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(dict(flat), sep="/")


def expected_shapes(model: GoogLeNet, image_size: int) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every variable by path. Raises ValueError if the image is too small."""
    shapes: Any = traverse_util.flatten_dict(abstract_variables(model, image_size), sep="/")
    return {name: value.shape for name, value in shapes.items()}


def is_safetensors(head: bytes) -> bool:
    """Returns whether a file that begins with `head` looks like a safetensors file."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the arrays of a safetensors file by name, and its metadata.

    Floating-point arrays are converted to float32. Raises WeightsError if the file is missing, is
    corrupt, or is not a safetensors file.
    """
    try:
        data = path.read_bytes()
        entries = safetensors.deserialize(data)  # `safe_open` reads no bfloat16 without torch
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} is not a complete safetensors file: {error}") from error
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise WeightsError(f"{path}: {name} has the unknown type {entry['dtype']}")
        array = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = array.astype(np.float32) if entry["dtype"] in _FLOATS else array
    length = int.from_bytes(data[:8], "little")
    return tensors, json.loads(data[8 : 8 + length]).get("__metadata__", {})


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: dict[str, str]) -> None:
    """Write `tensors` by name to a safetensors file, with `metadata` in its header."""
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    path.write_bytes(save(contiguous, metadata))


# The content of config.json: everything about a model except its variables.


def from_json(kind: type[T], value: Any, where: str = "") -> T:
    """Convert `value`, a result of `json.loads`, to the type `kind`.

    `kind` is a dataclass, a named tuple, or the type of one of their fields. Missing fields have
    their defaults. Raises UserError for an unknown field or a wrong type. `where` is the
    name of the value in the message.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
        if not isinstance(value, dict):
            raise UserError(f"{where or 'the file'} is {value!r}; it must be an object")
        hints, prefix = typing.get_type_hints(kind), f"{where}." if where else ""
        if unknown := sorted(value.keys() - hints.keys()):
            raise UserError(f"{prefix}{unknown[0]} is not a field of {kind.__name__}")
        fields = {name: from_json(hints[name], v, f"{prefix}{name}") for name, v in value.items()}
        try:
            return kind(**fields)
        except TypeError as error:  # a field of a named tuple is missing
            raise UserError(f"{where}: {error}") from error
    if origin is Literal and value in args:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None  # type: ignore[return-value]
        return from_json(next(arg for arg in args if arg is not type(None)), value, where)
    if origin is tuple and isinstance(value, list):
        items = [args[0]] * len(value) if args[1:] == (Ellipsis,) else args
        if len(items) == len(value):
            pairs = enumerate(zip(items, value, strict=True))
            return tuple(from_json(item, v, f"{where}[{i}]") for i, (item, v) in pairs)  # type: ignore[return-value]
    if origin is Mapping and isinstance(value, dict):
        return {name: from_json(args[1], v, f"{where}.{name}") for name, v in value.items()}  # type: ignore[return-value]
    if kind is float and type(value) is int:
        return float(value)  # type: ignore[return-value]
    if kind in (int, float, str, bool) and type(value) is kind:
        return value
    wanted = kind.__name__ if isinstance(kind, type) and not args else str(kind)
    raise UserError(f"{where} is {value!r}; it must be {wanted.removeprefix('typing.')}")


def to_json(value: Any) -> Any:
    """Convert `value` to values that `json.dumps` supports and that `from_json` converts back."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return to_json(value._asdict())
    if isinstance(value, Mapping):
        return {name: to_json(v) for name, v in value.items()}
    if isinstance(value, tuple):
        return [to_json(v) for v in value]
    return value


def config_of(folder: TrainedModel) -> dict[str, Any]:
    """Returns the content of config.json, except the sha256 of the weights.

    It has the version of gnet_jax and everything about the model except its variables. Raises
    WeightsError if another process could not rebuild the network: if it is not of class GoogLeNet,
    has custom `ops`, or has a block or norm that is not defined in a file.
    """
    model = folder.model
    if type(model) is not GoogLeNet or model.ops not in (FAST, REFERENCE):
        raise WeightsError(f"cannot save this {type(model).__name__}: it has custom code or ops")
    for part in model.arch.own_parts:
        if not custom.is_portable(part):
            own_part = part.removeprefix("<process>:")
            raise WeightsError(f"no other process can load {own_part}; define it in a file")
    config = {
        "gnet_jax": gnet_jax.__version__,
        "architecture": to_json(model.arch),
        "dtype": jnp.dtype(model.dtype).name,
        "num_classes": model.arch.num_classes,
        "preprocessing": to_json(folder.preprocessing),
        "source": dict(folder.source),
        "id2label": {str(i): name for i, name in enumerate(folder.class_names)},
    }
    if model.arch.own_parts:
        config["own_code"] = {part: custom.digest(part) for part in model.arch.own_parts}
    return config


class _Fields(NamedTuple):
    """The fields that `config_of` always writes, except the version."""

    architecture: Architecture
    dtype: Literal["float32", "bfloat16"]
    num_classes: int
    preprocessing: Preprocessing
    source: Mapping[str, str]
    id2label: Mapping[str, str]


def folder_of(config: Any, tensors: dict[str, Any], where: str | Path) -> TrainedModel:
    """Returns the model that `config` describes; `tensors` are its variables by path.

    `config` is a result of `config_of`; additional fields are ignored. Raises WeightsError if a
    field is missing or invalid, or if the variables do not match. The message names `where`, the
    file or folder, and the first problem.
    """
    try:
        found = _read_config(config)
    except UserError as error:
        raise WeightsError(f"the config of {where} is invalid: {error}") from error
    model = GoogLeNet(found.architecture, dtype=jnp.dtype(found.dtype))
    names = tuple(found.id2label[str(i)] for i in range(len(found.id2label)))
    folder = TrainedModel(model, unflatten(tensors), found.preprocessing, names, dict(found.source))
    check_folder(folder, str(where))
    return folder


def _read_config(config: Any) -> _Fields:
    if not isinstance(config, dict):
        raise UserError(f"it is of type {type(config).__name__}; it must be an object")
    kinds = {"": _Fields, "architecture": Architecture, "preprocessing": Preprocessing}
    for part, kind in kinds.items():
        value = config[part] if part else config
        # Refuse missing fields, because a default could be wrong without being noticed.
        for name in typing.get_type_hints(kind):
            if isinstance(value, dict) and name not in value and name not in ADDED_LATER:
                raise UserError(f"{f'{part}.{name}'.lstrip('.')} is missing")
    found = from_json(_Fields, {name: config[name] for name in _Fields._fields})
    arch, labels = found.architecture, found.id2label
    for part in arch.own_parts:
        if custom.digest(part) != config.get("own_code", {}).get(part):
            name = part.rpartition(":")[0]
            warning = f"warning: {name} is not the file with which the model was saved"
            print(f"{warning}; if its code differs, the results may be wrong", file=sys.stderr)
        custom.load(part)
    if found.num_classes != arch.num_classes:
        raise UserError(
            f"num_classes is {found.num_classes}, but {arch.num_classes} in the architecture"
        )
    if missing := [i for i in range(len(labels)) if str(i) not in labels]:
        raise UserError(f"id2label.{missing[0]} is missing; the keys must be 0, 1, ...")
    check_preprocessing(found.preprocessing, "preprocessing")
    return found
