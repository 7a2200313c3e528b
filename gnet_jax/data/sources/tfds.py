"""TensorFlow Datasets, read without TensorFlow."""

import itertools
import os
from typing import Any

import numpy as np

from gnet_jax.data.sources.source import DataError, Example, MissingSplitError, Split, digest


class TfdsSource:
    """A prepared TensorFlow Datasets image classification set in array_record files.

    It is read by random access without TensorFlow; images stay encoded. The validation split is
    "validation" where the set has one, otherwise "test".

    Raises:
        DataError: if the set is not prepared, is not classification, or has no such split.
    """

    def __init__(self, name: str, split: Split) -> None:
        import tensorflow_datasets as tfds

        try:
            data_dir = os.environ.get("TFDS_DATA_DIR")  # tfds itself reads it at import alone
            builder: Any = tfds.builder(name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError as error:
            raise DataError(f"tensorflow-datasets knows no data set named {name!r}") from error
        if not builder.is_prepared():
            raise DataError(
                f"{name} is not prepared in {builder.data_dir}; run `tfds build {name} "
                "--file_format=array_record`, or set TFDS_DATA_DIR to where it is"
            )
        splits = sorted(builder.info.splits)
        wanted = ("validation", "test") if split == "val" else (split,)
        chosen = next((s for s in wanted if s in splits), None)
        if chosen is None:
            raise MissingSplitError(f"{name} has no split {' or '.join(wanted)}; it has {splits}")
        self.split = chosen
        features = builder.info.features
        if features is None or not {"image", "label"} <= set(features):
            raise DataError(f"{name} is no image classification set: its features are {features}")
        decoders = {"image": tfds.decode.SkipDecoding()}
        self._examples = builder.as_data_source(split=chosen, decoders=decoders)
        self._info = builder.info.splits[chosen]
        if len(self._examples) != self._info.num_examples:
            raise DataError(
                f"{name}/{chosen} has {len(self._examples)} examples on disk, but its metadata "
                f"say {self._info.num_examples}; prepare it again"
            )
        self.class_names = tuple(features["label"].names)
        self._identity = f"{builder.info.full_name} {chosen} {self._info.shard_lengths}"

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        example = self._examples[index]
        return Example(example["image"], int(example["label"]))

    def describe(self, index: int) -> str:
        """Its place in the split."""
        return f"example {index} of {self._identity}"

    def fingerprint(self) -> str:
        """Hash of the set's name and version, the split, its shards, and its first 100 examples."""
        first = (self[i] for i in range(min(100, len(self))))
        parts = ((np.asarray(e.image).tobytes(), bytes([e.label & 255])) for e in first)
        return digest(self._identity.encode(), *itertools.chain.from_iterable(parts))
