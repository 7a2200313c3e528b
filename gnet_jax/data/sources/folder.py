"""Read folders of image files, and list every file that is skipped, with the reason."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np

from gnet_jax.config.paths import as_text, did_you_mean
from gnet_jax.data.sources import (
    DataError,
    Example,
    LeftOut,
    MissingSplitError,
    Split,
    digest,
    with_holdout,
)
from gnet_jax.data.sources.classes import in_order, joined, nfc, refuse_twice

_FORMATS = {"JPEG": ".jpg .jpeg .jpe .jfif", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp"}
_FORMATS |= {"GIF": ".gif", "TIFF": ".tif .tiff", "AVIF": ".avif", "JPEG2000": ".jp2 .j2k"}
_FORMATS |= {"PPM": ".ppm .pgm .pbm"}
# The suffixes of image files, and Pillow's name of each format.
SUFFIXES = {suffix: name for name, suffixes in _FORMATS.items() for suffix in suffixes.split()}
# Suffixes of image formats that are not supported. Users should know that these are skipped.
UNSUPPORTED = (
    ".heic .heif .hif .jxl .jxr .svg .psd .ico .tga .exr .hdr .dds .eps .raw .dng .cr2 .cr3 .nef "
    ".arw .orf .rw2 .raf .pef .apng .mpo .pnm .pam .dib .jpx .jpf .j2c .bpg .qoi .dcm .pcx"
)
# Lower-case names of files and folders that operating systems and tools create.
JUNK = (
    "@eadir|#recycle|__macosx|icon\r|thumbs.db|ehthumbs.db|ehthumbs_vista.db|desktop.ini|"
    "$recycle.bin|system volume information|lost+found|picasa.ini|__pycache__"
)
# The reasons for skipping an entry, most serious first, and what each means.
REASONS: Mapping[str, str] = {
    "broken link": "links to a missing or unreadable file; restore the file or delete the link",
    "unsupported format": "image formats that are not supported; convert them to JPEG or PNG",
    "outside a class": "image files that are not in a class folder; move them into one",
    "hidden": "names that start with a dot",
    "junk": "files and folders of the operating system or of tools",
    "other suffix": "files without the suffix of an image format",
    "not a file": "pipes, sockets and devices",
    "empty folder": "folders without any entry",
    "repeated folder": "links to a folder that is read elsewhere or contains the link",
    "other split": "splits that are not used",
}
IMAGES_LOST = tuple(REASONS)[:3]  # reasons that the user should fix, because images are skipped


class FolderSource:
    """Image files in `train/CLASS/`, `val/CLASS/` and, for evaluation only, `test/CLASS/`.

    See `walk` for the files that are read, and `in_order` for the order of the classes. If `train`
    exists, its classes come first in every split. Raises MissingSplitError if there is no folder
    for the split. Raises DataError if a folder cannot be listed, a class name occurs twice, the
    split has no images, or `train` has fewer than two classes or a class without images.
    """

    def __init__(self, root: Path, split: Split) -> None:
        self.root, self.split = root, split
        self.left_out: LeftOut = {}
        folder = str(root / split)
        found = _list_split(folder, self.left_out)
        if found is None:
            beside = sorted(path.name for path in root.glob("*") if path.is_dir())
            fix, tenth = "", with_holdout(f"folder:{root}")
            if split == "val" and "train" in beside:
                fix = f". To validate on a tenth of train, use {tenth}"
            elif beside and not {"train", "val", "test"} & {*beside}:
                fix = f". If these are classes, move them into {root / 'train'} and use {tenth}"
            raise MissingSplitError(
                f"{folder} not found{did_you_mean(root)}; images are expected in {split}/CLASS/. "
                f"Folders in {root}: {', '.join(beside[:9]) or 'none'}{fix}"
            )
        stray, class_folders, names = found
        if stray:
            self.left_out["outside a class"] = stray
        train = _list_split(str(root / "train"), {})
        self.class_names = joined(names if train is None else train[2], names)
        self._files: list[tuple[str, int]] = []  # path relative to the root, and label
        labels = {nfc(name): label for label, name in enumerate(self.class_names)}
        by_label = {labels[nfc(as_text(os.path.basename(top)))]: top for top in class_folders}
        for label, top in sorted(by_label.items()):
            files = list(walk(top, self.left_out, _refuse))
            if split == "train" and not files:
                self._refuse_empty(f"the class folder {top} has no image files", top)
            inside = f"{split}/{os.path.basename(top)}"
            self._files += [(f"{inside}{path[len(top) :]}", label) for path in files]
        if not self._files or (split == "train" and len(names) < 2):
            what = f"{folder} has {len(self._files)} image files in {len(names)} class folder(s)"
            self._refuse_empty(f"{what}; training requires 2 or more classes, evaluation 1", folder)
        self.labels = np.array([label for _, label in self._files])
        # If the labels have gaps, they depend on the classes of train, so the names are hashed too.
        # Without gaps they are not, because copies of a data set often lack empty class folders.
        present = np.unique(self.labels)
        self._numbered_by = self.class_names if present[-1] >= len(present) else ()

    def _refuse_empty(self, what: str, top: str) -> NoReturn:
        below = {
            reason: [path for path in paths if path.startswith(f"{top}/")]
            for reason, paths in self.left_out.items()
        }
        raise DataError(
            f"{what} (skipped: {counted(below) or 'nothing'}); supported suffixes: "
            f"{', '.join(SUFFIXES)}"
        )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        path, label = self._files[index]
        return Example((self.root / path).read_bytes(), label)

    def describe(self, index: int) -> str:
        """Returns the path of the file."""
        return str(self.root / self._files[index][0])

    def fingerprint(self) -> str:
        """Returns a hash of paths and file sizes, and of class names if labels have gaps (0, 2)."""
        split = len(self.split) + 1
        try:
            lines = [
                f"{path[split:]} {os.stat(self.root / path).st_size}\n" for path, _ in self._files
            ]
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
        return digest(*map(os.fsencode, (*lines, *self._numbered_by)))  # names may not be UTF-8


def _list_split(
    folder: str, left_out: LeftOut
) -> tuple[list[str], list[str], tuple[str, ...]] | None:
    """Returns (images outside classes, class folders, class names), or None without `folder`."""
    try:
        stray, class_folders = listing(folder, left_out)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        _refuse(error)
    names = in_order(as_text(os.path.basename(path)) for path in class_folders)
    refuse_twice(names, folder)
    return stray, class_folders, names


def _refuse(error: OSError) -> NoReturn:
    raise DataError(
        f"cannot list the folder {error.filename}: {error.strerror}; make it readable or move it "
        "out of the data"
    ) from error


def walk(top: str, left_out: LeftOut, onerror: Callable[[OSError], object]) -> Iterator[str]:
    """Yields the images in the folder `top`, sorted by name, and then those in its subfolders.

    Links are followed, and a folder that is reached twice is read once. The paths of the skipped
    files and folders are added to `left_out`; those of folders end with "/". If a folder cannot be
    listed, `onerror` is called with the error.
    """
    # Parents count as read: a link to one would give this class to images of other classes.
    around = {*Path(os.path.realpath(top)).parents, *Path(os.path.abspath(top)).parents}
    seen, waiting = set(map(_identity, around)), [top]
    while waiting:
        folder = waiting.pop()
        try:
            identity = _identity(folder)
            if identity in seen:
                left_out.setdefault("repeated folder", []).append(f"{folder}/")
                continue
            seen.add(identity)
            images, folders = listing(folder, left_out)
        except OSError as error:
            onerror(error)
            continue
        yield from images
        waiting += reversed(folders)


def listing(folder: str, left_out: LeftOut) -> tuple[list[str], list[str]]:
    """Returns the paths of the images and of the folders in `folder`, each sorted by name.

    A link is treated like its target. All other entries are added to `left_out`.
    """
    found: dict[str, list[str]] = {"image": [], "folder": []}
    with os.scandir(folder) as scanned:
        entries = sorted(scanned, key=lambda entry: entry.name)
    for entry in entries:
        kind = _kind(entry)
        slash = "/" if kind not in found and entry.is_dir(follow_symlinks=False) else ""
        (found if kind in found else left_out).setdefault(kind, []).append(entry.path + slash)
    if not entries:
        left_out.setdefault("empty folder", []).append(f"{folder}/")
    return found["image"], found["folder"]


def _kind(entry: os.DirEntry[str]) -> str:
    """Returns "image", "folder", or the reason (a key of `REASONS`) for skipping the entry."""
    if entry.name.lower() in JUNK.split("|"):
        return "junk"
    if entry.name.startswith("."):
        return "hidden"
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError:
        return "broken link"  # a link to itself, or into a folder without permission
    if is_folder:
        return "folder"
    if not is_file:
        return "not a file" if os.path.exists(entry.path) else "broken link"
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in SUFFIXES:
        return "image"
    return "unsupported format" if suffix in UNSUPPORTED.split() else "other suffix"


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def merged(parts: Iterable[Mapping[str, Iterable[str]]]) -> LeftOut:
    """Merges dicts of skipped paths by reason. Removes duplicates, and sorts as in `REASONS`."""
    found: dict[str, dict[str, None]] = {reason: {} for reason in REASONS}
    for part in parts:
        for reason, paths in part.items():
            found[reason] |= dict.fromkeys(paths)
    return {reason: list(paths) for reason, paths in found.items() if paths}


def counted(left_out: Mapping[str, list[str]]) -> str:
    """Returns the number of skipped entries by reason: "hidden 2, other suffix 1,204"."""
    return ", ".join(f"{reason} {len(paths):,}" for reason, paths in merged([left_out]).items())
