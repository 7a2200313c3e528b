"""Where examples come from: `open_source` imports only the kind of source that is named."""

import os
import re

from gnet_jax.config.paths import typed_path
from gnet_jax.config.recipes import load_recipe, recipe_names
from gnet_jax.data.sources.source import (
    DataError,
    Example,
    MissingSplitError,
    Source,
    Split,
    SubsetSource,
)

__all__ = [
    "DataError",
    "Example",
    "MissingSplitError",
    "Source",
    "Split",
    "SubsetSource",
    "open_source",
    "split_count",
]


def open_source(spec: str, split: Split) -> Source:
    """Returns the source that `spec` names: "digits", "folder:PATH", "npz:PATH" or "tfds:NAME".

    The kind may be omitted for an existing folder and for a path that ends in .npz. "#N" after
    any of them selects N evenly spaced images of the split, or all if there are fewer.

    Raises:
        MissingSplitError: if the data have only other splits.
        DataError: for an unknown kind, and for missing or invalid data.
    """
    whole, count = split_count(spec)
    if count is not None:
        return SubsetSource(open_source(whole, split), count)
    kind, _, where = spec.partition(":")
    if kind == "digits" and not where:
        from gnet_jax.data.sources.digits import DigitsSource

        return DigitsSource(split)
    if kind == "tfds" and where:
        from gnet_jax.data.sources.tfds import TfdsSource

        return TfdsSource(where, split)
    if kind not in ("folder", "npz") or not where:
        guess = "npz" if spec.lower().endswith(".npz") else ""
        kind, where = "folder" if spec and os.path.isdir(typed_path(spec)) else guess, spec
    if kind == "folder":
        from gnet_jax.data.sources.folder import FolderSource

        return FolderSource(typed_path(where), split)
    if kind == "npz":
        from gnet_jax.data.sources.npz import NpzSource

        return NpzSource(where, split)
    known = "digits, folder:PATH, npz:PATH, tfds:NAME"
    if spec in recipe_names():
        known += f" (the recipe {spec} reads {load_recipe(spec)[0].data.source})"
    raise DataError(f"data source {spec!r} is none of: {known}")


def split_count(spec: str) -> tuple[str, int | None]:
    """Splits "SOURCE#N" into the source and N, which is None if there is no count.

    If a folder or file called "set#2" exists, the "#2" of "folder:set#2" belongs to its name.
    """
    parts = re.fullmatch(r"(.+)#([0-9]+)", spec, re.DOTALL)  # a name may contain a newline
    if parts is None:
        return spec, None
    kind, colon, where = spec.partition(":")
    path = where if colon and kind in ("folder", "npz") else spec
    if os.path.isdir(typed_path(path)):
        return spec, None
    if kind == "npz":
        from gnet_jax.data.sources.npz import SPLITS

        files = [path.replace("{split}", name) for names in SPLITS.values() for name in names]
        if any(os.path.isfile(typed_path(file)) for file in files):
            return spec, None
    return parts[1], int(parts[2])
