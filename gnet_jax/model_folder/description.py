"""All of a model but its variables, as JSON."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

import gnet_jax
from gnet_jax.config import ConfigError, Preprocessing, check_preprocessing
from gnet_jax.model import Architecture, GoogLeNet
from gnet_jax.model.ops import FAST, PLAIN
from gnet_jax.model_folder.schema import SchemaError, from_json, to_json

# Fields that files of older versions lack; their networks have the default.
ADDED_LATER = ("stem_padding",)


class Description(NamedTuple):
    """What using a model requires besides its variables."""

    model: GoogLeNet
    preprocessing: Preprocessing
    class_names: tuple[str, ...]  # one for each output; they need not differ
    source: Mapping[str, str]  # file, format, sha256, and notes on where the weights came from


def write_description(description: Description) -> dict[str, Any]:
    """Returns `description` as JSON, with the version that wrote it.

    Raises:
        ConfigError: for a network of another class, or with other operations, because its
            architecture does not describe it.
    """
    model, preprocessing, class_names, source = description
    if type(model) is not GoogLeNet or model.ops not in (FAST, PLAIN):
        own = " with operations of its own" if type(model) is GoogLeNet else ""
        raise ConfigError(
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


def read_description(value: Any) -> Description:
    """Returns the description that `write_description` wrote as `value`.

    Raises:
        SchemaError, ConfigError: naming the first field that cannot be used.
        KeyError, TypeError, AttributeError: for a missing field, or one of another type.
    """
    for part, kind in (("architecture", Architecture), ("preprocessing", Preprocessing)):
        _refuse_missing(kind, value[part], part)
    arch = from_json(Architecture, value["architecture"], "architecture")
    preprocessing = from_json(Preprocessing, value["preprocessing"], "preprocessing")
    check_preprocessing(preprocessing, "preprocessing")
    labels, dtype = value["id2label"], value["dtype"]
    names = tuple(str(labels[str(i)]) for i in range(len(labels)))
    if dtype not in ("float32", "bfloat16"):
        raise SchemaError(f"dtype is {dtype!r}; it must be float32 or bfloat16")
    source = {str(name): str(each) for name, each in value["source"].items()}
    return Description(GoogLeNet(arch, dtype=jnp.dtype(dtype)), preprocessing, names, source)


def _refuse_missing(kind: Any, value: Any, where: str) -> None:
    """A default in place of a field that is missing could be wrong, and nothing would show it."""
    names = [field.name for field in dataclasses.fields(kind) if field.name not in ADDED_LATER]
    missing = [name for name in names if isinstance(value, dict) and name not in value]
    if missing:
        raise SchemaError(f"{where}.{missing[0]} is missing")
