"""A model without its variables, as JSON: architecture, preprocessing and class names."""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import jax.numpy as jnp

import gnet_jax
from gnet_jax.config import Preprocessing, UserError, check_preprocessing
from gnet_jax.model.architecture import Architecture
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model_folder.variables import WeightsError
from gnet_jax.ops.fast import FAST
from gnet_jax.ops.reference import REFERENCE

T = TypeVar("T")


class SchemaError(UserError):
    """A JSON value that does not fit; the message names the field."""


def from_json(kind: type[T], value: Any, where: str = "") -> T:
    """Returns `value`, as `json.loads` gave it, as a `kind`; a missing field keeps its default.

    Args:
        kind: a dataclass or named tuple, or a type that their fields use: Literal, unions, tuples,
            mappings by str, and the plain types.
        value: objects, lists, strings and numbers.
        where: the name of the field, for the message.

    Raises:
        SchemaError: for an unknown field or a value of another type.
    """
    origin, args = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
        return _object(kind, value, where)
    if origin is Literal and value in args:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None  # type: ignore[return-value]
        return from_json(next(arg for arg in args if arg is not type(None)), value, where)
    if origin is tuple and isinstance(value, list):
        items = [args[0]] * len(value) if args[-1] is Ellipsis else args
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
    raise SchemaError(f"{where} is {value!r}; it must be {wanted.removeprefix('typing.')}")


def _object(kind: Any, value: Any, where: str) -> Any:
    hints = get_type_hints(kind)
    if not isinstance(value, dict):
        raise SchemaError(f"{where or 'the file'} is {value!r}; it must be an object")
    prefix = f"{where}." if where else ""
    unknown = sorted(value.keys() - hints.keys())
    if unknown:
        raise SchemaError(f"{prefix}{unknown[0]} is not a field of {kind.__name__}")
    fields = {name: from_json(hints[name], v, f"{prefix}{name}") for name, v in value.items()}
    try:
        return kind(**fields)
    except TypeError as error:  # a named tuple without one of its fields
        raise SchemaError(f"{where}: {error}") from error


def to_json(value: Any) -> Any:
    """Returns JSON that `from_json` reads: dataclasses and named tuples become objects."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return to_json(value._asdict())
    if isinstance(value, Mapping):
        return {name: to_json(v) for name, v in value.items()}
    if isinstance(value, tuple):
        return [to_json(v) for v in value]
    return value


# Files of older versions lack these fields; their networks have the default.
ADDED_LATER = ("stem_padding", "block")


def write_description(
    model: GoogLeNet,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    source: Mapping[str, str],
) -> dict[str, Any]:
    """Returns what using a model requires besides its variables, as JSON with this version.

    Raises:
        WeightsError: for a network of another class, or with other operations, because its
            architecture does not describe it.
    """
    if type(model) is not GoogLeNet or model.ops not in (FAST, REFERENCE):
        own = " with operations of its own" if type(model) is GoogLeNet else ""
        raise WeightsError(
            f"the network is a {type(model).__name__}{own} and cannot be stored: a stored model "
            "holds what the architecture of a GoogLeNet describes"
        )
    return {
        "gnet_jax": gnet_jax.__version__,
        "architecture": to_json(model.arch),
        "dtype": jnp.dtype(model.dtype).name,
        "num_classes": model.arch.num_classes,
        "preprocessing": to_json(preprocessing),
        "source": dict(source),
        "id2label": {str(i): name for i, name in enumerate(class_names)},
    }


class _Fields(NamedTuple):
    """The fields that `write_description` writes, except the version."""

    architecture: Architecture
    dtype: Literal["float32", "bfloat16"]
    num_classes: int
    preprocessing: Preprocessing
    source: Mapping[str, str]
    id2label: Mapping[str, str]


def read_description(
    value: Any,
) -> tuple[GoogLeNet, Preprocessing, tuple[str, ...], dict[str, str]]:
    """Returns the arguments of the `write_description` that wrote `value`; more fields are allowed.

    Raises:
        UserError: naming the first field that is missing or cannot be used.
    """
    if not isinstance(value, dict):
        raise SchemaError(f"it is {type(value).__name__}; it must be an object")
    _refuse_missing(_Fields, value)
    for part, kind in (("architecture", Architecture), ("preprocessing", Preprocessing)):
        _refuse_missing(kind, value[part], f"{part}.")
    found = from_json(_Fields, {name: value[name] for name in _Fields._fields})
    arch, labels = found.architecture, found.id2label
    if found.num_classes != arch.num_classes:
        raise SchemaError(
            f"num_classes is {found.num_classes}, but architecture.num_classes is "
            f"{arch.num_classes}; they must be the same"
        )
    for index in map(str, range(len(labels))):
        if index not in labels:
            raise SchemaError(
                f"id2label.{index} is missing; its {len(labels)} keys must be 0, 1, ..."
            )
    check_preprocessing(found.preprocessing, "preprocessing")
    names = tuple(labels[str(i)] for i in range(len(labels)))
    model = GoogLeNet(arch, dtype=jnp.dtype(found.dtype))
    return model, found.preprocessing, names, dict(found.source)


def _refuse_missing(kind: type, value: Any, where: str = "") -> None:
    # The default of a missing field could be wrong, and nothing would show it.
    for name in get_type_hints(kind):
        if isinstance(value, dict) and name not in value and name not in ADDED_LATER:
            raise SchemaError(f"{where}{name} is missing")
