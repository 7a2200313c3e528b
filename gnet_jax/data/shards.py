"""Record files in tensorflow-datasets' layout, written one by one, so that a kill loses little.

They are written without TensorFlow into a folder beside the set's own, which takes the set's name
when it is whole.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Literal

from gnet_jax.config import UserError
from gnet_jax.data.sources.tfds import count_array_records
from gnet_jax.data.sources.tfrecord import framed, record_ends

UNFINISHED = ".part"  # behind the name of a file that is being written
Format = Literal["array_record", "tfrecord"]


class PrepareError(UserError):
    """A data set that cannot be prepared."""


class _StoppedError(Exception):
    """Another thread has failed, or Ctrl-C was pressed."""


def boundaries(records: int, total_bytes: int) -> list[int]:
    """Where the files of a split begin and end, as tensorflow-datasets cuts them."""
    from tensorflow_datasets.core.utils import shard_utils

    shards = shard_utils.ShardConfig.calculate_number_shards(total_bytes, records)
    return [0, *shard_utils.get_shard_boundaries(records, shards)]


def shard_names(dataset: str, split: str, file_format: Format, count: int) -> list[str]:
    """The files of a split."""
    return [f"{dataset}-{split}.{file_format}-{i:05d}-of-{count:05d}" for i in range(count)]


def write_split(
    folder: Path,
    names: Sequence[str],
    bounds: Sequence[int],
    record: Callable[[int], bytes],
    *,
    file_format: Format,
    threads: int,
    advance: Callable[[], None],
) -> None:
    """Write those files of a split that are not there yet, several at once.

    A file has its name only when it is whole, so what has been written survives a kill.

    Args:
        names: of the files in `folder`; file i holds records `bounds[i]` to `bounds[i + 1]`.
        record: the bytes of a record; called from several threads.
        advance: called behind each record.

    Raises:
        PrepareError: if the files cannot be written.
    """
    stop = threading.Event()

    def records(first: int, behind: int) -> Iterator[bytes]:
        for index in range(first, behind):
            if stop.is_set():
                raise _StoppedError
            yield record(index)
            advance()

    def write(number: int) -> None:
        path, part = folder / names[number], folder / f"{names[number]}{UNFINISHED}"
        first, behind = bounds[number], bounds[number + 1]
        try:
            _WRITERS[file_format](part, records(first, behind))
            with part.open("rb") as file:
                os.fsync(file.fileno())  # or a power cut could leave the name without the bytes
            if _COUNTS[file_format](part) != behind - first:
                raise OSError("not all of it is there")
            part.replace(path)
        except OSError as error:
            raise PrepareError(
                f"cannot write {path}: {error.strerror or error}; the same command goes on when "
                "it can be written"
            ) from error

    missing = [number for number, name in enumerate(names) if not (folder / name).exists()]
    with ThreadPoolExecutor(threads) as pool:
        tasks = [pool.submit(write, number) for number in missing]
        try:
            wait(tasks, return_when=FIRST_EXCEPTION)
        finally:  # Ctrl-C comes this way too
            stop.set()
            pool.shutdown(cancel_futures=True)
    errors = (task.exception() for task in tasks if not task.cancelled())
    for error in errors:
        if error is not None and not isinstance(error, _StoppedError):
            raise error


@contextlib.contextmanager
def _errors_of_storage() -> Generator[None, None, None]:
    try:
        yield
    except RuntimeError as error:  # of one kind for whatever array_record meets
        raise OSError(str(error)) from error


def _write_array_records(path: Path, records: Iterator[bytes]) -> None:
    from array_record.python import array_record_data_source

    writer = array_record_data_source.array_record_module.ArrayRecordWriter(
        os.fspath(path), "group_size:1"
    )
    for data in records:
        with _errors_of_storage():
            writer.write(data)
    with _errors_of_storage():
        writer.close()


def _write_tf_records(path: Path, records: Iterator[bytes]) -> None:
    with path.open("wb") as file:
        for data in records:
            file.write(framed(data))


def _count_array_records(path: Path) -> int:
    return count_array_records(os.fspath(path))


_WRITERS: Mapping[str, Callable[[Path, Iterator[bytes]], None]] = {
    "array_record": _write_array_records,
    "tfrecord": _write_tf_records,
}
_COUNTS: Mapping[str, Callable[[Path], int]] = {
    "array_record": _count_array_records,
    "tfrecord": lambda path: len(record_ends(path)),
}
