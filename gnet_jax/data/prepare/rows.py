"""Sets of labelled rows in files: sort the files by split, number the classes, skip bad rows."""

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from gnet_jax.data.batches import BadRecord, BadRecords, read_example
from gnet_jax.data.decode import ImageError, decode, opening
from gnet_jax.data.prepare.shards import PrepareError
from gnet_jax.data.progress import progress_line
from gnet_jax.data.sources import Example, LeftOut, digest
from gnet_jax.data.sources.classes import in_order, joined, listed, nfc, refuse_twice
from gnet_jax.data.sources.tfds import Shards

# The words in the path of a file that tell its split.
SPLITS = {"train": "train", "training": "train", "validation": "val", "valid": "val", "val": "val"}
SPLITS |= {"dev": "val", "test": "test", "testing": "test"}


class RowOptions(NamedTuple):
    """The options of `gnet prepare` for sets of rows."""

    image_column: str | None = None
    label_column: str | None = None
    class_names: Path | None = None  # a file with one name on each line
    bad_limit: float = 0.02  # largest fraction of the rows of a split that may be bad


class Table(NamedTuple):
    """The rows of one file."""

    path: Path
    names: Sequence[str]  # the classes that the file declares, if any
    labels: Sequence[Any]  # as they are in the file; `class_name` gives the class of each
    image: Callable[[int], bytes | None]  # returns a row's encoded image; may raise ImageError
    row_name: Callable[[int], str]
    image_column: str = "image"


class RowSource:
    """One split of a set of rows. Reading a row without a valid label or image is an ImageError."""

    def __init__(
        self, split: str, tables: Sequence[Table], class_names: tuple[str, ...], labels: np.ndarray
    ) -> None:
        self.split, self.class_names = split, class_names
        self.labels = labels  # -1 for a label that is not a class
        self.left_out: LeftOut = {}
        self._tables, self._rows = tables, np.arange(len(labels))
        self._shards = Shards([t.path for t in tables], [len(t.labels) for t in tables])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        table, row = self._locate(index)
        if self.labels[index] < 0:
            raise ImageError(f"the label is {table.labels[row]!r}, which is not a class")
        image = table.image(row)
        if not image:
            raise ImageError("there is no image")
        return Example(image, int(self.labels[index]))

    def describe(self, index: int) -> str:
        """Returns the example's row and file."""
        table, row = self._locate(index)
        return f"{table.row_name(row)} of {table.path}"

    def fingerprint(self) -> str:
        """Returns a hash of the files' names and sizes, the class names, the labels, and the column
        of the images, unless it is "image".
        """
        files = [(table.path.name, table.path.stat().st_size) for table in self._tables]
        columns = {table.image_column for table in self._tables} - {"image"}
        facts = (files, self.class_names, *sorted(columns))
        return digest(repr(facts).encode(), self.labels.astype("<i8"))

    def skip_bad(self, limit: float, decoded: bool) -> None:
        """Skip the bad rows from now on, and print each one.

        Images are decoded if `decoded` is true; otherwise, only their headers are read. Raises
        DataError if the fraction of bad rows is larger than `limit`.
        """
        bad = BadRecords(self, limit, on_new=lambda row: print(f"skipped {row}", file=sys.stderr))
        with progress_line(f"checking {self.split}", "rows", len(self)) as advance:
            for index in range(len(self)):
                try:
                    image = bytes(read_example(self, index).image)
                    with opening(image):
                        if decoded:
                            decode(image)
                except ImageError as error:
                    bad.add([BadRecord(index, self.describe(index), str(error))])
                advance()
        skipped = [record.index for record in bad]
        self.labels, self._rows = np.delete(self.labels, skipped), np.delete(self._rows, skipped)

    def _locate(self, index: int) -> tuple[Table, int]:
        file, row = self._shards.locate(int(self._rows[index]))
        return self._tables[file], row


