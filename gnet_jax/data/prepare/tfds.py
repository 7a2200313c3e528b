"""Prepare sets of tensorflow-datasets: ImageNet from its tars, others by the library itself.

The tars of ILSVRC 2012 are read without unpacking them. The training tar holds a tar for each
class, the validation tar the images; nothing is compressed, so every image is a range of bytes.
"""

import contextlib
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gnet_jax.config.paths import plain_path
from gnet_jax.config.recipes import needs
from gnet_jax.data.decode import ImageError, decode, opening
from gnet_jax.data.prepare.shards import Format, PrepareError, SplitPlan, boundaries, write_set
from gnet_jax.data.progress import progress_line
from gnet_jax.data.sources import LeftOut, MissingSplitError
from gnet_jax.data.sources.tfds import TfdsSource, class_names, folder_of, is_prepared, open_builder

MD5 = {
    "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
}
IMAGES = {"train": 1_281_167, "validation": 50_000}
QUALITY = 100  # of the few images that are converted
OVERHEAD = 80  # bytes of an example in addition to its image and the image's name
SPARE = 1.02  # size of a set on disk / size of its tars, at most


class Prepared(NamedTuple):
    """A prepared set."""

    folder: Path
    images: dict[str, int]  # of each split
    left_out: LeftOut  # files of the source that a copy leaves out


class Member(NamedTuple):
    """An image in a tar."""

    name: str
    label: int
    offset: int  # of its first byte in the tar
    size: int  # in bytes


def prepare(
    name: str,
    *,
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
    file_format: Format = "array_record",
    subset: bool = False,
    threads: int = 4,
) -> Prepared:
    """Prepare a set such as "imagenet2012" or "mnist:3.0.1" unless it exists, and check it.

    imagenet2012 is made from its tars in `manual_dir` without TensorFlow, and a killed call is
    resumed by the next; `subset` accepts tars with only a part of the images. Other sets are
    prepared by tensorflow-datasets, which mostly requires TensorFlow and starts from scratch each
    time. Raises PrepareError if a set cannot be prepared, and DataError if it is unknown, not image
    classification, or incomplete.
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

    config = tfds.download.DownloadConfig(manual_dir=manual_dir and plain_path(manual_dir))
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
    tars = [manual_dir / name for name in MD5]
    missing = " and no ".join(tar.name for tar in tars if not tar.is_file())
    if missing:
        raise PrepareError(
            f"there is no {missing} in {manual_dir.absolute()}; register at "
            "image-net.org/download-images, and name the folder of the tars with --manual-dir"
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
            f"{tar} holds {len(images):,} images, but ILSVRC 2012 has {IMAGES[split]:,}; "
            f"{_again(tar)}, or accept these with --subset"
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
    """Returns the images of a split in the order in which tensorflow-datasets stores them.

    `class_names` are the WordNet ids in the order of the labels, `labels` the WordNet id of each
    validation image, by the image's number less one.
    """
    numbers = {wnid: number for number, wnid in enumerate(class_names)}
    with tar.open("rb") as file:
        if split == "train":
            found = list(_train(file, tar, numbers))
        else:
            found = list(_validation(file, tar, [numbers[wnid] for wnid in labels]))
    # tensorflow-datasets sorts by this hash.
    by_key = {
        hashlib.md5(f"{split}{each.name}".encode(), usedforsecurity=False).digest(): each
        for each in found
    }
    if not found or len(by_key) < len(found):
        what = "images of the same name" if found else "no images of ILSVRC 2012"
        raise PrepareError(f"{tar} holds {what}; {_again(tar)}")
    return [by_key[key] for key in sorted(by_key)]


def _train(file: BinaryIO, tar: Path, numbers: dict[str, int]) -> Iterator[Member]:
    classes = _files(file, tar, 0, r"(n\d{8})\.tar")
    with progress_line(f"finding the images of {tar.name}", "classes", len(classes)) as advance:
        for wnid, offset, size in classes:
            if wnid not in numbers:
                raise PrepareError(f"{tar} holds class {wnid}, which ILSVRC 2012 does not have")
            for name, place, length in _files(file, tar, offset, rf"({wnid}_\d+\.JPEG)"):
                if place + length > offset + size:
                    raise PrepareError(f"{tar} is corrupt in {wnid}.tar; {_again(tar)}")
                yield Member(name, numbers[wnid], place, length)
            advance()


def _validation(file: BinaryIO, tar: Path, labels: Sequence[int]) -> Iterator[Member]:
    for name, offset, size in _files(file, tar, 0, r"(ILSVRC2012_val_\d{8}\.JPEG)"):
        number = int(name[-13:-5])
        if not 1 <= number <= len(labels):
            raise PrepareError(f"{tar} holds {name}, but there are {len(labels):,} labels")
        yield Member(name, labels[number - 1], offset, size)


def _files(file: BinaryIO, tar: Path, start: int, pattern: str) -> list[tuple[str, int, int]]:
    """Returns name, offset and size of the regular files in the tar that starts at byte `start`.

    The name is the group of `pattern`; files whose name does not match are left out.
    """
    found = []
    try:
        file.seek(start)
        with tarfile.TarFile(fileobj=file) as archive:
            for member in archive:
                name = re.fullmatch(rf"(?:.*/)?{pattern}", member.name)
                if name and member.isreg():
                    found.append((name[1], member.offset_data, member.size))
            # Python takes a corrupt header for the end; the true end is a block of zeros.
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"at byte {archive.offset:,}")
    except (tarfile.TarError, OSError) as error:
        raise PrepareError(f"{tar} is corrupt or cut short ({error}); {_again(tar)}") from error
    return found


def _again(tar: Path) -> str:
    return f"download it again (its md5 is {MD5[tar.name]})"


def reader(tar: Path) -> Callable[[Member], bytes]:
    """Returns a function that reads an image of `tar` as an RGB or grey JPEG, from any thread.

    The 22 CMYK images of ImageNet and its one PNG become RGB JPEGs. The function raises
    PrepareError for a member that is not an image, because the tars have none.
    """

    def read(member: Member) -> bytes:
        try:
            with tar.open("rb") as file:
                file.seek(member.offset)
                image = file.read(member.size)
            with opening(image) as opened:
                kind, mode = opened.picture.format, opened.picture.mode
            if kind not in ("JPEG", "PNG"):
                raise ImageError("not an image: neither JPEG nor PNG")
            if kind == "JPEG" and mode in ("RGB", "L"):
                return image
            out = io.BytesIO()
            decode(image).save(out, "JPEG", quality=QUALITY, subsampling=0)
            return out.getvalue()
        except (ImageError, OSError) as error:
            raise PrepareError(f"{member.name} in {tar} is {error}; {_again(tar)}") from error

    return read
