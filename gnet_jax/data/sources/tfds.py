"""Read TensorFlow Datasets from array_record or TFRecord files, without TensorFlow."""

import contextlib
import os
import secrets
import struct
import sys
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from gnet_jax.config.bucket import check_local
from gnet_jax.config.paths import cache_folder, plain_path
from gnet_jax.data.decode import ImageError
from gnet_jax.data.progress import progress_line
from gnet_jax.data.sources import DataError, Example, LeftOut, MissingSplitError, Split, digest

# A TFRecord record is: length of the data, checksum of the length, data, checksum of the data.
_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
HEADER = _LENGTH.size + _CHECKSUM.size  # number of bytes before the data
THREADS = 32  # many, because indexing mostly waits for the storage
SPARE_FILES = 256  # largest number of files that a process opens besides the data files


class TfdsSource:
    """One split of a prepared data set. `open_builder` explains `name` and `data_dir`.

    The split "val" is the set's "validation" split if there is one, otherwise "test". Raises
    MissingSplitError if the set has no such split. Raises DataError if the set is not prepared, is
    incomplete, is not for image classification, or is neither array_record nor TFRecord.
    """

    labels = None  # known only after reading the records

    def __init__(self, name: str, split: Split, data_dir: Path | None = None) -> None:
        builder = open_builder(name, data_dir)
        if not is_prepared(builder):
            raise DataError(
                f"{name} is not prepared in {folder_of(builder)}; run `gnet prepare tfds:{name}` "
                "or set TFDS_DATA_DIR to the folder of your sets"
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
        folder = os.fspath(folder_of(builder))
        self._records = _open_records(name, builder.info.file_format.value, info, folder)
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
        """Returns the example's index in the split, and its file and position in that file."""
        return f"example {index} of {self._name} ({self._records.describe(index)})"

    def fingerprint(self) -> str:
        """Returns a hash of the set's name, version, split, shards and first 100 examples."""
        parts = [self._identity.encode()]
        for index in range(min(100, len(self))):
            try:
                example = self[index]
            except ImageError:  # the error is reported when the example is read
                parts.append(b"damaged")
            except OSError as error:
                raise DataError(f"cannot read {self.describe(index)}: {error}") from error
            else:
                parts += [np.asarray(example.image).tobytes(), bytes([example.label & 255])]
        return digest(*parts)


def open_builder(name: str, data_dir: Path | None = None, **options: Any) -> Any:
    """Returns `tfds.builder(name, **options)` for a name such as "cifar10" or "mnist:3.0.1".

    `data_dir` is the folder that contains all data sets. By default, it is the value of the
    environment variable TFDS_DATA_DIR, or ~/tensorflow_datasets if the variable is not set.
    Raises DataError if the name or version is unknown.
    """
    import tensorflow_datasets as tfds

    folder = _plain(data_folder(data_dir))
    try:
        return tfds.builder(name, data_dir=folder, **options)
    except (tfds.core.DatasetNotFoundError, AssertionError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"tensorflow-datasets has no data set named {name!r} ({reason}); "
            "www.tensorflow.org/datasets/catalog lists all data sets"
        ) from error


def data_folder(data_dir: Path | None = None) -> str:
    """Returns the folder that contains all data sets: `data_dir`, or the default folder."""
    # tfds reads TFDS_DATA_DIR only when it is imported.
    given = os.environ.get("TFDS_DATA_DIR") if data_dir is None else os.fspath(data_dir)
    check_local("TFDS_DATA_DIR" if data_dir is None else "data_dir", given)
    return os.path.expanduser(given or "~/tensorflow_datasets")


def folder_of(builder: Any) -> Path:
    """Returns the folder of a set, without symbolic links."""
    return Path(builder.data_dir).resolve()


def is_prepared(builder: Any) -> bool:
    """Returns whether the set of `builder` is prepared."""
    # Check for the folder first: if it is missing, tensorflow-datasets would print a warning.
    return builder.data_path.exists() and builder.is_prepared()


def class_names(name: str, features: Any) -> tuple[str, ...]:
    """Returns the class names of a set. Raises DataError if it is not for image classification."""
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


def _open_records(
    name: str, file_format: str, info: Any, folder: str
) -> "_ArrayRecords | TfRecords":
    paths = [f"{folder}/{os.path.basename(path)}" for path in info.filepaths]
    if file_format == "array_record":
        return _ArrayRecords(paths, info.shard_lengths)
    if file_format != "tfrecord":
        raise DataError(
            f"{name} is stored as {file_format}, but must be array_record or tfrecord; run "
            f"`gnet prepare tfds:{name} --data-dir DIR` with a new folder DIR"
        )
    return TfRecords([*map(Path, paths)], info.shard_lengths, f"{info.name}.gnet-index.npz")


class Shards:
    """The files of a split and their record counts. Finds the file that contains a record."""

    def __init__(self, paths: Sequence[str | Path], counts: Sequence[int]) -> None:
        self._paths, self._counts = tuple(paths), tuple(counts)
        self._starts = np.cumsum([0, *counts])  # index of each file's first record

    def __len__(self) -> int:
        return int(self._starts[-1])

    def check(self, counts: Iterable[int]) -> None:
        """Raises DataError unless `counts`, the records found in each file, are as expected."""
        for path, expected, found in zip(self._paths, self._counts, counts, strict=True):
            if found != expected:
                raise DataError(
                    f"{path} has {found:,} records instead of {expected:,}; copy it again"
                )

    def locate(self, index: int) -> tuple[int, int]:
        """Returns the index of the file with a record, and the index of the record in the file."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, index - int(self._starts[shard])

    def describe(self, index: int) -> str:
        """Returns the record's position, such as "number 3 in x-train.tfrecord-00000-of-00001"."""
        shard, number = self.locate(index)
        return f"number {number} in {os.path.basename(self._paths[shard])}"


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
        self.check(found)
        # The library would count the records again if the paths had no slices such as [0:100].
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
    return os.fspath(plain_path(Path(path)))


def _allow_open_files(count: int) -> None:
    """Increase this process's limit on open files, because array_record keeps all files open."""
    import resource  # only on Unix, like array_record

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = 4 * needed if hard == resource.RLIM_INFINITY else min(hard, 4 * needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def checksum(data: bytes) -> int:
    """Returns the checksum that TFRecord uses for `data`: the masked CRC-32C."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def framed(data: bytes) -> bytes:
    """Returns the bytes of a TFRecord record that contains `data`."""
    length = _LENGTH.pack(len(data))
    return length + _CHECKSUM.pack(checksum(length)) + data + _CHECKSUM.pack(checksum(data))


def record_ends(path: Path) -> np.ndarray:
    """Returns the byte position at which each record of a TFRecord file ends, (N,) int64."""
    ends, at = [], 0
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            while at < size:
                file.seek(at)
                header = file.read(HEADER).ljust(HEADER, b"\0")
                length, crc = _LENGTH.unpack_from(header)[0], _CHECKSUM.unpack_from(header, 8)[0]
                end = at + HEADER + length + _CHECKSUM.size
                if at + HEADER <= size and crc != checksum(header[:8]):
                    raise DataError(f"{path} is corrupt at byte {at:,}; copy it again")
                if end > size:
                    raise DataError(f"{path} is truncated in record {len(ends)}; copy it again")
                ends.append(end)
                at = end
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return np.array(ends, np.int64)


class TfRecords(Shards):
    """The records of local TFRecord files, with random access from any thread.

    The record positions are saved in a file whose name is `index`, in the folder of the data or, if
    that is not writable, in the user's cache. Raises DataError if a file is unreadable or corrupt.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int], index: str) -> None:
        super().__init__(paths, counts)
        try:
            stats = [path.stat() for path in paths]
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
        lines = (
            f"{path.name} {stat.st_size} {stat.st_mtime_ns} {count}\n"
            for path, stat, count in zip(paths, stats, counts, strict=True)
        )
        key, folder = digest(*(line.encode() for line in lines)), paths[0].parent
        cached = cache_folder() / f"{digest(os.fsencode(folder.absolute()))}-{index}"
        places = (folder / index, cached)
        loaded = (_load_index(place, key) for place in places)
        ends = next((each for each in loaded if each is not None), None)
        if ends is None:
            ends = self._make_index(paths)
            _save_index(places, key, ends)
        self._ends = ends

    def _make_index(self, paths: Sequence[Path]) -> np.ndarray:
        with (
            progress_line(f"indexing the records of {paths[0].parent}", "files", len(paths)) as add,
            ThreadPoolExecutor(min(THREADS, len(paths))) as pool,
        ):

            def find_ends(path: Path) -> np.ndarray:
                ends = record_ends(path)
                add()
                return ends

            found = list(pool.map(find_ends, paths))
        self.check(map(len, found))
        return np.concatenate(found)

    def __getitem__(self, index: int) -> bytes:
        """Returns the data of a record. Raises ImageError if the checksum of the data is wrong."""
        shard, number = self.locate(index)
        start = int(self._ends[index - 1]) if number else 0
        length = int(self._ends[index]) - start - HEADER - _CHECKSUM.size
        # The file is not kept open, because a set may have more files than a process may open.
        with open(self._paths[shard], "rb") as file:
            file.seek(start)
            record = file.read(HEADER + length + _CHECKSUM.size)
        if record[:8] != _LENGTH.pack(length) or len(record) != HEADER + length + _CHECKSUM.size:
            raise DataError(
                f"{self._paths[shard]} has changed during the run; run again when it is complete"
            )
        data = record[HEADER : HEADER + length]
        if _CHECKSUM.unpack_from(record, HEADER + length)[0] != checksum(data):
            raise ImageError("a corrupt record: its checksum is wrong")
        return data


def _load_index(file: Path, key: str) -> np.ndarray | None:
    """Returns the record positions in `file`, or None if it is missing, corrupt or outdated."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return arrays["ends"] if str(arrays["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _save_index(places: Sequence[Path], key: str, ends: np.ndarray) -> None:
    """Saves the record positions in the first file in `places` that can be written."""
    errors = []
    for place in places:
        part = place.with_name(f"{place.name}.{secrets.token_hex(4)}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with part.open("xb") as file:
                np.savez(file, key=np.array(key), ends=ends)
            part.replace(place)  # atomic, because other hosts may write this file too
            return
        except OSError as error:
            errors.append(f"{place.parent} ({error.strerror})")
            with contextlib.suppress(OSError):
                part.unlink()
    print(
        f"cannot save the index of the records in {' or '.join(errors)}; each run rebuilds it",
        file=sys.stderr,
    )
