"""Prepare data sets of tensorflow-datasets; ImageNet, CIFAR and Imagenette without TensorFlow.

The tars of ILSVRC 2012 are read without unpacking them. The training tar contains an uncompressed
tar for each class, and the validation tar contains the images. The results are the data sets that
tensorflow-datasets prepares: the same names, labels and order.
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from gnet_jax.config.paths import cache_folder, plain_path
from gnet_jax.config.recipes import needs
from gnet_jax.data.decode import ImageError, decode, opening
from gnet_jax.data.download import fetch
from gnet_jax.data.prepare.shards import Format, PrepareError, SplitPlan, boundaries, write_set
from gnet_jax.data.prepare.tars import tar_files
from gnet_jax.data.progress import progress_line
from gnet_jax.data.sources import LeftOut, MissingSplitError
from gnet_jax.data.sources.tfds import TfdsSource, class_names, folder_of, is_prepared, open_builder

MD5 = {
    "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
}
IMAGES = {"train": 1_281_167, "validation": 50_000}
QUALITY = 100  # JPEG quality of the few ImageNet images that are converted
OVERHEAD = 80  # bytes of a record in addition to its image and the image's name
SPARE = 1.02  # upper limit of the prepared set's size, divided by the size of its tars


T = TypeVar("T")


class Prepared(NamedTuple):
    """The result of `prepare` or `pack`."""

    folder: Path
    images: dict[str, int]  # number of images by split
    left_out: LeftOut  # files of the source that were not copied


class Member(NamedTuple):
    """An image in a tar."""

    name: str
    label: int
    offset: int  # position of its first byte in the tar
    size: int  # number of bytes


def prepare(
    name: str,
    *,
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
    file_format: Format = "array_record",
    subset: bool = False,
    threads: int = 4,
) -> Prepared:
    """Prepare the data set `name` ("imagenet2012", "mnist:3.0.1") unless it exists; check it.

    imagenet2012 is made from its tars in `manual_dir`. They may lack images if `subset` is true.
    Other sets are downloaded; if `manual_dir` is given, CIFAR's and Imagenette's archives go there.
    Raises PrepareError if the set cannot be prepared, and DataError if it is unknown, incomplete,
    or not an image classification set.
    """
    builder = open_builder(name, data_dir)
    class_names(name, builder.info.features)
    if is_prepared(builder):
        found = builder.info.file_format.value
        if found != file_format:
            raise PrepareError(
                f"{name} is already prepared in {folder_of(builder)} as {found}; to prepare it as "
                f"{file_format}, use another --data-dir"
            )
    else:
        builder = open_builder(name, data_dir, file_format=file_format)
        if builder.name == "imagenet2012":
            _prepare_imagenet(builder, manual_dir or Path(), subset, threads)
        elif builder.name in ARCHIVES:
            _prepare_archive(builder, manual_dir or cache_folder() / "downloads", threads)
        else:
            _prepare_by_tfds(name, builder, manual_dir)
    return Prepared(folder_of(builder), count_images(name, data_dir), {})


def count_images(name: str, data_dir: Path | None) -> dict[str, int]:
    """Returns the number of images in each split of a prepared set, by the name of the split."""
    images = {}
    for split in ("train", "val", "test"):
        with contextlib.suppress(MissingSplitError):
            source = TfdsSource(name, split, data_dir)
            images[source.split] = len(source)
    return images


def _prepare_by_tfds(name: str, builder: Any, manual_dir: Path | None) -> None:
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig(manual_dir=manual_dir and plain_path(manual_dir))
    try:
        folder_of(builder).parent.mkdir(parents=True, exist_ok=True)
        builder.download_and_prepare(download_config=config)
    except ImportError as error:
        what = f"tensorflow-datasets, to prepare {name},"
        raise PrepareError(needs(what, error, "prepare")) from error
    # tensorflow-datasets raises an AssertionError for missing files.
    except (OSError, tfds.download.DownloadError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise PrepareError(f"tensorflow-datasets cannot prepare {name}: {reason}") from error


def _prepare_imagenet(builder: Any, manual_dir: Path, subset: bool, threads: int) -> None:
    tars = [manual_dir / name for name in MD5]
    missing = " and ".join(tar.name for tar in tars if not tar.is_file())
    if missing:
        raise PrepareError(
            f"there is no {missing} in {manual_dir.absolute()}; register at "
            "image-net.org/download-images to get it, and pass its folder with --manual-dir"
        )
    plans = [
        _imagenet_split(builder, split, tar, subset)
        for split, tar in zip(IMAGES, tars, strict=True)
    ]
    stats = {tar.name: (tar.stat().st_size, tar.stat().st_mtime) for tar in tars}
    size = SPARE * sum(size for size, _ in stats.values())
    write_set(builder.info, plans, origin=json.dumps(stats), size=size, threads=threads)


def _imagenet_split(builder: Any, split: str, tar: Path, subset: bool) -> SplitPlan:
    import tensorflow_datasets as tfds

    features = builder.info.features
    labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    images = _members(split, tar, features["label"].names, labels)
    if len(images) != IMAGES[split] and not subset:
        raise PrepareError(
            f"{tar} has {len(images):,} images, but ILSVRC 2012 has {IMAGES[split]:,}; "
            f"{_again(tar)}, or use these images with --subset"
        )
    read = reader(tar)

    def record(index: int) -> bytes:
        image = images[index]
        return features.serialize_example(
            {"file_name": image.name, "image": read(image), "label": image.label}
        )

    total = sum(image.size + len(image.name) + OVERHEAD for image in images)
    return SplitPlan(split, boundaries(len(images), total), record)


def _members(
    split: str, tar: Path, class_names: Sequence[str], labels: Sequence[str]
) -> list[Member]:
    """Returns a tar's images in tensorflow-datasets' order. `labels` are the validation labels."""
    numbers = {wnid: number for number, wnid in enumerate(class_names)}
    with tar.open("rb") as file:
        if split == "train":
            found = list(_train(file, tar, numbers))
        else:
            found = []
            pattern = r"(?:.*/)?(ILSVRC2012_val_\d{8}\.JPEG)"
            for name, offset, size in tar_files(file, tar, 0, pattern, _again(tar)):
                number = int(name[-13:-5])
                if not 1 <= number <= len(labels):
                    known = f"only {len(labels):,} labels are known"
                    raise PrepareError(f"{tar} contains {name}, but {known}")
                found.append(Member(name, numbers[labels[number - 1]], offset, size))
    if not found or len({each.name for each in found}) < len(found):
        what = "several images of the same name" if found else "no images of ILSVRC 2012"
        raise PrepareError(f"{tar} has {what}; {_again(tar)}")
    return _in_order(split, ((each.name, each) for each in found))


def _in_order(split: str, examples: Iterable[tuple[object, T]]) -> list[T]:
    """Sorts (key, example) pairs as tensorflow-datasets does, and returns the examples."""

    def place(pair: tuple[object, T]) -> bytes:
        return hashlib.md5(f"{split}{pair[0]}".encode(), usedforsecurity=False).digest()

    return [example for _, example in sorted(examples, key=place)]


def _train(file: BinaryIO, tar: Path, numbers: dict[str, int]) -> Iterator[Member]:
    classes = tar_files(file, tar, 0, r"(?:.*/)?(n\d{8})\.tar", _again(tar))
    with progress_line(f"finding the images of {tar.name}", "classes", len(classes)) as advance:
        for wnid, offset, _ in classes:
            if wnid not in numbers:
                raise PrepareError(f"{tar} has the class {wnid}, which ILSVRC 2012 does not have")
            pattern = rf"(?:.*/)?({wnid}_\d+\.JPEG)"
            for name, place, size in tar_files(file, tar, offset, pattern, _again(tar)):
                yield Member(name, numbers[wnid], place, size)
            advance()


def _again(tar: Path) -> str:
    return f"download it again (its md5 is {MD5[tar.name]})"


def reader(tar: Path) -> Callable[[Member], bytes]:
    """Returns a thread-safe function that reads an image of `tar` as an RGB or grey JPEG.

    It converts ImageNet's 22 CMYK JPEGs and one PNG. It raises PrepareError if a file is corrupt
    or is neither a JPEG nor a PNG.
    """

    def read(member: Member) -> bytes:
        try:
            with tar.open("rb") as file:
                file.seek(member.offset)
                image = file.read(member.size)
            with opening(image) as (picture, _):
                kind, mode = picture.format, picture.mode
            if kind not in ("JPEG", "PNG"):
                raise ImageError("not an image: neither JPEG nor PNG")
            if kind == "JPEG" and mode in ("RGB", "L"):
                return image
            out = io.BytesIO()
            decode(image).save(out, "JPEG", quality=QUALITY, subsampling=0)
            return out.getvalue()
        except (ImageError, OSError) as error:
            raise PrepareError(f"{member.name} in {tar}: {error}; {_again(tar)}") from error

    return read


def _prepare_archive(builder: Any, downloads: Path, threads: int) -> None:
    """Prepare a set from the archive that its authors publish, downloaded to `downloads`."""
    cifar = getattr(builder, "_cifar_info", None)
    name = os.path.basename(cifar.url) if cifar else f"{builder.builder_config.dirname}.tgz"
    url, facts = next((u, i) for u, i in builder.url_infos.items() if u.endswith(f"/{name}"))
    known = f"sha256:{facts.checksum}"
    path = fetch([url], downloads.absolute() / name, known.replace(":", " "))
    folder = folder_of(builder).parent
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # The temporary file has no name, so it disappears even if the process is killed.
            tar = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            with gzip.open(path) as packed:
                shutil.copyfileobj(packed, tar)
        except OSError as error:
            raise PrepareError(f"cannot unpack {path} to {folder}: {error}") from error
        plans, size = ARCHIVES[builder.name](builder, path, tar), os.fstat(tar.fileno()).st_size
        write_set(builder.info, plans, origin=known, size=size, threads=threads)


def _cifar(builder: Any, path: Path, tar: BinaryIO) -> list[SplitPlan]:
    """Returns the plans for CIFAR-10 or CIFAR-100. Each row is its labels, then 3x32x32 bytes."""
    layout, features = builder._cifar_info, builder.info.features
    pattern = re.escape(layout.prefix) + "(.+)"
    files = {name: place for name, *place in tar_files(tar, path, 0, pattern)}
    keys, length = layout.label_keys, len(layout.label_keys) + 32 * 32 * 3
    for key, name in zip(keys, layout.label_files, strict=True):
        offset, size = files[name]
        features[key].names = os.pread(tar.fileno(), size, offset).decode().split()

    def split_plan(split: str, names: Sequence[str]) -> SplitPlan:
        places = [files[name][0] + at for name in names for at in range(0, files[name][1], length)]
        images = _in_order(split, enumerate(enumerate(places)))

        def record(index: int) -> bytes:
            number, place = images[index]
            row = os.pread(tar.fileno(), length, place)
            pixels = np.frombuffer(row, np.uint8, offset=len(keys)).reshape(3, 32, 32)
            image = io.BytesIO()
            Image.fromarray(pixels.transpose(1, 2, 0)).save(image, "PNG")
            example = {"id": f"{split}_{number:05d}", "image": image.getvalue()}
            return features.serialize_example(example | dict(zip(keys, row, strict=False)))

        return SplitPlan(split, boundaries(len(images), len(images) * length), record)

    return [split_plan("train", layout.train_files), split_plan("test", layout.test_files)]


def _imagenette(builder: Any, path: Path, tar: BinaryIO) -> list[SplitPlan]:
    """Returns the plans for a size of Imagenette: JPEG files in train/CLASS and val/CLASS."""
    features = builder.info.features

    def split_plan(split: str, folder: str) -> SplitPlan:
        pattern = rf"[^/]+/{folder}/(n\d+/[^/]+\.JPEG)"
        found = tar_files(tar, path, 0, pattern)
        images = _in_order(split, ((each[0].split("/")[1], each) for each in found))

        def record(index: int) -> bytes:
            name, place, size = images[index]
            image = os.pread(tar.fileno(), size, place)
            return features.serialize_example({"image": image, "label": name.split("/")[0]})

        return SplitPlan(split, boundaries(len(found), sum(size for *_, size in found)), record)

    return [split_plan("train", "train"), split_plan("validation", "val")]


# The sets that are made from the archives of their authors.
ARCHIVES = {"cifar10": _cifar, "cifar100": _cifar, "imagenette": _imagenette}
