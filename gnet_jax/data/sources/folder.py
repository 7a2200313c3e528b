"""Folders of image files."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import numpy as np

from gnet_jax.config.paths import as_text
from gnet_jax.data.sources import DataError, Example, LeftOut, MissingSplitError, Split, digest
from gnet_jax.data.sources.classes import in_order, joined, nfc, refuse_twice
from gnet_jax.data.sources.walk import SUFFIXES, counted, listing, walk


class FolderSource:
    """Image files in `train/CLASS/`, `val/CLASS/` and, to evaluate, `test/CLASS/`.

    See `walk` for the files that are read, and `in_order` for the order of the classes. The other
    splits take the classes of `train` if it exists; they may lack images of some, and classes that
    `train` lacks come last. Raises MissingSplitError if there is no folder for the split, and
    DataError for a folder that cannot be listed, a class name that occurs twice, a split without
    images and, in `train`, fewer than two classes or a class without images.
    """

    def __init__(self, root: Path, split: Split) -> None:
        self.root, self.split = root, split
        self.left_out: LeftOut = {}
        folder = str(root / split)
        try:
            stray, class_folders = listing(folder, self.left_out)
        except (FileNotFoundError, NotADirectoryError):
            beside = sorted(path.name for path in root.glob("*") if path.is_dir())
            raise MissingSplitError(
                f"{folder} not found; images are expected in {split}/CLASS/. Folders in {root}: "
                f"{', '.join(beside[:9]) or 'none'}"
            ) from None
        except OSError as error:
            _refuse(error)
        if stray:
            self.left_out["outside a class"] = stray
        names = _class_names(class_folders, folder)
        self.class_names = joined(_train_classes(root, names), names)
        self._files: list[tuple[str, int]] = []  # path relative to the root, and label
        labels = {nfc(name): label for label, name in enumerate(self.class_names)}
        by_label = {labels[nfc(as_text(os.path.basename(top)))]: top for top in class_folders}
        for label, top in sorted(by_label.items()):
            files = list(walk(top, self.left_out, _refuse))
            if split == "train" and not files:
                self._refuse_empty(f"the class folder {top} holds no image files", top)
            inside = f"{split}/{os.path.basename(top)}"
            self._files += [(f"{inside}{path[len(top) :]}", label) for path in files]
        if not self._files or (split == "train" and len(names) < 2):
            what = f"{folder} holds {len(self._files)} image files in {len(names)} class folder(s)"
            self._refuse_empty(f"{what}; training requires 2, evaluation 1", folder)
        self.labels = np.array([label for _, label in self._files])
        # If labels have gaps, they depend on the classes of train, not on this split's files
        # alone. An empty class folder, which copies often lose, changes nothing.
        present = np.unique(self.labels)
        self._numbered_by = self.class_names if present[-1] >= len(present) else ()

    def _refuse_empty(self, what: str, top: str) -> NoReturn:
        below = {
            reason: [path for path in paths if path.startswith(f"{top}/")]
            for reason, paths in self.left_out.items()
        }
        raise DataError(
            f"{what} (left out: {counted(below) or 'nothing'}); known suffixes: "
            f"{', '.join(SUFFIXES)}"
        )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        path, label = self._files[index]
        return Example((self.root / path).read_bytes(), label)

    def describe(self, index: int) -> str:
        """Returns its path."""
        return str(self.root / self._files[index][0])

    def fingerprint(self) -> str:
        """Returns a hash of every file's path below the split and its length in bytes.

        Labels that depend on other splits are hashed too.
        """
        split = len(self.split) + 1
        try:
            lines = [
                f"{path[split:]} {os.stat(self.root / path).st_size}\n" for path, _ in self._files
            ]
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
        return digest(*map(os.fsencode, (*lines, *self._numbered_by)))  # names may not be UTF-8


def _class_names(class_folders: Iterable[str], folder: str) -> tuple[str, ...]:
    names = in_order(as_text(os.path.basename(path)) for path in class_folders)
    refuse_twice(names, folder)
    return names


def _train_classes(root: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the classes of the train split in `root`; `names` if there is none."""
    folder = str(root / "train")
    try:
        return _class_names(listing(folder, {})[1], folder)
    except (FileNotFoundError, NotADirectoryError):
        return names
    except OSError as error:
        _refuse(error)


def _refuse(error: OSError) -> NoReturn:
    raise DataError(
        f"cannot list the folder {error.filename}: {error.strerror}; make it readable or move it "
        "out of the data"
    ) from error
