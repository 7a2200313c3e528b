"""The tars of ImageNet's challenge of 2012 (ILSVRC), read without unpacking them.

The training tar holds a tar for each class, the validation tar the images themselves. As nothing
is compressed, every image is a stretch of its tar.
"""

import hashlib
import io
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from gnet_jax.data.decode import ImageError, decode, opening
from gnet_jax.data.prepare.shards import PrepareError
from gnet_jax.data.progress import progress_line

MD5 = {
    "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
}
TARS = dict(zip(("train", "validation"), MD5, strict=True))
IMAGES = {"train": 1_281_167, "validation": 50_000}
QUALITY = 100  # of the few images that are not stored as they come


class Member(NamedTuple):
    """An image in a tar."""

    name: str
    label: int
    offset: int  # of its first byte in the tar
    size: int  # in bytes


def find_tars(folder: Path) -> dict[str, Path]:
    """The tar of each split.

    Raises:
        PrepareError: if one is missing.
    """
    tars = {split: folder / name for split, name in TARS.items()}
    missing = " and no ".join(tar.name for tar in tars.values() if not tar.is_file())
    if missing:
        where = f"{folder.absolute()}" if folder.is_dir() else f"{folder}, for that is no folder"
        raise PrepareError(
            f"there is no {missing} in {where}; image-net.org/download-images gives them to those "
            "who sign in; name their folder with --manual-dir"
        )
    return tars


def members(
    split: str, tar: Path, class_names: Sequence[str], labels: Sequence[str]
) -> list[Member]:
    """The images of a split in the order in which tensorflow-datasets stores them.

    Args:
        class_names: WordNet ids in the order of the labels.
        labels: the WordNet id of each validation image, by the image's number less one.

    Raises:
        PrepareError: if the tar is damaged or holds no images of this challenge.
    """
    numbers = {wnid: number for number, wnid in enumerate(class_names)}
    find = {"train": _train, "validation": _validation}[split]
    with tar.open("rb") as file:
        found = list(find(file, tar, numbers, labels))
    by_name = {member.name: member for member in found}
    if len(by_name) < len(found):
        raise PrepareError(f"{tar} holds images of the same name; {again(tar)}")
    if not found:
        raise PrepareError(f"{tar} holds no images of ILSVRC 2012; {again(tar)}")
    return sorted(found, key=lambda member: _order(split, member.name))


def _order(split: str, name: str) -> bytes:
    """What tensorflow-datasets sorts the images by."""
    return hashlib.md5(f"{split}{name}".encode(), usedforsecurity=False).digest()


def _train(
    file: BinaryIO, tar: Path, numbers: dict[str, int], labels: Sequence[str]
) -> Iterator[Member]:
    classes = _files(file, tar, 0, r"(n\d{8})\.tar")
    with progress_line(f"finding the images of {tar.name}", "classes", len(classes)) as advance:
        for wnid, offset, size in classes:
            if wnid not in numbers:
                raise PrepareError(f"{tar} holds class {wnid}, which ILSVRC 2012 does not have")
            for name, place, length in _files(file, tar, offset, rf"({wnid}_\d+\.JPEG)"):
                if place + length > offset + size:
                    raise PrepareError(f"{tar} is damaged in {wnid}.tar; {again(tar)}")
                yield Member(name, numbers[wnid], place, length)
            advance()


def _validation(
    file: BinaryIO, tar: Path, numbers: dict[str, int], labels: Sequence[str]
) -> Iterator[Member]:
    for name, offset, size in _files(file, tar, 0, r"(ILSVRC2012_val_\d{8}\.JPEG)"):
        number = int(name[-13:-5])
        if not 1 <= number <= len(labels):
            raise PrepareError(f"{tar} holds {name}, but there are {len(labels):,} labels")
        yield Member(name, numbers[labels[number - 1]], offset, size)


def _files(file: BinaryIO, tar: Path, start: int, pattern: str) -> list[tuple[str, int, int]]:
    """Name, offset and size of the regular files of the tar that begins at byte `start` of `file`.

    Those whose name does not fit `pattern` are left out; the name is the pattern's group.
    """
    found = []
    matches = re.compile(rf"(?:.*/)?{pattern}").fullmatch
    try:
        file.seek(start)
        with tarfile.TarFile(fileobj=file) as archive:
            for member in archive:
                name = matches(member.name)
                if name and member.isreg():
                    found.append((name[1], member.offset_data, member.size))
            # Python takes a damaged header for the end; the true end is a block of zeros.
            file.seek(archive.offset)
            whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError) as error:
        raise PrepareError(f"{tar} is damaged or cut short ({error}); {again(tar)}") from error
    if not whole:
        raise PrepareError(
            f"{tar} is damaged or cut short at byte {archive.offset:,}; {again(tar)}"
        )
    return found


def again(tar: Path) -> str:
    """What to do about a tar that is not as it should be."""
    return f"download it again (its md5 is {MD5[tar.name]})"


def reader(tar: Path) -> Callable[[Member], bytes]:
    """A function that reads an image of `tar`, an RGB or grey JPEG, from any thread.

    The 22 images of ImageNet that are CMYK, and the one PNG, become RGB JPEGs; what an image is,
    is told by its content.

    Raises:
        PrepareError: the function, for an image that is none. The tars hold no such image, so the
            tar is damaged, and a set without the image would not be ImageNet.
    """

    def read(member: Member) -> bytes:
        try:
            with tar.open("rb") as file:
                file.seek(member.offset)
                image = file.read(member.size)
            return _rgb_jpeg(image)
        except (ImageError, OSError) as error:
            raise PrepareError(f"{member.name} in {tar} is {error}; {again(tar)}") from error

    return read


def _rgb_jpeg(image: bytes) -> bytes:
    with opening(image) as opened:
        kind, mode = opened.picture.format, opened.picture.mode
    if kind not in ("JPEG", "PNG"):
        raise ImageError("not an image: neither JPEG nor PNG")
    if kind == "JPEG" and mode in ("RGB", "L"):
        return image
    out = io.BytesIO()
    decode(image).save(out, "JPEG", quality=QUALITY, subsampling=0)
    return out.getvalue()
