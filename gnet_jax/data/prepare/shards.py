"""Write a data set's record files in the layout of tensorflow-datasets, without TensorFlow."""

import contextlib
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from gnet_jax.config import UserError
from gnet_jax.config.paths import plain_path
from gnet_jax.data.progress import progress_line
from gnet_jax.data.sources.tfds import count_array_records, framed, record_ends

UNFINISHED = ".part"  # appended to the name of a file that is being written
ORIGIN, LOCK = "origin.txt", "lock"  # files in the temporary folder
Format = Literal["array_record", "tfrecord"]


class PrepareError(UserError):
    """A data set cannot be prepared."""


class SplitPlan(NamedTuple):
    """The records to write for one split, and the files that they are written to."""

    name: str
    bounds: Sequence[int]  # file i has the records `bounds[i]` to `bounds[i + 1] - 1`
    record: Callable[[int], bytes]  # returns record i; called from several threads


def boundaries(records: int, total_bytes: int) -> list[int]:
    """Returns the `SplitPlan.bounds` that tensorflow-datasets chooses for a split of this size."""
    from tensorflow_datasets.core.utils import shard_utils

    shards = shard_utils.ShardConfig.calculate_number_shards(total_bytes, records)
    return [0, *shard_utils.get_shard_boundaries(records, shards)]


def write_set(
    info: Any, plans: Sequence[SplitPlan], *, origin: str, size: float, threads: int
) -> None:
    """Write a data set, or complete one whose writing was interrupted.

    `info` is the DatasetInfo, `origin` is text that identifies the source data, `size` is the
    expected size in bytes, and `threads` files are written at once. Raises PrepareError if the set
    cannot be written, or if the files of an interrupted call were made from other data.
    """
    import tensorflow_datasets as tfds

    folder, file_format = Path(info.data_dir).resolve(), info.file_format.value
    # It is renamed at the end. tensorflow-datasets ignores it: its name is not a version.
    work = folder.with_name(f"{folder.name}.unfinished-{file_format}")
    with _locked(work):
        if folder.exists():  # written while this process read its data
            shutil.rmtree(work)
            raise PrepareError(f"another process has written {folder}; run the same command again")
        note, own = work / ORIGIN, {work / ORIGIN, work / LOCK}
        if own.issuperset(work.iterdir()) or not note.exists():
            note.write_text(origin)
        elif note.read_text() != origin:
            raise PrepareError(
                f"{work} was made from other data, or the data have changed; delete this folder "
                "to start again"
            )
        missing = size - sum(file.stat().st_size for file in work.iterdir())
        free = shutil.disk_usage(work).free
        if missing > free:
            raise PrepareError(
                f"{work.parent} has {free / 1e9:,.1f} GB free, but {missing / 1e9:,.1f} GB are "
                "required; free some space, or choose another folder"
            )
        splits = []
        for plan in plans:
            count = len(plan.bounds) - 1
            stem = f"{info.name}-{plan.name}.{file_format}"
            files = [work / f"{stem}-{i:05d}-of-{count:05d}" for i in range(count)]
            _write_split(files, plan, file_format, threads)
            lengths = np.diff(plan.bounds).tolist()
            written = sum(file.stat().st_size for file in files)
            splits.append(tfds.core.SplitInfo(plan.name, lengths, written))
        info.set_splits(tfds.core.SplitDict(splits))
        info.write_to_directory(plain_path(work))
        for file in own:
            file.unlink()
        work.replace(folder)


@contextlib.contextmanager
def _locked(work: Path) -> Generator[None, None, None]:
    """Make the folder, lock it against other processes, and delete unfinished files in it."""
    import fcntl  # only on Unix, like array_record

    with contextlib.ExitStack() as stack:
        try:
            work.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context((work / LOCK).open("w")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PrepareError(f"another process is writing {work}; wait until it ends") from error
        except OSError as error:
            raise PrepareError(
                f"cannot write or lock {work / LOCK}: {error.strerror}; use a local disk"
            ) from error
        try:
            for part in work.glob(f"*{UNFINISHED}"):
                part.unlink()
            yield
        except OSError as error:
            raise PrepareError(
                f"cannot write {work}: {error.strerror or error}; run the same command to resume"
            ) from error


def _write_split(files: list[Path], plan: SplitPlan, file_format: Format, threads: int) -> None:
    """Write the missing files of a split. A file gets its final name when it is complete."""
    stop = threading.Event()
    ranges = dict(zip(files, itertools.pairwise(plan.bounds), strict=True))
    missing = [file for file in files if not file.exists()]
    done = plan.bounds[-1] - sum(ranges[file][1] - ranges[file][0] for file in missing)

    def records(first: int, end: int) -> Iterator[bytes]:
        for index in range(first, end):
            if stop.is_set():  # another thread has failed, or Ctrl-C was pressed
                raise CancelledError
            yield plan.record(index)
            advance()

    def write(path: Path) -> None:
        part = path.with_name(path.name + UNFINISHED)
        first, end = ranges[path]
        try:
            count = _write_file(part, records(first, end), file_format)
            if count != end - first:
                raise OSError(f"the file has {count:,} of {end - first:,} records")
            part.replace(path)
        except (OSError, RuntimeError) as error:  # array_record raises RuntimeError for any reason
            reason = getattr(error, "strerror", None) or error
            raise PrepareError(
                f"cannot write {path}: {reason}; run the same command to resume"
            ) from error

    with (
        progress_line(f"writing {plan.name}", "images", plan.bounds[-1], done) as advance,
        ThreadPoolExecutor(threads) as pool,
    ):
        tasks = [pool.submit(write, file) for file in missing]
        try:
            for task in as_completed(tasks):
                task.result()
        finally:  # also after Ctrl-C
            stop.set()
            pool.shutdown(cancel_futures=True)


def _write_file(path: Path, records: Iterator[bytes], file_format: Format) -> int:
    """Write one file, then count the records in it, and return this number."""
    if file_format == "tfrecord":
        with path.open("wb") as file:
            file.writelines(map(framed, records))
    else:
        from array_record.python import array_record_data_source

        writer = array_record_data_source.array_record_module.ArrayRecordWriter(
            os.fspath(plain_path(path)), "group_size:1"
        )
        for data in records:
            writer.write(data)
        writer.close()
    with path.open("rb") as file:
        os.fsync(file.fileno())  # otherwise a power cut could leave an empty file
    return len(record_ends(path)) if file_format == "tfrecord" else count_array_records(str(path))
