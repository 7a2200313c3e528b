"""Folders of image files."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from gnet_jax.config.paths import as_text
from gnet_jax.data.sources.classes import in_order, joined, nfc, refuse_twice
from gnet_jax.data.sources.source import DataError, Example, MissingSplitError, Split, digest
from gnet_jax.data.sources.walk import SUFFIXES, LeftOut, counted, folders_above, listing, walk

# What a folder is called that was meant to be a split.
_ALIASES: Mapping[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}


class FolderSource:
    """A folder `train/CLASS/*`, `val/CLASS/*` (and, to evaluate, `test/CLASS/*`) of image files.

    Images may lie in folders below CLASS; `walk` tells which are read, and which entries are
    `left_out`. A folder's name need not be UTF-8; `as_text` makes the class name of it, the same
    one each time. Classes are in alphabetical order, or sorted as numbers if all names are
    integers. The other splits take the classes of `train` if it exists: they need not have images
    of each class, and the classes that `train` lacks come last.

    Raises:
        DataError: for a missing split, a folder that cannot be listed, two names that differ only
            in their Unicode form, a split without any image, and, in `train`, fewer than two
            classes or one without an image.
    """

    def __init__(self, root: Path, split: Split) -> None:
        self.root, self.split = root, split
        self.left_out: LeftOut = {}
        folder = root / split
        similar: list[str] = []
        try:
            similar = _similar(root, split)
            stray, class_folders = listing(str(folder), self.left_out)
            around = folders_above(str(folder))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _missing(folder, similar, error) from None
        except OSError as error:
            raise _unlisted(error) from error
        if stray:
            self.left_out["outside a class"] = stray
        if similar:
            self.left_out["like a split"] = similar

        names = _class_names(class_folders, folder)
        self.class_names = joined(_trained_on(root, names), names)
        least, needed = (2, "2 are") if split == "train" else (1, "1 is")
        if len(names) < least:
            raise DataError(
                f"{folder} holds {len(names)} folder(s), one a class; {needed} needed"
                f"{self._aside(str(folder))}"
            )
        self._files: list[tuple[str, int]] = []  # path from the root, and label
        folders = {nfc(as_text(os.path.basename(path))): path for path in class_folders}
        for label, name in enumerate(self.class_names):
            top, before = folders.get(nfc(name)), len(self._files)
            if top is None:
                continue
            inside = f"{split}/{os.path.basename(top)}"
            self._files += [
                (f"{inside}{path[len(top) :]}", label)
                for path in walk(top, self.left_out, _refuse, around)
            ]
            if len(self._files) == before and split == "train":
                raise DataError(
                    f"the class folder {top} holds no image files{self._aside(top)}; known are "
                    f"{', '.join(SUFFIXES)}"
                )
        if not self._files:
            raise DataError(f"{folder} holds no image files{self._aside(str(folder))}")
        self.labels = np.array([label for _, label in self._files])
        # With gaps in the labels, the files do not tell them: train's other classes do. An empty
        # folder, which copies often lose, makes no difference.
        present = np.unique(self.labels)
        gaps = present[-1] >= len(present)
        self._numbered_by = self.class_names if gaps else ()

    def _aside(self, top: str) -> str:
        """The end of an error: what is left out of the folder `top`."""
        inside = {
            reason: [path for path in paths if path.startswith(f"{top}/")]
            for reason, paths in self.left_out.items()
        }
        found = counted({reason: paths for reason, paths in inside.items() if paths})
        return f" (left out: {found})" if found else ""

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        path, label = self._files[index]
        return Example((self.root / path).read_bytes(), label)

    def describe(self, index: int) -> str:
        """Its path."""
        return str(self.root / self._files[index][0])

    def relative_path(self, index: int) -> str:
        """SPLIT/CLASS/FILE, or SPLIT/CLASS/FOLDER/FILE: what stays when the folder moves."""
        return self._files[index][0]

    def fingerprint(self) -> str:
        """Hash of every file's path below the split and its length in bytes.

        A million files are not read at each start: bytes that changed under the same length show
        only in a manifest (`gnet check-data --manifest`).

        Raises:
            DataError: if a file is gone.
        """
        split = len(self.split) + 1
        try:
            lines = [
                f"{path[split:]} {os.stat(self.root / path).st_size}\n" for path, _ in self._files
            ]
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
        # A name need not be UTF-8.
        return digest(*map(os.fsencode, (*lines, *self._numbered_by)))


def _class_names(class_folders: Iterable[str], folder: Path) -> tuple[str, ...]:
    """Returns the names of the classes in `folder`, in order."""
    names = in_order(as_text(os.path.basename(path)) for path in class_folders)
    refuse_twice(names, folder)
    return names


def _trained_on(root: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the classes of the train split in `root`; `names` if there is none."""
    folder = root / "train"
    try:
        return _class_names(listing(str(folder), {})[1], folder)
    except (FileNotFoundError, NotADirectoryError):
        return names
    except OSError as error:
        raise _unlisted(error) from error


def _similar(root: Path, split: Split) -> list[str]:
    """Returns the folders in `root` that look like another spelling of `split`."""
    own, words, found = root / split, _ALIASES[split], []
    with os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = entry.name.lower()
            alike = any(part in words for part in re.findall("[a-z]+", name))
            alike = alike or difflib.get_close_matches(name, words, cutoff=0.8)
            if alike and entry.name not in _ALIASES and (entry.is_symlink() or entry.is_dir()):
                found.append(entry.path)
    # Where case does not count, Train is train; a link may lead to the split itself.
    return [f"{path}/" for path in found if not _same(path, own)]


def _same(path: str, other: Path) -> bool:
    return os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)


def _missing(folder: Path, similar: list[str], error: OSError) -> DataError:
    """Returns the error for a split that is not there, as `error` says."""
    split = folder.name
    if isinstance(error, FileNotFoundError) and folder.is_symlink():
        return DataError(f"{folder} is a broken link to {os.readlink(folder)}; restore that")
    if similar:
        return DataError(
            f"there is no folder {folder}, but {similar[0]} looks like it; rename that to {split}"
        )
    return MissingSplitError(
        f"there is no folder {folder}; images are looked for in {split}/CLASS/"
    )


def _refuse(error: OSError) -> None:
    raise _unlisted(error) from error


def _unlisted(error: OSError) -> DataError:
    return DataError(
        f"the folder {error.filename} cannot be listed: {error.strerror}; make it readable, or "
        "move it out of the data"
    )
