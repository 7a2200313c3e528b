"""The walk over a folder of images: every entry is an image, or is counted under a reason."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from gnet_jax.data.sources import LeftOut

# The suffixes of image files, with Pillow's name of the format.
SUFFIXES: Mapping[str, str] = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".avif": "AVIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".jp2": "JPEG2000",
    ".j2k": "JPEG2000",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pbm": "PPM",
}

# Image files too, which someone meant to be read.
_UNSUPPORTED = (
    ".heic .heif .hif .jxl .jxr .svg .psd .ico .tga .exr .hdr .dds .eps .raw .dng .cr2 .cr3 .nef "
    ".arw .orf .rw2 .raf .pef .apng .mpo .pnm .pam .dib .jif .jfi .jpx .jpf .j2c .jpc .bpg .qoi "
    ".dcm .pcx"
)
UNSUPPORTED = frozenset(_UNSUPPORTED.split())
# Names, in lower case, that operating systems and tools create; see also "hidden".
_JUNK = (
    "@eadir|#recycle|__macosx|icon\r|thumbs.db|ehthumbs.db|ehthumbs_vista.db|desktop.ini|"
    "$recycle.bin|system volume information|lost+found|picasa.ini|__pycache__"
)
JUNK = frozenset(_JUNK.split("|"))

REASONS: Mapping[str, str] = {
    "broken link": "links to a missing or unreadable file; restore the file or delete the link",
    "unsupported format": "image formats that are not read; convert them to JPEG or PNG",
    "outside a class": "image files beside the class folders; move them into one",
    "hidden": "names that start with a dot",
    "junk": "files and folders of the system or of a tool",
    "other suffix": "files without the suffix of an image",
    "not a file": "pipes, sockets and devices",
    "empty folder": "folders without any entry",
    "repeated folder": "links to a folder that is already read or contains them",
    "other split": "splits that are not read",
}
"""Why an entry is not read, most serious first, and what that means."""

IMAGES_LOST: tuple[str, ...] = tuple(REASONS)[:3]
"""The reasons under which images are left out that someone meant to be read."""


def walk(top: str, left_out: LeftOut, onerror: Callable[[OSError], object]) -> Iterator[str]:
    """Yields the path of every image in the folder `top` and below it.

    The images of a folder come before those of its subfolders, both sorted by name. Links are
    followed; a folder that is reached twice is read once. `left_out` receives the other entries; a
    skipped folder is one, and its name ends in "/". `onerror` gets a folder that cannot be listed.
    """
    seen, waiting = set(map(_identity, Path(os.path.realpath(top)).parents)), [top]
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

    A link counts as its target. `left_out` receives all other entries.
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
    """Returns "image", "folder", or the reason why the entry is left out."""
    if entry.name.lower() in JUNK:
        return "junk"
    if entry.name.startswith("."):
        return "hidden"
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError:
        if not entry.is_symlink():
            raise
        return "broken link"  # to itself, or into a folder that may not be entered
    if is_folder:
        return "folder"
    if not is_file:
        return "not a file" if os.path.exists(entry.path) else "broken link"
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in SUFFIXES:
        return "image"
    return "unsupported format" if suffix in UNSUPPORTED else "other suffix"


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def merged(parts: Iterable[Mapping[str, Iterable[str]]]) -> LeftOut:
    """Returns the entries of all `parts`, each path once, in the order of `REASONS`."""
    parts = list(parts)
    found = {
        reason: list(dict.fromkeys(path for part in parts for path in part.get(reason, ())))
        for reason in REASONS
    }
    return {reason: paths for reason, paths in found.items() if paths}


def counted(left_out: Mapping[str, list[str]]) -> str:
    """Returns the reasons with their counts, such as "hidden 2, other suffix 1,204"."""
    return ", ".join(f"{reason} {len(paths):,}" for reason, paths in merged([left_out]).items())
