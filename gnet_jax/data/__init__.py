"""Bytes to batches: sources, decoding, order, and what the compiled step does to the pixels.

The names below are imported when they are first used, so that one part of this package does not
import the others.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gnet_jax.data.augment import preprocess
    from gnet_jax.data.bad_images import BadRecord, BadRecords
    from gnet_jax.data.batches import (
        Batch,
        batch_indices,
        cropper,
        eval_batches,
        order_fingerprint,
        train_batches,
    )
    from gnet_jax.data.sources import DataError, Example, Source, open_source, split_count

__all__ = [
    "BadRecord",
    "BadRecords",
    "Batch",
    "DataError",
    "Example",
    "Source",
    "batch_indices",
    "cropper",
    "eval_batches",
    "open_source",
    "order_fingerprint",
    "preprocess",
    "split_count",
    "train_batches",
]

_SOURCES = ("DataError", "Example", "Source", "open_source", "split_count")
_MODULES = dict.fromkeys(_SOURCES, "sources") | {
    "preprocess": "augment",
    "BadRecord": "bad_images",
    "BadRecords": "bad_images",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'batches')}"), name)
