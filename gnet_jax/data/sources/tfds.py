"""Read data sets of TensorFlow Datasets without TensorFlow."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gnet_jax.config.paths import plain_path
from gnet_jax.data.decode import ImageError
from gnet_jax.data.sources import DataError, Example, LeftOut, MissingSplitError, Split, digest
from gnet_jax.data.sources.tfrecord import THREADS, Shards, TfRecords, check_count

SPARE_FILES = 256  # open files of a process that are not data files, at most


class TfdsSource:
    """A prepared image classification set of TensorFlow Datasets, as array_record or TFRecord.

    Images stay encoded. The checksum of each record is verified when it is read. The split "val" is
    the set's "validation" split if there is one, otherwise "test". For `name` and `data_dir` see
    `open_builder`. Raises MissingSplitError if the set has no such split. Raises DataError if the
    set is not prepared, is incomplete, is not image classification, or has another file format.
    """

    labels = None  # known only after reading the records

    def __init__(self, name: str, split: Split, data_dir: Path | None = None) -> None:
        builder = open_builder(name, data_dir)
        if not is_prepared(builder):
            raise DataError(
                f"{name} is not prepared in {folder_of(builder)}; run `gnet prepare tfds:{name}` "
                "or set TFDS_DATA_DIR to its folder"
            )
        splits = sorted(builder.info.splits)
        wanted = ("validation", "test") if split == "val" else (split,)
        chosen = next((s for s in wanted if s in splits), None)
        if chosen is None:
            raise MissingSplitError(f"{name} has no split {' or '.join(wanted)}; it has {splits}")
        self.split = chosen
        others = [f"{name} {s}" for s in splits if s not in ("train", "validation", "test")]
        self.left_out: LeftOut = {"other split": others} if others else {}
        self.class_names = class_names(name, builder.info.features)
        info = builder.info.splits[chosen]
        self._records = _open_records(name, builder.info.file_format.value, info)
        self._name = f"{builder.info.full_name} {chosen}"
        self._identity = f"{self._name} {info.shard_lengths}"

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

        messages: Any = tf_example_pb2
        record = self._records[index]
        try:
            values = messages.Example.FromString(record).features.feature
            image, label = values["image"].bytes_list.value[0], values["label"].int64_list.value[0]
            return Example(image, int(label))
        except (DecodeError, IndexError) as error:
            raise ImageError("a corrupt record: it has no image with a label") from error

    def describe(self, index: int) -> str:
        """Returns a name with the example's index in the split and its position in the files."""
        return f"example {index} of {self._name} ({self._records.describe(index)})"

    def fingerprint(self) -> str:
        """Returns a hash of the set's name, version, split, shards and first 100 examples."""
        parts = [self._identity.encode()]
        for index in range(min(100, len(self))):
            try:
                example = self[index]
            except ImageError:  # changes the hash; reported when the example is read
                parts.append(b"damaged")
            else:
                parts += [np.asarray(example.image).tobytes(), bytes([example.label & 255])]
        return digest(*parts)


def open_builder(name: str, data_dir: Path | None = None, **options: Any) -> Any:
    """Returns `tfds.builder(name, **options)` for a name such as "cifar10" or "mnist:3.0.1".

    `data_dir` is the folder with all sets. The default is TFDS_DATA_DIR or ~/tensorflow_datasets.
    Raises DataError if the name or version is unknown.
    """
    import tensorflow_datasets as tfds

    # tfds reads TFDS_DATA_DIR only when it is imported.
    given = os.environ.get("TFDS_DATA_DIR") if data_dir is None else os.fspath(data_dir)
    folder = os.path.expanduser(given or "~/tensorflow_datasets")
    try:
        return tfds.builder(name, data_dir=_plain(folder), **options)
    except (tfds.core.DatasetNotFoundError, AssertionError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"tensorflow-datasets has no data set named {name!r} ({reason}); "
            "www.tensorflow.org/datasets/catalog lists them"
        ) from error


