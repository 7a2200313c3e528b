"""Data sets in tensorflow-datasets' layout: ImageNet out of its tars, others by tfds itself."""

import contextlib
import itertools
import json
import shutil
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gnet_jax.data import ilsvrc
from gnet_jax.data.progress import progress
from gnet_jax.data.shards import (
    UNFINISHED,
    Format,
    PrepareError,
    boundaries,
    shard_names,
    write_split,
)
from gnet_jax.data.sources import MissingSplitError
from gnet_jax.data.sources.tfds import TfdsSource, class_names, is_prepared, open_builder

OVERHEAD = 80  # bytes of an example besides its image and the image's name
SPARE = 1.02  # times the size of its images, what a set may take on disk
ORIGIN, LOCK = "origin.json", "lock"  # in the folder of a set that is being written


class Prepared(NamedTuple):
    """A data set that is ready to be read."""

    folder: Path
    images: dict[str, int]  # of each split


def prepare(
    name: str,
    *,
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
    file_format: Format = "array_record",
    subset: bool = False,
    threads: int = 4,
) -> Prepared:
    """Prepare a set of tensorflow-datasets' catalogue, where that is not done yet, and check it.

    imagenet2012 is made of its tars without TensorFlow, and a call that was killed is taken up
    where it stopped. Other sets are downloaded and prepared by tensorflow-datasets, which most
    often needs TensorFlow and begins anew each time.

    Args:
        name: such as "imagenet2012" or "mnist:3.0.1".
        data_dir: where sets are; None is TFDS_DATA_DIR, or else ~/tensorflow_datasets.
        manual_dir: where files are that have to be downloaded by hand.
        subset: accept tars that hold a part of ImageNet's images.
        threads: that write files at once.

    Raises:
        PrepareError: if it cannot be prepared.
        DataError: if there is no such set, it is not classification, or what is there is not whole.
    """
    builder = open_builder(name, data_dir)
    class_names(name, builder.info.features)
    if is_prepared(builder):
        found = builder.info.file_format.value
        if found != file_format:
            raise PrepareError(
                f"{name} is in {builder.data_dir} already, as {found}; to have it as {file_format} "
                "too, name another --data-dir"
            )
    else:
        builder = open_builder(name, data_dir, file_format=file_format)
        if builder.name == "imagenet2012":
            _prepare_imagenet(builder, manual_dir or Path(), file_format, subset, threads)
        else:
            _prepare_by_tfds(name, builder, manual_dir)
    images = {}
    for split in ("train", "val", "test"):
        with contextlib.suppress(MissingSplitError):
            source = TfdsSource(name, split, data_dir)
            images[source.split] = len(source)
    return Prepared(Path(builder.data_dir), images)


def _prepare_by_tfds(name: str, builder: Any, manual_dir: Path | None) -> None:
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        builder.download_and_prepare(download_config=config)
    except ImportError as error:
        raise PrepareError(
            f"tensorflow-datasets lacks a library to prepare {name} ({error}); "
            "pip install 'gnet-jax[prepare]' brings TensorFlow"
        ) from error
    # The last is what tensorflow-datasets says of missing files.
    except (OSError, tfds.download.DownloadError, AssertionError) as error:
        raise PrepareError(f"tensorflow-datasets cannot prepare {name}: {error}") from error


def _prepare_imagenet(
    builder: Any, manual_dir: Path, file_format: Format, subset: bool, threads: int
) -> None:
    import tensorflow_datasets as tfds

    tars = ilsvrc.find_tars(manual_dir)
    folder = Path(builder.data_dir)
    # That is no version, so tensorflow-datasets does not take it for a set.
    work = folder.with_name(f"{folder.name}.unfinished-{file_format}")
    with _locked(work):
        _check_origin(work, tars)
        _check_space(work, tars)
        splits = [
            _write_imagenet_split(builder, split, tar, work, file_format, subset, threads)
            for split, tar in tars.items()
        ]
        builder.info.set_splits(tfds.core.SplitDict(splits))
        builder.info.write_to_directory(work)
        (work / ORIGIN).unlink()
        (work / LOCK).unlink()
        work.replace(folder)


def _write_imagenet_split(
    builder: Any,
    split: str,
    tar: Path,
    work: Path,
    file_format: Format,
    subset: bool,
    threads: int,
) -> Any:
    """Write what is missing of a split; returns tensorflow-datasets' description of it."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    images = ilsvrc.members(split, tar, features["label"].names, labels)
    if len(images) != ilsvrc.IMAGES[split] and not subset:
        raise PrepareError(
            f"{tar} holds {len(images):,} images, but ILSVRC 2012 has {ilsvrc.IMAGES[split]:,}; "
            f"{ilsvrc.again(tar)}, or say --subset to do with these"
        )
    read = ilsvrc.reader(tar)

    def record(index: int) -> bytes:
        image = images[index]
        return features.serialize_example(
            {"file_name": image.name, "image": read(image), "label": image.label}
        )

    total = sum(image.size + len(image.name) + OVERHEAD for image in images)
    bounds = boundaries(len(images), total)
    names = shard_names(builder.name, split, file_format, len(bounds) - 1)
    lengths = [behind - first for first, behind in itertools.pairwise(bounds)]
    done = sum(n for name, n in zip(names, lengths, strict=True) if (work / name).exists())
    with progress(f"writing {split}", "images", len(images), done) as advance:
        write_split(
            work, names, bounds, record, file_format=file_format, threads=threads, advance=advance
        )
    size = sum((work / name).stat().st_size for name in names)
    return tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size)


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
        except OSError as error:
            raise PrepareError(f"another process is writing {work}; wait for it") from error
        for part in work.glob(f"*{UNFINISHED}"):
            part.unlink()
        yield


def _check_origin(work: Path, tars: Mapping[str, Path]) -> None:
    """Note in `work` what it is made of.

    Raises:
        PrepareError: if files in `work` were made of other tars.
    """
    stats = {tar.name: tar.stat() for tar in tars.values()}
    origin = json.dumps({name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()})
    note = work / ORIGIN
    begun = any(file.name not in (ORIGIN, LOCK) for file in work.iterdir())
    if not begun or not note.exists():
        note.write_text(origin)
    elif note.read_text() != origin:
        raise PrepareError(
            f"{work} was begun with other tars, or they have changed; remove it to begin anew"
        )


def _check_space(work: Path, tars: Mapping[str, Path]) -> None:
    """Compare what the set will take with what is free.

    Raises:
        PrepareError: if the disk is too small.
    """
    whole = SPARE * sum(tar.stat().st_size for tar in tars.values())
    missing = whole - sum(file.stat().st_size for file in work.iterdir())
    free = shutil.disk_usage(work).free
    if missing > free:
        raise PrepareError(
            f"{work.parent.parent} has {free / 1e9:,.1f} GB free, but {missing / 1e9:,.1f} GB are "
            "needed; make room, or name another --data-dir"
        )
