"""Folders of image files."""

import os
from collections.abc import Mapping
from pathlib import Path

from gnet_jax.data.sources.classes import in_order, joined, nfc, refuse_twice
from gnet_jax.data.sources.source import DataError, Example, MissingSplitError, Split, digest

SUFFIXES: Mapping[str, str] = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".avif": "AVIF",
    ".jp2": "JPEG2000",
    ".j2k": "JPEG2000",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pbm": "PPM",
}
"""What counts as an image file, and the format that Pillow calls its content."""


class FolderSource:
    """A folder `train/CLASS/*`, `val/CLASS/*` (and, to evaluate, `test/CLASS/*`) of image files.

    Classes are in alphabetical order, or in that of numbers if the names of all are integers. The
    other splits take those of `train` if there is one: they need not have images of each, and what
    they have besides comes last. Files of other suffixes than `SUFFIXES` are `left_out`.

    Raises:
        DataError: for a missing split, two names that differ in their Unicode form alone, and, of
            `train`, fewer than two classes or an empty one.
    """

    def __init__(self, root: Path, split: Split) -> None:
        folder = root / split
        if not folder.is_dir():
            raise MissingSplitError(
                f"there is no folder {folder}; images are looked for in {split}/CLASS/"
            )
        self.root, self.split = root, split
        names = _class_folders(folder)
        least, needed = (2, "2 are") if split == "train" else (1, "1 is")
        if len(names) < least:
            raise DataError(f"{folder} holds {len(names)} folder(s), one a class; {needed} needed")
        trained_on = root / "train"
        known = _class_folders(trained_on) if trained_on.is_dir() else names
        self.class_names = joined(known, names)
        own = {nfc(name): name for name in names}
        self._files: list[tuple[Path, int]] = []
        self.left_out: list[str] = []
        for label, name in enumerate(self.class_names):
            if nfc(name) not in own:
                continue
            name = own[nfc(name)]
            # Hidden files are such as the ._1.jpg that macOS leaves behind.
            files = [p for p in (folder / name).iterdir() if p.is_file() and p.name[0] != "."]
            images = sorted(path for path in files if path.suffix.lower() in SUFFIXES)
            if not images and split == "train":
                raise DataError(
                    f"the class folder {folder / name} holds no image files; known are "
                    f"{', '.join(SUFFIXES)}"
                )
            self._files += [(path, label) for path in images]
            self.left_out += [str(path) for path in sorted(set(files) - set(images))]
        if not self._files:
            raise DataError(f"{folder} holds no image files; known are {', '.join(SUFFIXES)}")
        present = {label for _, label in self._files}
        self.empty_classes = tuple(
            name for label, name in enumerate(self.class_names) if label not in present
        )
        # Where train's classes number those of this split otherwise, the files do not tell labels.
        self._numbered_by = () if self.class_names[: len(names)] == names else self.class_names

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        path, label = self._files[index]
        return Example(path.read_bytes(), label)

    def describe(self, index: int) -> str:
        """Its path."""
        return str(self._files[index][0])

    def relative_path(self, index: int) -> str:
        """SPLIT/CLASS/FILE: what stays when the folder moves."""
        return self._files[index][0].relative_to(self.root).as_posix()

    def fingerprint(self) -> str:
        """Hash of every file's class, name and length in bytes.

        A million files are not read at each start: bytes that changed under the same length show
        only in a manifest (`gnet check-data --manifest`).
        """
        lines = (
            f"{path.parent.name}/{path.name} {path.stat().st_size}\n" for path, _ in self._files
        )
        # A name need not be UTF-8.
        return digest(*map(os.fsencode, (*lines, *self._numbered_by)))


def _class_folders(folder: Path) -> tuple[str, ...]:
    names = in_order(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    refuse_twice(names, folder)
    return names
