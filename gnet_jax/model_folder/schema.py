"""Frozen dataclasses from JSON, with every name, type and choice checked."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class SchemaError(ValueError):
    """A JSON value that does not fit; the message names its place."""


def from_json(kind: type[T], value: Any, where: str = "") -> T:
    """`value`, as `json.loads` gave it, as a `kind`.

    Args:
        kind: a dataclass or named tuple, or any type that their fields use: Literal, unions,
            tuples, mappings by str, and the plain types. A field that is absent keeps its default,
            so files of an older version can be read; an unknown one is refused.
        value: objects, lists, strings and numbers.
        where: the value's place, for the message.

    Raises:
        SchemaError: naming the place, what is there and what may be there.
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
        raise SchemaError(f"{prefix}{unknown[0]} is no field of {kind.__name__}")
    fields = {name: from_json(hints[name], v, f"{prefix}{name}") for name, v in value.items()}
    try:
        return kind(**fields)
    except TypeError as error:  # a named tuple without one of its fields
        raise SchemaError(f"{where}: {error}") from error


def to_json(value: Any) -> Any:
    """What `from_json` reads back: dataclasses and named tuples as objects by field name."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return to_json(value._asdict())
    if isinstance(value, Mapping):
        return {name: to_json(v) for name, v in value.items()}
    if isinstance(value, tuple):
        return [to_json(v) for v in value]
    return value
