"""Read image data sets in WebDataset tars: KEY.jpg beside KEY.cls, or KEY.json with "label".

If both files have a label, that in KEY.cls is used.
"""

import json
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from gnet_jax.data.class_names import read_class_names
from gnet_jax.data.decode import ImageError
from gnet_jax.data.prepare import rows
from gnet_jax.data.prepare.rows import RowOptions, RowSource, Table
from gnet_jax.data.prepare.tars import tar_files
from gnet_jax.data.progress import progress_line
from gnet_jax.data.sources.folder import SUFFIXES


def open_webdataset(folder: Path, options: RowOptions) -> list[RowSource]:
    """Returns the splits of the set in `folder`, whose tars are not compressed.

    The class names are in classnames.txt or classes.txt, one on each line. Raises PrepareError if
    files are missing or corrupt.
    """
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*.tar")]
    splits = rows.by_split(paths, folder)
    listed = [folder / "classnames.txt", folder / "classes.txt"]
    file = options.class_names or next((file for file in listed if file.exists()), None)
    names = rows.unique(read_class_names(file), file) if file else []
    tables = defaultdict(list)
    with progress_line(f"reading the labels in {folder}", "files", len(paths)) as advance:
        for split, tars in splits.items():
            for tar in tars:
                tables[split].append(_table(folder / tar, names))
                advance()
    return rows.open_rows(tables)


def _table(path: Path, names: list[str]) -> Table:
    """Returns the rows of a tar: the keys that have an image or a label."""
    images = defaultdict[str, list[tuple[str, int, int]]](list)  # name, position in the tar, size
    labels: dict[str, Any] = {}
    with path.open("rb") as tar:
        for name, offset, size in tar_files(tar, path, 0, r"((?:.*/)?[^/.]+\.[^/]+)"):
            key, suffix = re.split(r"\.(?=[^/]+$)", name, maxsplit=1)
            if f".{suffix.lower()}" in SUFFIXES:
                images[key].append((name, offset, size))
            elif suffix in ("cls", "json"):
                label = _label(suffix, os.pread(tar.fileno(), size, offset))
                # A .json beside a .cls may have only metadata.
                if labels.get(key) is None or (suffix == "cls" and label is not None):
                    labels[key] = label
    keys = list(images | labels)

    def image(row: int) -> bytes | None:
        found = images.get(keys[row], [])
        if not found:
            return None
        if len(found) > 1:
            raise ImageError(f"there are several images: {', '.join(name for name, *_ in found)}")
        _, offset, size = found[0]
        with path.open("rb") as tar:
            return os.pread(tar.fileno(), size, offset)

    return Table(path, names, [labels.get(key) for key in keys], image, keys.__getitem__)


def _label(suffix: str, data: bytes) -> Any:
    """Returns the label in a .cls or .json file, or None if the file has none."""
    try:
        label = data.decode().strip() if suffix == "cls" else json.loads(data)["label"]
        number = isinstance(label, str) and re.fullmatch("[0-9]+", label)
        return None if isinstance(label, bool) else int(label) if number else label
    except (ValueError, KeyError, TypeError, RecursionError):  # also a number of 5,000 digits
        return None
