"""Where examples come from, behind one interface."""

import re
from pathlib import Path

from gnet_jax.config.recipe import load_recipe, recipe_names
from gnet_jax.data.sources.digits import DigitsSource
from gnet_jax.data.sources.folder import FolderSource
from gnet_jax.data.sources.npz import NpzSource
from gnet_jax.data.sources.source import DataError, Example, MissingSplitError, Source, Split
from gnet_jax.data.sources.subset import SubsetSource
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
]


def open_source(spec: str, split: Split) -> Source:
    """The source that `spec` names: "digits", "folder:PATH", "npz:PATH" or "tfds:NAME".

    The path of a folder, or one that ends in .npz, will do without its kind. "#N" after any of
    them takes N images of the split, evenly spaced (all, where there are fewer).

    Raises:
        MissingSplitError: if the data have other splits only.
        DataError: for an unknown kind, or data that is missing or unfit.
    """
    part = re.fullmatch(r"(.+)#(\d+)", spec)
    if part is not None:
        return SubsetSource(open_source(part[1], split), int(part[2]))
    kind, _, where = spec.partition(":")
    if kind == "digits" and not where:
        return DigitsSource(split)
    if kind == "folder" and where:
        return FolderSource(Path(where).expanduser(), split)
    if kind == "npz" and where:
        return NpzSource(where, split)
    if kind == "tfds" and where:
        return TfdsSource(where, split)
    if spec and Path(spec).expanduser().is_dir():
        return FolderSource(Path(spec).expanduser(), split)
    if spec.endswith(".npz"):
        return NpzSource(spec, split)
    known = "digits, folder:PATH, npz:PATH, tfds:NAME"
    if spec in recipe_names():
        known += f" (the recipe {spec} reads {load_recipe(spec)[0].data.source})"
    raise DataError(f"data source {spec!r} is none of: {known}")
