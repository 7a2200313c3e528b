"""Read and write records of TFRecord files, with random access by an index of record positions.

A record consists of the length of the data (8 bytes, little-endian), a checksum of the length (4
bytes), the data, and a checksum of the data (4 bytes).
"""

import contextlib
import os
import secrets
import struct
import sys
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np

from gnet_jax.config.paths import cache_folder
from gnet_jax.data.decode import ImageError
from gnet_jax.data.progress import progress_line
from gnet_jax.data.sources import DataError, digest

_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
HEADER = _LENGTH.size + _CHECKSUM.size  # number of bytes before the data
THREADS = 32  # many, because indexing mostly waits for the storage


def checksum(data: bytes) -> int:
    """Returns the checksum that TFRecord uses for `data`: the masked CRC-32C."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def framed(data: bytes) -> bytes:
    """Returns the bytes of a TFRecord record that contains `data`."""
    length = _LENGTH.pack(len(data))
    return length + _CHECKSUM.pack(checksum(length)) + data + _CHECKSUM.pack(checksum(data))


def record_ends(path: Path) -> np.ndarray:
    """Returns the byte position at which each record of a file ends, (N,) int64."""
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


def check_count(path: str | Path, expected: int, found: int) -> None:
    """Raises a DataError if the file does not have the expected number of records."""
    if found != expected:
        raise DataError(f"{path} has {found:,} records instead of {expected:,}; copy it again")


class Shards:
    """The files of a split. Finds the file and position of a record."""

    def __init__(self, paths: Sequence[str | Path], counts: Sequence[int]) -> None:
        self._paths = tuple(paths)
        self._starts = np.cumsum([0, *counts])  # index of each file's first record

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """Returns the index of the file that contains a record, and its index in that file."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, index - int(self._starts[shard])

    def describe(self, index: int) -> str:
        """Returns text with the index of a record in its file and the name of the file."""
        shard, number = self.locate(index)
        return f"number {number} in {os.path.basename(self._paths[shard])}"


class TfRecords(Shards):
    """The records of local TFRecord files, with random access from any thread.

    The positions of the records are saved in a file named `index` beside the data or, if that is
    not possible, in the user's cache. Raises DataError for a file that cannot be read, is corrupt
    or truncated, or does not have the number of records in `counts`.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int], index: str) -> None:
        super().__init__(paths, counts)
        self._ends = _load_or_make_index(paths, counts, index)

    def __getitem__(self, index: int) -> bytes:
        """Returns the data of a record. Raises ImageError if their checksum is wrong."""
        shard, number = self.locate(index)
        start = int(self._ends[index - 1]) if number else 0
        length = int(self._ends[index]) - start - HEADER - _CHECKSUM.size
        # Not kept open, because a set may have more files than a process may open.
        with open(self._paths[shard], "rb") as file:
            file.seek(start)
            record = file.read(HEADER + length + _CHECKSUM.size)
        if record[:8] != _LENGTH.pack(length) or len(record) != HEADER + length + _CHECKSUM.size:
            raise DataError(
                f"{self._paths[shard]} has changed since the start; start again when it is complete"
            )
        data = record[HEADER : HEADER + length]
        if _CHECKSUM.unpack_from(record, HEADER + length)[0] != checksum(data):
            raise ImageError("a corrupt record: its checksum is wrong")
        return data


def _load_or_make_index(paths: Sequence[Path], counts: Sequence[int], name: str) -> np.ndarray:
    try:
        stats = [path.stat() for path in paths]
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
    lines = (
        f"{path.name} {stat.st_size} {stat.st_mtime_ns} {count}\n"
        for path, stat, count in zip(paths, stats, counts, strict=True)
    )
    key = digest(*(line.encode() for line in lines))
    folder = paths[0].parent
    places = (folder / name, cache_folder() / f"{digest(os.fsencode(folder.absolute()))}-{name}")
    for place in places:
        ends = _load_index(place, key, sum(counts))
        if ends is not None:
            return ends
    with (
        progress_line(f"indexing the records of {folder}", "files", len(paths)) as advance,
        ThreadPoolExecutor(min(THREADS, len(paths))) as pool,
    ):

        def find_ends(path: Path, count: int) -> np.ndarray:
            ends = record_ends(path)
            check_count(path, count, len(ends))
            advance()
            return ends

        ends = np.concatenate(list(pool.map(find_ends, paths, counts)))
    _save_index(places, key, ends)
    return ends


def _load_index(file: Path, key: str, count: int) -> np.ndarray | None:
    """Returns the index in `file`, or None if it is missing, corrupt or made for other files."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            ends = arrays["ends"]
            return ends if str(arrays["key"]) == key and ends.shape == (count,) else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _save_index(places: Sequence[Path], key: str, ends: np.ndarray) -> None:
    """Saves the index in the first of `places` that is writable."""
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
        f"cannot save the index of the records in {' or '.join(errors)}; every start rebuilds it",
        file=sys.stderr,
    )
