"""Prepare data sets of tensorflow-datasets, and copy any data set with its images scaled down.

The tars of ILSVRC 2012 are read without unpacking them. The training tar contains an uncompressed
tar for each class, and the validation tar contains the images.
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

import numpy as np
from PIL import Image

from gnet_jax.config.paths import as_text, plain_path
from gnet_jax.config.recipes import needs
from gnet_jax.data.batches import read_example
from gnet_jax.data.decode import ImageError, decode, opening, shorter_side_size
from gnet_jax.data.prepare.shards import Format, PrepareError, SplitPlan, boundaries, write_set
from gnet_jax.data.progress import progress_line
from gnet_jax.data.sources import LeftOut, MissingSplitError, Source, digest, open_splits
from gnet_jax.data.sources.classes import refuse_unknown
from gnet_jax.data.sources.folder import merged
from gnet_jax.data.sources.tfds import TfdsSource, class_names, folder_of, is_prepared, open_builder

MD5 = {
    "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
}
IMAGES = {"train": 1_281_167, "validation": 50_000}
QUALITY = 100  # JPEG quality of the few ImageNet images that are converted
SMALL_QUALITY = 95  # JPEG quality of images that are scaled down
VERSION = "1.0.0"  # version of a copied set
FILE_RECORDS = 2048  # largest number of images in a file of a copied set
OVERHEAD = 80  # bytes of a record in addition to its image and the image's name
SPARE = 1.02  # upper limit of the prepared set's size, divided by the size of its tars


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
        else:
            _prepare_by_tfds(name, builder, manual_dir)
    return Prepared(Path(folder_of(builder)), _count(name, data_dir), {})


def _count(name: str, data_dir: Path | None) -> dict[str, int]:
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
            for name, offset, size in _files(file, tar, 0, r"(ILSVRC2012_val_\d{8}\.JPEG)"):
                number = int(name[-13:-5])
                if not 1 <= number <= len(labels):
                    known = f"only {len(labels):,} labels are known"
                    raise PrepareError(f"{tar} contains {name}, but {known}")
                found.append(Member(name, numbers[labels[number - 1]], offset, size))
    # tensorflow-datasets sorts by this hash.
    by_key = {
        hashlib.md5(f"{split}{each.name}".encode(), usedforsecurity=False).digest(): each
        for each in found
    }
    if not found or len(by_key) < len(found):
        what = "several images of the same name" if found else "no images of ILSVRC 2012"
        raise PrepareError(f"{tar} has {what}; {_again(tar)}")
    return [by_key[key] for key in sorted(by_key)]


def _train(file: BinaryIO, tar: Path, numbers: dict[str, int]) -> Iterator[Member]:
    classes = _files(file, tar, 0, r"(n\d{8})\.tar")
    with progress_line(f"finding the images of {tar.name}", "classes", len(classes)) as advance:
        for wnid, offset, _ in classes:
            if wnid not in numbers:
                raise PrepareError(f"{tar} has the class {wnid}, which ILSVRC 2012 does not have")
            for name, place, size in _files(file, tar, offset, rf"({wnid}_\d+\.JPEG)"):
                yield Member(name, numbers[wnid], place, size)
            advance()


def _files(file: BinaryIO, tar: Path, start: int, pattern: str) -> list[tuple[str, int, int]]:
    """Returns (name, offset, size) of each file matching `pattern` in the tar at byte `start`."""
    found = []
    try:
        file.seek(start)
        with tarfile.TarFile(fileobj=file) as archive:
            for member in archive:
                name = re.fullmatch(rf"(?:.*/)?{pattern}", member.name)
                if name and member.isreg():
                    found.append((name[1], member.offset_data, member.size))
            # Python also ends at a corrupt header, but the real end of a tar is a block of zeros.
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"at byte {archive.offset:,}")
    except (tarfile.TarError, OSError) as error:
        raise PrepareError(f"{tar} is corrupt or truncated ({error}); {_again(tar)}") from error
    return found


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


def pack(
    spec: str, out: Path, shorter: int, *, file_format: Format = "array_record", threads: int = 4
) -> Prepared:
    """Copy the data set `spec` to the folder `out`, and scale its images with `scaled_down`.

    The copy is named like the folder. An interrupted copy can be resumed. Raises PrepareError if
    the copy cannot be written or an image is corrupt. Raises DataError if the source is invalid,
    a label is out of range, or an image cannot be read.
    """
    import tensorflow_datasets as tfds

    if not re.fullmatch(r"[a-z][a-z0-9_]*", out.name):
        raise PrepareError(
            f"--out is named {out.name!r}; use lower-case letters, digits and _, as in flowers_256"
        )
    if out.name in tfds.list_builders(with_community_datasets=False):
        raise PrepareError(f"tensorflow-datasets already has a set named {out.name}; rename --out")
    sources, missing = open_splits(spec)
    if "train" in missing:
        raise missing["train"]
    train = sources[0]
    for source in sources[1:]:
        refuse_unknown(train, source, spec)
    for name in train.class_names:
        if name != name.strip() or not name:  # tensorflow-datasets would strip the spaces
            raise PrepareError(f"{spec} has the class {name!r}; remove the spaces around it")
    label = tfds.features.ClassLabel(names=list(train.class_names))
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": label})
    # The description has a hash of the source, so that a copy of other data is not taken for it.
    copied = digest(*(source.fingerprint().encode() for source in sources))
    folder = out.absolute() / VERSION
    about = f"{as_text(spec)}, shorter side at most {shorter} pixels; fingerprint {copied}"
    core: Any = tfds.core
    identity = core.dataset_info.DatasetIdentity(
        out.name, core.Version(VERSION), str(plain_path(folder)), module_name=""
    )
    info = core.DatasetInfo(builder=identity, features=features, description=about)
    info.set_file_format(file_format)
    if folder.exists():
        found = tfds.builder_from_directory(str(plain_path(folder))).info
        stored = found.as_proto.file_format
        if (found.description, stored) != (about, file_format):
            raise PrepareError(
                f"{out} already has a copy ({stored}) of {found.description}, but this would be a "
                f"copy ({file_format}) of {about}; delete {out}, or use another --out"
            )
    else:
        plans = [_plan(source, info.features, shorter) for source in sources]
        write_set(info, plans, origin=about, size=0, threads=threads)
    parent = out.absolute().parent
    left_out = merged(source.left_out for source in sources)
    return Prepared(folder, _count(out.name, parent), left_out)


def _plan(source: Source, features: Any, shorter: int) -> SplitPlan:
    split = source.split if source.split in ("train", "test") else "validation"

    def record(index: int) -> bytes:
        try:
            example = read_example(source, index)
            image = scaled_down(example.image, shorter)
        except ImageError as error:
            name = as_text(source.describe(index))
            raise PrepareError(f"{name}: {error}; fix or remove this image") from error
        return features.serialize_example({"image": image, "label": example.label})

    count = -(-len(source) // FILE_RECORDS)
    return SplitPlan(split, [len(source) * i // count for i in range(count + 1)], record)


def scaled_down(image: bytes | np.ndarray, shorter: int) -> bytes:
    """Returns an encoded image, scaled down if its shorter side has more than `shorter` pixels.

    A scaled image is antialiased and encoded as JPEG. An image that is not scaled is returned
    unchanged if it is encoded already, and encoded as PNG if it is an array.
    """
    picture = decode(image)
    out = io.BytesIO()
    if min(picture.size) > shorter:
        size = shorter_side_size(picture.size, shorter)
        picture.resize(size, Image.Resampling.BILINEAR).save(out, "JPEG", quality=SMALL_QUALITY)
    elif isinstance(image, bytes):
        return image
    else:
        picture.save(out, "PNG")
    return out.getvalue()
