"""TFRecord files: their framing, and random access to their records.

A record is its length (8 bytes, little-endian), a checksum of the length (4), its data, and a
checksum of the data (4). Nothing tells where record i begins but the lengths before it, so each
file is walked once, from length to length, and the places are kept.
"""

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
from gnet_jax.data.sources.source import DataError, digest

_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
HEADER = _LENGTH.size + _CHECKSUM.size  # in front of the data
THREADS = 32  # that wait for the storage while files are walked


def checksum(data: bytes) -> int:
    """What a TFRecord holds as the checksum of `data`: its CRC-32C, masked."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def framed(data: bytes) -> bytes:
    """`data` as one record of a TFRecord file."""
    length = _LENGTH.pack(len(data))
    return b"".join(
        (length, _CHECKSUM.pack(checksum(length)), data, _CHECKSUM.pack(checksum(data)))
    )


def record_ends(path: Path) -> np.ndarray:
    """Where each of the N records of a file ends, in bytes: (N,) int64.

    Only the lengths are read, not the data.

    Raises:
        DataError: for a file that cannot be read, is damaged, or is cut short.
    """
    ends: list[int] = []
    try:
        with path.open("rb", buffering=0) as file:
            size, at = os.fstat(file.fileno()).st_size, 0
            while at < size:
                file.seek(at)
                header = file.read(HEADER)
                if len(header) == HEADER:
                    if _CHECKSUM.unpack_from(header, _LENGTH.size)[0] != checksum(header[:8]):
                        raise DataError(
                            f"{path} is damaged: no record begins at its byte {at:,}; copy it again"
                        )
                    at += HEADER + _LENGTH.unpack_from(header)[0] + _CHECKSUM.size
                if len(header) < HEADER or at > size:
                    raise DataError(
                        f"{path} is cut short in record {len(ends)}, at {size:,} bytes; copy it "
                        "again"
                    )
                ends.append(at)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return np.array(ends, np.int64)


class TfRecords:
    """The records of TFRecord files, one file after another, by random access from any thread.

    Args:
        paths: the files, which must lie where they can be opened as files.
        counts: how many records each of them holds.
        index: name of the file that keeps the places of the records. It is written beside the
            records or, where that is not allowed, in ~/.cache/gnet_jax (or under XDG_CACHE_HOME).

    Raises:
        DataError: for a file that cannot be read, is damaged or cut short, or holds another number
            of records.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int], index: str) -> None:
        self._paths = tuple(paths)
        self._first = np.cumsum([0, *counts])  # of each file, among all records
        self._ends = _index(self._paths, counts, index)

    def __len__(self) -> int:
        return int(self._first[-1])

    def locate(self, index: int) -> tuple[str, int]:
        """The name of a record's file, and the record's number in it."""
        shard, number = self._place(index)
        return self._paths[shard].name, number

    def _place(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._first, index, side="right")) - 1
        return shard, index - int(self._first[shard])

    def __getitem__(self, index: int) -> bytes:
        """A record's data.

        Raises:
            ImageError: if its checksum does not fit.
            DataError: if the file has changed since its records were found.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard, number = self._place(index)
        path = self._paths[shard]
        begin = int(self._ends[index - 1]) if number else 0
        length = int(self._ends[index]) - begin - HEADER - _CHECKSUM.size
        # A file is opened for each read: one for each of a thousand shards would be too many.
        with path.open("rb") as file:
            file.seek(begin)
            record = file.read(HEADER + length + _CHECKSUM.size)
        if record[:8] != _LENGTH.pack(length) or len(record) != HEADER + length + _CHECKSUM.size:
            raise DataError(f"{path} has changed while it was read; start again when it is whole")
        data = record[HEADER : HEADER + length]
        if _CHECKSUM.unpack_from(record, HEADER + length)[0] != checksum(data):
            raise ImageError("a damaged record: its checksum is wrong")
        return data


def _index(paths: tuple[Path, ...], counts: Sequence[int], name: str) -> np.ndarray:
    """Where the records end in their files, of all files; kept until a file changes."""
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
        kept = _kept(place, key, sum(counts))
        if kept is not None:
            return kept
    threads = min(THREADS, len(paths))
    with (
        progress_line(f"finding the records of {folder}", "files", len(paths)) as advance,
        ThreadPoolExecutor(threads) as pool,
    ):

        def ends_of(path: Path, count: int) -> np.ndarray:
            found = record_ends(path)
            if len(found) != count:
                raise DataError(
                    f"{path} should hold {count:,} records, but holds {len(found):,}; copy it again"
                )
            advance()
            return found

        ends = np.concatenate(list(pool.map(ends_of, paths, counts)))
    _keep(places, key, ends)
    return ends


def _kept(file: Path, key: str, count: int) -> np.ndarray | None:
    """What `_keep` has written for `key`, if it has."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            ends = arrays["ends"] if str(arrays["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # absent or spoiled: the records are found anew
    return ends if ends is not None and ends.shape == (count,) else None


def _keep(places: Sequence[Path], key: str, ends: np.ndarray) -> None:
    """Write the index to the first of `places` that allows it."""
    refusals = []
    for place in places:
        part = place.with_name(f"{place.name}.{secrets.token_hex(4)}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                with part.open("xb") as file:
                    np.savez(file, key=np.array(key), ends=ends)
                part.replace(place)  # whole or not at all: other hosts may be writing it too
            finally:
                part.unlink(missing_ok=True)
            return
        except OSError as error:
            refusals.append(f"{place.parent} ({error.strerror})")
    print(
        f"the places of the records can be kept neither in {' nor in '.join(refusals)}; every "
        "start finds them anew",
        file=sys.stderr,
    )
