"""Folders of image files."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np

from gnet_jax.config.paths import as_text
from gnet_jax.data.sources import DataError, Example, LeftOut, MissingSplitError, Split, digest
from gnet_jax.data.sources.classes import in_order, joined, nfc, refuse_twice
from gnet_jax.data.sources.walk import SUFFIXES, counted, folders_above, listing, walk

# Names of folders that were probably meant to be a split.
_ALIASES: Mapping[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}


class FolderSource:
    """Image files in `train/CLASS/`, `val/CLASS/` and, to evaluate, `test/CLASS/`.

    See `walk` for the files that are read, and `in_order` for the order of the classes. The other
    splits take the classes of `train` if it exists; they may lack images of some, and classes that
    `train` lacks come last.

    Raises:
        MissingSplitError: if there is no folder for the split.
        DataError: for a folder that cannot be listed, a class name that occurs twice, a split
            without images and, in `train`, fewer than two classes or a class without images.
    """

    def __init__(self, root: Path, split: Split) -> None:
        self.root, self.split = root, split
        self.left_out: LeftOut = {}
        folder = str(root / split)
        similar: list[str] = []
        try:
            similar = _similar(root, split)
            stray, class_folders = listing(folder, self.left_out)
            around = folders_above(folder)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _missing(root / split, similar, error) from None
        except OSError as error:
            _refuse(error)
        if stray:
            self.left_out["outside a class"] = stray
        if similar:
            self.left_out["like a split"] = similar

        names = _class_names(class_folders, folder)
        self.class_names = joined(_train_classes(root, names), names)
        needed = 2 if split == "train" else 1
        if len(names) < needed:
            raise DataError(
                f"{folder} requires at least {needed} class folder(s), but holds {len(names)}"
                f"{self._left_out_below(folder)}"
            )
        self._files: list[tuple[str, int]] = []  # path relative to the root, and label
        labels = {nfc(name): label for label, name in enumerate(self.class_names)}
        for top in sorted(class_folders, key=lambda top: labels[_class_name(top)]):
            files = list(walk(top, self.left_out, _refuse, around))
            if not files and split == "train":
                raise DataError(
                    f"the class folder {top} holds no image files{self._left_out_below(top)}; "
                    f"known suffixes: {', '.join(SUFFIXES)}"
                )
            inside = f"{split}/{os.path.basename(top)}"
            label = labels[_class_name(top)]
            self._files += [(f"{inside}{path[len(top) :]}", label) for path in files]
        if not self._files:
            raise DataError(f"{folder} holds no image files{self._left_out_below(folder)}")
        self.labels = np.array([label for _, label in self._files])
        # If labels have gaps, they depend on the classes of train, not on this split's files
        # alone. An empty class folder, which copies often lose, changes nothing.
        present = np.unique(self.labels)
        self._numbered_by = self.class_names if present[-1] >= len(present) else ()

    def _left_out_below(self, top: str) -> str:
        """Returns the end of an error: the number of entries below `top` that are left out."""
        below = {
            reason: [path for path in paths if path.startswith(f"{top}/")]
            for reason, paths in self.left_out.items()
        }
        return f" (left out: {counted(below)})" if any(below.values()) else ""

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        path, label = self._files[index]
        return Example((self.root / path).read_bytes(), label)

    def describe(self, index: int) -> str:
        """Returns its path."""
        return str(self.root / self._files[index][0])

    def relative_path(self, index: int) -> str:
        """Returns SPLIT/CLASS/.../FILE, which stays the same when the root moves."""
        return self._files[index][0]

    def fingerprint(self) -> str:
        """Returns a hash of every file's path below the split and its length in bytes.

        It reads no file, so only a manifest (`gnet check-data --manifest`) notices content that
        changed without changing its length.

        Raises:
            DataError: if a file is missing.
        """
        split = len(self.split) + 1
        try:
            lines = [
                f"{path[split:]} {os.stat(self.root / path).st_size}\n" for path, _ in self._files
            ]
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
        return digest(*map(os.fsencode, (*lines, *self._numbered_by)))  # names may not be UTF-8


def _class_name(folder: str) -> str:
    return nfc(as_text(os.path.basename(folder)))


def _class_names(class_folders: Iterable[str], folder: str) -> tuple[str, ...]:
    """Returns the names of the classes in `folder`, in order."""
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


def _similar(root: Path, split: Split) -> list[str]:
    """Returns the folders in `root` whose names look like another spelling of `split`."""
    own, aliases, found = root / split, _ALIASES[split], []
    with os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = entry.name.lower()
            alike = not set(re.findall("[a-z]+", name)).isdisjoint(aliases)
            alike = alike or difflib.get_close_matches(name, aliases, cutoff=0.8)
            if alike and entry.name not in _ALIASES and (entry.is_symlink() or entry.is_dir()):
                found.append(entry.path)
    # On a disk that ignores case Train is train; a link may lead to the split itself.
    if own.exists():
        found = [path for path in found if not (os.path.exists(path) and own.samefile(path))]
    return [f"{path}/" for path in found]


def _missing(folder: Path, similar: list[str], error: OSError) -> DataError:
    """Returns the error for a missing split."""
    split = folder.name
    if isinstance(error, FileNotFoundError) and folder.is_symlink():
        return DataError(f"{folder} is a broken link to {os.readlink(folder)}; restore its target")
    if similar:
        return DataError(f"{folder} not found; rename {similar[0]} to {split} if it is that split")
    return MissingSplitError(f"{folder} not found; images are expected in {split}/CLASS/")


def _refuse(error: OSError) -> NoReturn:
    raise DataError(
        f"cannot list the folder {error.filename}: {error.strerror}; make it readable or move it "
        "out of the data"
    ) from error
