"""Folders of image files."""

import os
from collections.abc import Mapping
from pathlib import Path

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

    Classes are in alphabetical order. Files of other suffixes than `SUFFIXES` are `left_out`.

    Raises:
        DataError: for a missing split, fewer than two classes, or an empty class.
    """

    def __init__(self, root: Path, split: Split) -> None:
        folder = root / split
        if not folder.is_dir():
            raise MissingSplitError(
                f"there is no folder {folder}; images are looked for in {split}/CLASS/"
            )
        self.root, self.split = root, split
        self.class_names = tuple(
            sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
        )
        if len(self.class_names) < 2:
            raise DataError(
                f"{folder} holds {len(self.class_names)} folder(s), one a class; 2 are needed"
            )
        self._files: list[tuple[Path, int]] = []
        self.left_out: list[str] = []
        for label, name in enumerate(self.class_names):
            # Hidden files are such as the ._1.jpg that macOS leaves behind.
            files = [p for p in (folder / name).iterdir() if p.is_file() and p.name[0] != "."]
            images = sorted(path for path in files if path.suffix.lower() in SUFFIXES)
            if not images:
                raise DataError(
                    f"the class folder {folder / name} holds no image files; known are "
                    f"{', '.join(SUFFIXES)}"
                )
            self._files += [(path, label) for path in images]
            self.left_out += [str(path) for path in sorted(set(files) - set(images))]

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
        return digest(*map(os.fsencode, lines))  # a name need not be UTF-8
