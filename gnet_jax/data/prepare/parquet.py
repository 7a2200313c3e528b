"""Read image data sets in parquet files, and download those of the Hugging Face Hub."""

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gnet_jax.config.recipes import needs
from gnet_jax.data.class_names import read_class_names
from gnet_jax.data.prepare import rows
from gnet_jax.data.prepare.rows import RowOptions, RowSource, Table
from gnet_jax.data.prepare.shards import PrepareError

# The types that a column may have, as text.
IMAGE = r"(struct<(.*, )?bytes: )?(large_)?binary.*"
COLUMNS = {"image": IMAGE, "label": "u?int[0-9]+|(large_)?string|dictionary.*"}
# What reading names from JSON or YAML of another structure raises, also if it is not UTF-8.
MALFORMED = (AttributeError, KeyError, TypeError, ValueError, RecursionError)


def download(spec: str) -> Path:
    """Download the parquet files of a set on the Hugging Face Hub, and return their folder.

    `spec` is "OWNER/NAME" or "OWNER/NAME/FOLDER", and may end with "@REVISION". Files in the Hub's
    cache are not downloaded again. Raises PrepareError if the set has no parquet files.
    """
    found = re.fullmatch(r"([^/@]+/[^/@]+)(?:/([^@]+?)/?)?(?:@(.+))?", spec)
    if not found:
        raise PrepareError(f"the source is 'hf:{spec}', but must be hf:OWNER/NAME")
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError as error:
        raise PrepareError(needs(f"hf:{spec}", error, "hub")) from error
    options: Any = {"repo_type": "dataset", "revision": found[3]}
    start = f"{found[2]}/" if found[2] else ""
    try:
        names = HfApi().list_repo_files(found[1], **options)
        names = [name for name in names if name.startswith(start) and name.endswith(".parquet")]
        # Before the download, because it may refuse the set.
        rows.by_split((name.removeprefix(start) for name in names), f"hf:{spec}")
        wanted = [*names, "README.md"]
        return Path(snapshot_download(found[1], allow_patterns=wanted, **options), start)
    except PrepareError:
        raise
    except Exception as error:  # also the errors of its HTTP client, which depend on its version
        reason = " ".join(str(error).split())
        raise PrepareError(
            f"cannot download hf:{spec}: {reason}; if access is restricted, accept the terms on "
            "huggingface.co and run `hf auth login`"
        ) from error


def open_parquet(folder: Path, options: RowOptions) -> list[RowSource]:
    """Returns the splits of the set in `folder`.

    The images are bytes, or structs with the field "bytes". The labels are integers or text. Raises
    PrepareError if files are missing or corrupt, or if it is not clear which columns to read.
    """
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))
    splits, reader = rows.by_split(names, folder), _Reader()
    tables = {
        split: [_table(folder / name, folder, reader, options) for name in files]
        for split, files in splits.items()
    }
    return rows.open_rows(tables)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Yields the opened ParquetFile. Errors of reading it become a PrepareError."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise PrepareError(f"cannot read {path}: {reason}; copy it again") from error


def _table(path: Path, folder: Path, reader: "_Reader", options: RowOptions) -> Table:
    with _opened(path) as file:
        schema, about = file.schema_arrow, file.metadata
        try:
            classes = _declared_names((schema.metadata or {}).get(b"huggingface", b"{}"))
        except MALFORMED as error:
            if options.class_names is None:
                raise _no_names(f"the metadata `huggingface` of {path}", error) from error
            classes = {}
        image = _column(path, schema, "image", options.image_column, [])
        label = _column(path, schema, "label", options.label_column, [*classes])
        values = file.read([label]).column(label).to_pylist()
        ends = np.cumsum([about.row_group(i).num_rows for i in range(about.num_row_groups)])
    if options.class_names is not None:
        names = rows.unique(read_class_names(options.class_names), options.class_names)
    elif classes.get(label):
        names = rows.unique(classes[label], path)
    else:
        names = rows.unique(_card_names(folder, label), f"the card of {folder}")
    read = partial(reader, path, image, ends)
    return Table(path, names, values, read, "row {}".format, image)