def folder_of(builder: Any) -> Path | str:
    """Returns the folder of a set: a path without symbolic links, or the URL of a bucket."""
    folder = os.fspath(builder.data_dir)
    return folder if "://" in folder else Path(folder).resolve()


def is_prepared(builder: Any) -> bool:
    """Returns whether the set of `builder` is prepared."""
    # tensorflow-datasets would print a warning for a missing folder.
    return builder.data_path.exists() and builder.is_prepared()


def class_names(name: str, features: Any) -> tuple[str, ...]:
    """Returns the class names of a set. Raises DataError if it is not image classification."""
    import tensorflow_datasets as tfds

    if not (
        features is not None
        and {"image", "label"} <= set(features)
        and isinstance(features["image"], tfds.features.Image)
        and features["image"].np_dtype in (np.uint8, np.uint16)
        and isinstance(features["label"], tfds.features.ClassLabel)
        and features["label"].num_classes
    ):
        raise DataError(f"{name} is not an image classification set: its features are {features}")
    return tuple(features["label"].names)


def _open_records(name: str, file_format: str, info: Any) -> "_ArrayRecords | TfRecords":
    folder = os.fspath(info.filepaths[0].parent)
    if "://" not in folder:
        folder = os.fspath(Path(folder).resolve())  # the real path instead of a link
    paths = [f"{folder}/{os.path.basename(path)}" for path in info.filepaths]
    if file_format == "array_record":
        return _ArrayRecords(paths, info.shard_lengths)
    if file_format != "tfrecord":
        raise DataError(
            f"{name} is stored as {file_format}, but must be array_record or tfrecord; run "
            f"`gnet prepare tfds:{name} --data-dir DIR`"
        )
    if "://" in folder:
        raise DataError(
            f"TFRecord files must be local, but {name} is in {folder}; mount the bucket (gcsfuse) "
            "or copy the set, and set TFDS_DATA_DIR"
        )
    return TfRecords([*map(Path, paths)], info.shard_lengths, f"{info.name}.gnet-index.npz")


class _ArrayRecords(Shards):
    """The records of array_record files."""

    def __init__(self, paths: Sequence[str], counts: Sequence[int]) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        super().__init__(paths, counts)
        _allow_open_files(len(paths))
        with ThreadPoolExecutor(min(THREADS, len(paths))) as pool:
            try:
                found = list(pool.map(count_array_records, paths))
            except OSError as error:
                raise DataError(f"a file of the data is missing or corrupt: {error}") from error
        for each in zip(paths, counts, found, strict=True):
            check_count(*each)
        # If the paths have slices, the library does not count the records again.
        slices = [f"{_plain(path)}[0:{count}]" for path, count in zip(paths, counts, strict=True)]
        self._source = ArrayRecordDataSource(slices)

    def __getitem__(self, index: int) -> bytes:
        self.locate(index)  # raises IndexError for an invalid index
        try:
            return self._source[index]
        except RuntimeError as error:  # the library's only kind of error
            if "orrupted" in str(error):
                raise ImageError(f"a corrupt record: {error}") from error
            raise OSError(str(error)) from error


def count_array_records(path: str) -> int:
    """Returns the number of records in an array_record file. Raises OSError if it is corrupt."""
    from array_record.python import array_record_data_source

    reader = array_record_data_source.array_record_module.ArrayRecordReader(_plain(path))
    count = reader.num_records()
    try:
        reader.close()  # raises the error that made the count 0
    except RuntimeError as error:
        raise OSError(f"{path}: {error}") from error
    return count


def _plain(path: str) -> str:
    return path if "://" in path else os.fspath(plain_path(Path(path)))


def _allow_open_files(count: int) -> None:
    """Raise the limit of open files of this process, because array_record keeps all files open."""
    import resource  # only on Unix, like array_record

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + SPARE_FILES
    if resource.RLIM_INFINITY in (soft, hard) or soft >= needed:
        return
    if hard < needed:
        raise DataError(
            f"the data are in {count:,} files, but a process may open only {hard:,}; raise the "
            f"limit to at least {needed:,} (ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4 * needed), hard))
