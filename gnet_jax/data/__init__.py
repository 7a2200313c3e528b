"""Bytes to batches: sources, decoding, order, and what the compiled step does to the pixels."""

from gnet_jax.data.augment import augment, preprocess
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
    "augment",
    "batch_indices",
    "cropper",
    "eval_batches",
    "open_source",
    "order_fingerprint",
    "preprocess",
    "split_count",
    "train_batches",
]
