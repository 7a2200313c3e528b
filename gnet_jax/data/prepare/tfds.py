"""Prepare sets of tensorflow-datasets: ImageNet from its tars, others by the library itself."""

import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from gnet_jax.config.paths import plain_path
from gnet_jax.config.recipes import needs
from gnet_jax.data.prepare import ilsvrc
from gnet_jax.data.prepare.shards import Format, PrepareError, SplitPlan, boundaries, write_set
from gnet_jax.data.sources import LeftOut, MissingSplitError
from gnet_jax.data.sources.tfds import TfdsSource, class_names, folder_of, is_prepared, open_builder

OVERHEAD = 80  # bytes of an example in addition to its image and the image's name
SPARE = 1.02  # size of a set on disk / size of its tars, at most


class Prepared(NamedTuple):
    """A prepared set."""

    folder: Path
    images: dict[str, int]  # of each split
    left_out: LeftOut  # files of the source that a copy leaves out


def prepare(
    name: str,
    *,
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
    file_format: Format = "array_record",
    subset: bool = False,
    threads: int = 4,
) -> Prepared:
    """Prepare a set of tensorflow-datasets unless it exists, and check it.

    imagenet2012 is made from its tars without TensorFlow, and a killed call is resumed by the
    next. Other sets are downloaded and prepared by tensorflow-datasets, which mostly requires
    TensorFlow and starts from scratch each time.

    Args:
        name: such as "imagenet2012" or "mnist:3.0.1".
        data_dir: folder of the sets; None is TFDS_DATA_DIR or ~/tensorflow_datasets.
        manual_dir: folder of the files that were downloaded by hand.
        file_format: format of the files.
        subset: accept tars with only a part of ImageNet's images.
        threads: number of files that are written at once.

    Raises:
        PrepareError: if it cannot be prepared.
        DataError: if the set is unknown, not image classification, or incomplete.
    """
    builder = open_builder(name, data_dir)
    class_names(name, builder.info.features)
    if is_prepared(builder):
        found = builder.info.file_format.value
        if found != file_format:
            raise PrepareError(
                f"{name} is already in {folder_of(builder)} as {found}; for {file_format}, name "
                "another --data-dir"
            )
    else:
        builder = open_builder(name, data_dir, file_format=file_format)
        if builder.name == "imagenet2012":
            _prepare_imagenet(builder, manual_dir or Path(), subset, threads)
        else:
            _prepare_by_tfds(name, builder, manual_dir)
    images = {}
    for split in ("train", "val", "test"):
        with contextlib.suppress(MissingSplitError):
            source = TfdsSource(name, split, data_dir)
            images[source.split] = len(source)
    return Prepared(Path(folder_of(builder)), images, {})


def _prepare_by_tfds(name: str, builder: Any, manual_dir: Path | None) -> None:
    import tensorflow_datasets as tfds

    manual_dir = manual_dir and plain_path(manual_dir)
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        if isinstance(folder := folder_of(builder), Path):
            folder.parent.mkdir(parents=True, exist_ok=True)
        builder.download_and_prepare(download_config=config)
    except ImportError as error:
        what = f"tensorflow-datasets, to prepare {name},"
        raise PrepareError(needs(what, error, "prepare")) from error
    # tensorflow-datasets raises an AssertionError for missing files.
    except (OSError, tfds.download.DownloadError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise PrepareError(f"tensorflow-datasets cannot prepare {name}: {reason}") from error


def _prepare_imagenet(builder: Any, manual_dir: Path, subset: bool, threads: int) -> None:
    tars = ilsvrc.find_tars(manual_dir)
    plans = [_imagenet_split(builder, split, tar, subset) for split, tar in tars.items()]
    stats = {tar.name: (tar.stat().st_size, tar.stat().st_mtime) for tar in tars.values()}
    size = SPARE * sum(size for size, _ in stats.values())
    write_set(builder.info, plans, origin=json.dumps(stats), size=size, threads=threads)


def _imagenet_split(builder: Any, split: str, tar: Path, subset: bool) -> SplitPlan:
    import tensorflow_datasets as tfds

    features = builder.info.features
    labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    images = ilsvrc.members(split, tar, features["label"].names, labels)
    if len(images) != ilsvrc.IMAGES[split] and not subset:
        raise PrepareError(
            f"{tar} holds {len(images):,} images, but ILSVRC 2012 has {ilsvrc.IMAGES[split]:,}; "
            f"{ilsvrc.again(tar)}, or accept these with --subset"
        )
    read = ilsvrc.reader(tar)

    def record(index: int) -> bytes:
        image = images[index]
        return features.serialize_example(
            {"file_name": image.name, "image": read(image), "label": image.label}
        )

    total = sum(image.size + len(image.name) + OVERHEAD for image in images)
    return SplitPlan(split, boundaries(len(images), total), record)
