"""Record files in tensorflow-datasets' layout, written one by one, so that a kill loses little.

They are written without TensorFlow into a folder beside the set's own, which takes the set's name
when it is whole.
"""

import contextlib
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gnet_jax.config import UserError
from gnet_jax.config.paths import plain_path
from gnet_jax.data.progress import progress_line
from gnet_jax.data.sources.tfds import count_array_records
from gnet_jax.data.sources.tfrecord import framed, record_ends

UNFINISHED = ".part"  # appended to the name of a file that is being written
ORIGIN, LOCK = "origin.txt", "lock"  # in the folder of a set that is being written
Format = Literal["array_record", "tfrecord"]


class PrepareError(UserError):
    """A data set that cannot be prepared."""


class _StoppedError(Exception):
    """Another thread has failed, or Ctrl-C was pressed."""


class SplitPlan(NamedTuple):
    """What a split is to hold."""

    name: str
    bounds: Sequence[int]  # file i holds records `bounds[i]` to `bounds[i + 1]`
    record: Callable[[int], bytes]  # called from several threads

    def files(self, dataset: str, file_format: Format) -> list[str]:
        """The names of its files."""
        count = len(self.bounds) - 1
        return [f"{dataset}-{self.name}.{file_format}-{i:05d}-of-{count:05d}" for i in range(count)]


def boundaries(records: int, total_bytes: int) -> list[int]:
    """Where the files of a split begin and end, as tensorflow-datasets cuts them."""
    from tensorflow_datasets.core.utils import shard_utils

    shards = shard_utils.ShardConfig.calculate_number_shards(total_bytes, records)
    return [0, *shard_utils.get_shard_boundaries(records, shards)]


def write_set(
    info: Any, plans: Sequence[SplitPlan], *, origin: str, size: float, threads: int
) -> None:
    """Write a whole set, or what is missing of it since the last call was killed.

    It has its name only when it is whole.

    Args:
        info: what tensorflow-datasets knows of the set, with its features and its format.
        origin: tells what the set is made of; what was made of something else is not gone on with.
        size: that it will have, in bytes.
        threads: that write files at once.

    Raises:
        PrepareError: if it cannot be written.
    """
    import tensorflow_datasets as tfds

    folder, file_format = Path(info.data_dir).resolve(), info.file_format.value
    # That is no version, so tensorflow-datasets does not take it for a set.
    work = folder.with_name(f"{folder.name}.unfinished-{file_format}")
    with _locked(work):
        _check_origin(work, origin)
        _check_space(work, size)
        splits = []
        for plan in plans:
            files = plan.files(info.name, file_format)
            lengths = [end - first for first, end in itertools.pairwise(plan.bounds)]
            done = sum(n for file, n in zip(files, lengths, strict=True) if (work / file).exists())
            with progress_line(f"writing {plan.name}", "images", plan.bounds[-1], done) as advance:
                _write_split(work, files, plan, file_format, threads, advance)
            written = sum((work / file).stat().st_size for file in files)
            splits.append(
                tfds.core.SplitInfo(name=plan.name, shard_lengths=lengths, num_bytes=written)
            )
        info.set_splits(tfds.core.SplitDict(splits))
        info.write_to_directory(plain_path(work))
        (work / ORIGIN).unlink()
        (work / LOCK).unlink()
        work.replace(folder)


@contextlib.contextmanager
def _locked(work: Path) -> Generator[None, None, None]:
    """Makes the folder, keeps others from writing into it, and clears what a kill has left."""
    import fcntl  # of Unix, as array_record is

    try:
        work.mkdir(parents=True, exist_ok=True)
        file = (work / LOCK).open("w")
    except OSError as error:
        raise PrepareError(f"cannot write into {work}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PrepareError(f"another process is writing {work}; wait for it") from error
        except OSError as error:
            raise PrepareError(
                f"cannot lock {work / LOCK}: {error.strerror}; mount its file system with locks, "
                "or write on one that has them, as every local disk"
            ) from error
        for part in work.glob(f"*{UNFINISHED}"):
            part.unlink()
        yield


def _check_origin(work: Path, origin: str) -> None:
    """Note in `work` what it is made of.

    Raises:
        PrepareError: if files in `work` were made of something else.
    """
    note = work / ORIGIN
    begun = any(file.name not in (ORIGIN, LOCK) for file in work.iterdir())
    if not begun or not note.exists():
        note.write_text(origin)
    elif note.read_text() != origin:
        raise PrepareError(
            f"{work} was begun from other data, or they have changed; remove it to begin anew"
        )


def _check_space(work: Path, size: float) -> None:
    """Compare what the set will take with what is free.

    Raises:
        PrepareError: if the disk is too small.
    """
    missing = size - sum(file.stat().st_size for file in work.iterdir())
    free = shutil.disk_usage(work).free
    if missing > free:
        raise PrepareError(
            f"{work.parent} has {free / 1e9:,.1f} GB free, but {missing / 1e9:,.1f} GB are needed; "
            "make room, or name another folder"
        )


def _write_split(
    folder: Path,
    files: Sequence[str],
    plan: SplitPlan,
    file_format: Format,
    threads: int,
    advance: Callable[[], None],
) -> None:
    """Write those files of a split that are not there yet, several at once.

    A file has its name only when it is whole, so what has been written survives a kill.
    """
    stop = threading.Event()

    def records(first: int, end: int) -> Iterator[bytes]:
        for index in range(first, end):
            if stop.is_set():
                raise _StoppedError
            yield plan.record(index)
            advance()

    def write(number: int) -> None:
        path, part = folder / files[number], folder / f"{files[number]}{UNFINISHED}"
        first, end = plan.bounds[number], plan.bounds[number + 1]
        try:
            _WRITERS[file_format](part, records(first, end))
            with part.open("rb") as file:
                os.fsync(file.fileno())  # or a power cut could leave the name without the bytes
            if _COUNTS[file_format](part) != end - first:
                raise OSError("not all of it is there")
            part.replace(path)
        except OSError as error:
            raise PrepareError(
                f"cannot write {path}: {error.strerror or error}; the same command goes on when "
                "it can be written"
            ) from error

    missing = [number for number, file in enumerate(files) if not (folder / file).exists()]
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
        os.fspath(plain_path(path)), "group_size:1"
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
