"""Where examples come from, behind one interface."""

from pathlib import Path

from gnet_jax.data.sources.digits import DigitsSource
from gnet_jax.data.sources.folder import FolderSource
from gnet_jax.data.sources.source import DataError, Example, Source, Split
from gnet_jax.data.sources.tfds import TfdsSource

__all__ = [
    "DataError",
    "DigitsSource",
    "Example",
    "FolderSource",
    "Source",
    "Split",
    "TfdsSource",
    "open_source",
]


def open_source(spec: str, split: Split) -> Source:
    """The source that `spec` names: "digits", "folder:PATH" (or just the path) or "tfds:NAME".

    Raises:
        DataError: for an unknown kind, or data that is missing or unfit.
    """
    kind, _, where = spec.partition(":")
    if kind == "digits" and not where:
        return DigitsSource(split)
    if kind == "folder" and where:
        return FolderSource(Path(where).expanduser(), split)
    if kind == "tfds" and where:
        return TfdsSource(where, split)
    if spec and Path(spec).expanduser().is_dir():
        return FolderSource(Path(spec).expanduser(), split)
    raise DataError(f"data source {spec!r} is none of: digits, folder:PATH, tfds:NAME")
