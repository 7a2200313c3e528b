"""Where examples come from, behind one interface."""

import os
import re

from gnet_jax.config.paths import typed_path
from gnet_jax.config.recipes import load_recipe, recipe_names
from gnet_jax.data.sources.digits import DigitsSource
from gnet_jax.data.sources.folder import FolderSource
from gnet_jax.data.sources.npz import SPLITS, NpzSource
from gnet_jax.data.sources.source import (
    DataError,
    Example,
    MissingSplitError,
    Source,
    Split,
    SubsetSource,
)
from gnet_jax.data.sources.tfds import TfdsSource

__all__ = [
    "DataError",
    "DigitsSource",
    "Example",
    "FolderSource",
    "MissingSplitError",
    "NpzSource",
    "Source",
    "Split",
    "SubsetSource",
    "TfdsSource",
    "open_source",
    "split_count",
]


def open_source(spec: str, split: Split) -> Source:
    """The source that `spec` names: "digits", "folder:PATH", "npz:PATH" or "tfds:NAME".

    The path of a folder, or one that ends in .npz, will do without its kind. "#N" after any of
    them takes N images of the split, evenly spaced (all, where there are fewer). A path that exists
    wins: "#N" belongs to the name of a folder or file that is called so.

    Raises:
        MissingSplitError: if the data have other splits only.
        DataError: for an unknown kind, or data that is missing or unfit.
    """
    whole, count = split_count(spec)
    if count is not None:
        return SubsetSource(open_source(whole, split), count)
    kind, _, where = spec.partition(":")
    if kind == "digits" and not where:
        return DigitsSource(split)
    if kind == "folder" and where:
        return FolderSource(typed_path(where), split)
    if kind == "npz" and where:
        return NpzSource(where, split)
    if kind == "tfds" and where:
        return TfdsSource(where, split)
    if spec and os.path.isdir(typed_path(spec)):
        return FolderSource(typed_path(spec), split)
    if spec.lower().endswith(".npz"):
        return NpzSource(spec, split)
    known = "digits, folder:PATH, npz:PATH, tfds:NAME"
    if spec in recipe_names():
        known += f" (the recipe {spec} reads {load_recipe(spec)[0].data.source})"
    raise DataError(f"data source {spec!r} is none of: {known}")


def split_count(spec: str) -> tuple[str, int | None]:
    """Returns the source that `spec` names, and the N of its "#N", or None if it has none.

    The "#N" of "folder:set#2" is a part of the name if there is a folder set#2.
    """
    parts = re.fullmatch(r"(.+)#([0-9]+)", spec, re.DOTALL)  # a name may hold a newline
    if parts is None:
        return spec, None
    kind, colon, where = spec.partition(":")
    path = where if colon and kind in ("folder", "npz") else spec
    files = [path.replace("{split}", name) for names in SPLITS.values() for name in names]
    arrays = kind == "npz" and any(os.path.isfile(typed_path(file)) for file in files)
    if arrays or os.path.isdir(typed_path(path)):
        return spec, None
    return parts[1], int(parts[2])