def _column(path: Path, schema: Any, what: str, given: str | None, declared: list[str]) -> str:
    """Returns the column of the images or labels: `given`, `what`, or the only possible one."""
    possible = [field.name for field in schema if re.fullmatch(COLUMNS[what], str(field.type))]
    chosen = [what] if what in possible else declared or possible
    chosen = [name for name in possible if name == given] if given else chosen
    if len(chosen) != 1:
        raise PrepareError(
            f"{path} has {len(chosen)} columns of {what}s{f' named {given}' if given else ''}; "
            f"choose one with --{what}-column: {', '.join(chosen or possible)}"
        )
    return chosen[0]


def _card_names(folder: Path, column: str) -> list[str]:
    """Returns the class names of a column in the set's card, the header of README.md, if any.

    If the card describes several subsets, uses the one with the name of the folder; the subset
    "default" is in the folder data. Raises PrepareError if there is none and the subsets name the
    classes differently.
    """
    import yaml

    name = folder.absolute().name
    subset = "default" if name == "data" else name
    for card in (folder / "README.md", folder.parent / "README.md"):
        try:
            text = card.read_text("utf-8") if card.exists() else ""
            header = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
            about = yaml.safe_load(header[1]).get("dataset_info", []) if header else []
            infos = about if isinstance(about, list) else [about]
            own = [each for each in infos if each.get("config_name") == subset]
            found = [
                _by_label(feature["dtype"]["class_label"]["names"])
                for info in own or infos
                for feature in info.get("features", [])
                if feature["name"] == column and "class_label" in feature.get("dtype", "")
            ]
            if any(names != found[0] for names in found):
                raise ValueError(f"its subsets name the classes of {column!r} differently")
        except (*MALFORMED, OSError, yaml.YAMLError) as error:
            raise _no_names(card, error) from error
        if found:
            return found[0]
    return []


def _declared_names(metadata: bytes) -> dict[str, list[str]]:
    """Returns the class names by column, from the metadata that the library `datasets` writes.

    Columns without class names are left out. Raises one of `MALFORMED` if the metadata are invalid.
    """
    features = json.loads(metadata).get("info", {}).get("features", {})
    return {
        name: _by_label(kind.get("names", []))
        for name, kind in features.items()
        if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"
    }


def _no_names(where: object, error: Exception) -> PrepareError:
    reason = " ".join(str(error).split())
    return PrepareError(
        f"cannot read the class names in {where} ({type(error).__name__}: {reason}); use "
        "--class-names with a file of the names"
    )


def _by_label(names: Any) -> list[str]:
    """Returns the class names in a list, or in a dict whose keys are the labels 0, 1, 2, ...

    Raises one of `MALFORMED` if `names` is malformed.
    """
    if isinstance(names, dict):
        known = {int(label): name for label, name in names.items()}
        names = [known[label] for label in range(len(names))]
    if not isinstance(names, list):
        raise TypeError(f"the names are {names!r}, but must be a list, or a dict by label")
    for label, name in enumerate(names):
        if not isinstance(name, str):  # YAML reads an unquoted `no` as False
            raise TypeError(f"the name of label {label} is {name!r}, but must be text in quotes")
    return names


class _Reader(threading.local):
    """Reads images. Each thread keeps the row group that it has read last."""

    group: Any = None
    images: Any = None

    def __call__(self, path: Path, column: str, ends: np.ndarray, row: int) -> bytes | None:
        """Returns the image in a row, or None. `ends` are the numbers of rows up to each group."""
        number = int(np.searchsorted(ends, row, side="right"))
        if self.group != (path, number):
            with _opened(path) as file:
                self.images = file.read_row_group(number, [column]).column(0)
            self.group = path, number
        image = self.images[row - (int(ends[number - 1]) if number else 0)].as_py()
        return image["bytes"] if isinstance(image, dict) else image