def by_split(names: Iterable[str], where: object) -> dict[str, list[str]]:
    """Sorts the files of the set `where` by the last of `SPLITS` in each path; train comes first.

    All files are of the train split if no path tells a split. Raises PrepareError if there are
    several sets, no train split, or files that are missing or copied twice according to their names
    ("train-00001-of-00002.parquet").
    """
    if isinstance(where, Path) and not where.is_dir():
        raise PrepareError(f"the folder {where} is not found")
    found: dict[str, list[str]] = defaultdict(list)
    folders = set()
    for name in sorted(names):
        words = [word for word in re.findall("[a-z]+", name.lower()) if word in SPLITS]
        found[SPLITS[words[-1]] if words else ""].append(name)
        parts = PurePosixPath(name).parent.parts
        folders.add("/".join(part for part in parts if part.lower() not in SPLITS))
    if len(folders) > 1:
        sets = ", ".join(sorted(folders))
        raise PrepareError(f"{where} has several sets: {sets}; append one of them to the source")
    others = found.pop("", [])
    if others and found:
        print(f"skipped {len(others):,} files of other splits: {others[0]} ...", file=sys.stderr)
    splits = {split: found[split] for split in ("train", "val", "test") if split in found}
    splits = splits or {"train": others}
    if not splits.get("train"):
        raise PrepareError(f"{where} has no files of a train split; use another source")
    for split, files in splits.items():
        numbered: dict[int, str] = {}
        counts = set()
        for name in files:
            for number, count in re.findall(r"(\d+)-of-(\d+)", name):
                other = numbered.setdefault(int(number), name)
                if other != name:
                    raise PrepareError(
                        f"{where} has two files with the number {number}: {other} and {name}; "
                        "keep only one of them"
                    )
                counts.add(int(count))
        if counts - {len(files)}:
            raise PrepareError(
                f"the {split} split of {where} has {len(files):,} files, but must have "
                f"{max(counts):,} according to their names; copy the missing files"
            )
    return splits


def open_rows(tables: Mapping[str, Sequence[Table]]) -> list[RowSource]:
    """Returns a source for each split that has labels, and numbers the classes by name.

    Classes that the files do not declare are the labels in the files. Raises PrepareError if the
    train split has no rows.
    """
    names: tuple[str, ...] = ()
    sources = []
    for split, each in tables.items():
        labels = [
            nfc(class_name(label, table.names) or "") for table in each for label in table.labels
        ]
        if split == "train" and not labels:
            raise PrepareError(
                f"{each[0].path.parent} has no rows in its train split; copy its files again, or "
                "use another source"
            )
        for declared in {tuple(table.names): None for table in each}:
            names = joined(names, declared)
        if not any(table.names for table in each):
            # On the Hub, -1 means that the label is not published.
            names = joined(names, in_order(set(labels) - {"", "-1"}))
            print(f"no class names in {split}; using the labels: {listed(names)}", file=sys.stderr)
        numbers = {nfc(name): number for number, name in enumerate(names)}
        indices = np.array([numbers.get(label, -1) for label in labels], np.int64)
        source = RowSource(split, each, names, indices)
        if split == "train" or (source.labels >= 0).any():
            sources.append(source)
        else:
            print(f"skipped the {split} split, because it has no labels", file=sys.stderr)
    return sources


def class_name(label: int | str | None, names: Sequence[str]) -> str | None:
    """Returns the class that an integer label indexes in `names`, or any other label as text.

    Returns None if there is no label, or if `names` is not empty and has no such index.
    """
    if isinstance(label, int) and names:
        return names[label] if 0 <= label < len(names) else None
    return None if label is None else str(label).strip()


def unique(names: Iterable[str], where: object) -> list[str]:
    """Returns `names` without outer spaces. A repeated name gets its number: "crane (517)".

    Raises DataError if `where`, the file of the names, has a name in two Unicode forms.
    """
    found: dict[str, None] = {}
    for number, name in enumerate(map(str.strip, names)):
        while name in found:
            name = f"{name} ({number})"
        found[name] = None
    refuse_twice([*found], where)
    return list(found)
