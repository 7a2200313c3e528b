"""Read the tars of ImageNet's challenge of 2012 (ILSVRC) without unpacking them.

The training tar holds a tar for each class, the validation tar the images themselves. Nothing is
compressed, so every image is a range of bytes in its tar.
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
QUALITY = 100  # of the few images that are converted


class Member(NamedTuple):
    """An image in a tar."""

    name: str
    label: int
    offset: int  # of its first byte in the tar
    size: int  # in bytes


def find_tars(folder: Path) -> dict[str, Path]:
    """Returns the tar of each split.

    Raises:
        PrepareError: if one is missing.
    """
    tars = {split: folder / name for split, name in TARS.items()}
    missing = " and no ".join(tar.name for tar in tars.values() if not tar.is_file())
    if missing:
        raise PrepareError(
            f"there is no {missing} in {folder.absolute()}; register at "
            "image-net.org/download-images, and name the folder of the tars with --manual-dir"
        )
    return tars


def members(
    split: str, tar: Path, class_names: Sequence[str], labels: Sequence[str]
) -> list[Member]:
    """Returns the images of a split in the order in which tensorflow-datasets stores them.

    Args:
        split: "train" or "validation".
        tar: the tar of the split.
        class_names: WordNet ids in the order of the labels.
        labels: the WordNet id of each validation image, by the image's number less one.

    Raises:
        PrepareError: if the tar is corrupt or does not hold images of this challenge.
    """
    numbers = {wnid: number for number, wnid in enumerate(class_names)}
    with tar.open("rb") as file:
        if split == "train":
            found = list(_train(file, tar, numbers))
        else:
            found = list(_validation(file, tar, [numbers[wnid] for wnid in labels]))
    # tensorflow-datasets sorts by this hash.
    keys = [hashlib.md5(f"{split}{each.name}".encode(), usedforsecurity=False) for each in found]
    by_key = {key.digest(): member for key, member in zip(keys, found, strict=True)}
    if not found or len(by_key) < len(found):
        what = "images of the same name" if found else "no images of ILSVRC 2012"
        raise PrepareError(f"{tar} holds {what}; {again(tar)}")
    return [by_key[key] for key in sorted(by_key)]


def _train(file: BinaryIO, tar: Path, numbers: dict[str, int]) -> Iterator[Member]:
    classes = _files(file, tar, 0, r"(n\d{8})\.tar")
    with progress_line(f"finding the images of {tar.name}", "classes", len(classes)) as advance:
        for wnid, offset, size in classes:
            if wnid not in numbers:
                raise PrepareError(f"{tar} holds class {wnid}, which ILSVRC 2012 does not have")
            for name, place, length in _files(file, tar, offset, rf"({wnid}_\d+\.JPEG)"):
                if place + length > offset + size:
                    raise PrepareError(f"{tar} is corrupt in {wnid}.tar; {again(tar)}")
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
    matches = re.compile(rf"(?:.*/)?{pattern}").fullmatch
    try:
        file.seek(start)
        with tarfile.TarFile(fileobj=file) as archive:
            for member in archive:
                name = matches(member.name)
                if name and member.isreg():
                    found.append((name[1], member.offset_data, member.size))
            # Python takes a corrupt header for the end; the true end is a block of zeros.
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"at byte {archive.offset:,}")
    except (tarfile.TarError, OSError) as error:
        raise PrepareError(f"{tar} is corrupt or cut short ({error}); {again(tar)}") from error
    return found


def again(tar: Path) -> str:
    """Returns the fix for a corrupt tar."""
    return f"download it again (its md5 is {MD5[tar.name]})"


def reader(tar: Path) -> Callable[[Member], bytes]:
    """Returns a function that reads an image of `tar` as an RGB or grey JPEG, from any thread.

    The 22 CMYK images of ImageNet and its one PNG become RGB JPEGs. The function raises a
    PrepareError for a member that is not an image. The tars have none, so such a tar is corrupt,
    and a set without the image would not be ImageNet.
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
