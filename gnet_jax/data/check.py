"""Check a data set: find corrupt, unusual and duplicate images, and compare class sizes."""

import contextlib
import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gnet_jax.config.paths import as_text
from gnet_jax.data.batches import BadRecord, prefetched
from gnet_jax.data.decode import ImageError, decode, opening
from gnet_jax.data.progress import progress_line
from gnet_jax.data.sources import LeftOut, Source, open_splits, with_holdout
from gnet_jax.data.sources.folder import IMAGES_LOST, REASONS, SUFFIXES, counted, merged

SMALL_SIDE = 32  # pixels; an image with a shorter side is reported
LONG_ASPECT = 4  # longer side / shorter side; an image with a larger ratio is reported
NAMED = 10  # items listed for each kind of error: corrupt images, wrong labels, duplicates
ODD_NAMED = 3  # items listed for each unusual property, and for each reason for skipping a file
ROWS = 30  # classes in the table; with more, it has the smallest and the largest classes


class Facts(NamedTuple):
    """The result of inspecting one example."""

    label: int | None  # None if the example cannot be read
    digest: bytes  # hash of the image's bytes; empty if they cannot be read
    size: tuple[int, int] | None  # (width, height) of the upright image; None if `bad` is set
    bad: str | None  # why the example cannot be used; None if it can
    odd: Sequence[tuple[str, str]] = ()  # kind and detail of each unusual property


def inspect(source: Source, index: int) -> Facts:
    """Returns the facts about an example. If it is corrupt or unreadable, `bad` says why."""
    label, digest = None, b""
    try:
        image, label = source[index]
        data = image if isinstance(image, bytes) else str(image.shape).encode() + image.tobytes()
        digest = hashlib.sha256(data).digest()[:16]
        size = decode(image).size
    except OSError as error:
        return Facts(label, digest, None, f"cannot be read: {error.strerror or error}")
    except ImageError as error:
        return Facts(label, digest, None, str(error))
    if isinstance(image, bytes):
        odd = _odd_encoding(image, source.describe(index))
    else:
        odd = [("grey", "")] if image.ndim == 2 else []
    short, long, text = *sorted(size), f"{size[0]}x{size[1]}"
    if short < SMALL_SIDE:
        odd.append((f"a side below {SMALL_SIDE} pixels", text))
    if long > LONG_ASPECT * short:
        odd.append((f"longer than {LONG_ASPECT} : 1", text))
    return Facts(label, digest, size, None, odd)


def _odd_encoding(image: bytes, name: str) -> list[tuple[str, str]]:
    with opening(image) as (picture, file):
        expected = SUFFIXES.get(PurePath(name).suffix.lower(), picture.format)
        mode, sixteen = picture.mode, picture.mode.startswith("I;16")
        # Pillow shows that colour channels have 16 bits only in its raw mode.
        raw = str(picture.tile[0].args) if picture.tile else ""
        pictures = 1
        with contextlib.suppress(Exception):  # counting fails if a later picture is corrupt
            pictures = getattr(picture, "n_frames", 1)
        kinds = {
            "a format other than its suffix says": picture.format != expected,
            "CMYK": mode == "CMYK",
            "grey": mode in ("1", "L", "LA", "I") or sixteen,
            "palette": mode in ("P", "PA"),
            "transparent": mode in ("RGBA", "LA", "PA") or "transparency" in picture.info,
            f"{file.bits} bit": mode == "I" or sixteen or ";16" in raw,
            "turned by EXIF": file.orientation > 1,
            "several pictures": pictures > 1,
        }
        detail = str(picture.format)
    odd = [kind for kind, holds in kinds.items() if holds]
    return [(kind, detail if kind.startswith("a format") else "") for kind in odd]


@dataclasses.dataclass
class SplitScan:
    """The findings in one split."""

    split: str
    images: int
    class_names: tuple[str, ...]
    class_counts: list[int]  # number of images of each class
    bad: list[BadRecord] = dataclasses.field(default_factory=list)
    labels_out_of_range: list[str] = dataclasses.field(default_factory=list)
    odd: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # image names, by property
    width: tuple[int, int, int] | None = None  # smallest, median, largest; in pixels
    height: tuple[int, int, int] | None = None

    @property
    def empty_classes(self) -> list[str]:
        """The names of the classes that have no images."""
        pairs = zip(self.class_names, self.class_counts, strict=True)
        return [name for name, count in pairs if not count]


@dataclasses.dataclass
class Duplicates:
    """A group of examples whose images have the same bytes."""

    splits: list[str]
    names: list[str]
    labels: list[str]  # class names, because splits may number the classes differently
    leak: bool  # the group spans several splits
    contradict: bool  # the examples have different labels


@dataclasses.dataclass
class Scan:
    """The findings in all splits of a data set."""

    source: str
    splits: list[SplitScan]
    missing: list[str]  # splits that do not exist
    duplicates: list[Duplicates]
    left_out: LeftOut = dataclasses.field(default_factory=dict)  # the skipped files, by reason

    @property
    def must_be_mended(self) -> list[str]:
        """Descriptions of the problems that must be fixed because they make results wrong."""
        found = []
        first = self.splits[0]
        for each in self.splits:
            empty = each.empty_classes if each.split == "train" else []
            unknown = [name for name in each.class_names if name not in first.class_names]
            labels = f"out of range (0 to {len(each.class_names) - 1}) in {each.split}"
            found += _count(each.bad, "corrupt image", f"in {each.split}")
            found += _count(each.labels_out_of_range, "label", labels)
            found += _count(empty, "class", f"without an image in train: {', '.join(empty[:5])}")
            where = f"in {each.split} that {first.split} lacks: {', '.join(unknown[:5])}"
            found += _count(unknown, "class", where)
        leaks = [group for group in self.duplicates if group.leak]
        found += _count(leaks, "image", "in more than one split")
        contradictions = [group for group in self.duplicates if group.contradict]
        found += _count(contradictions, "image", "under more than one label")
        lost = {reason: names for reason, names in self.left_out.items() if reason in IMAGES_LOST}
        return found + ([f"images that are skipped: {counted(lost)}"] if lost else [])

    def as_dict(self) -> dict[str, Any]:
        """Returns all findings as values that JSON supports."""
        return dataclasses.asdict(self) | {"must_be_mended": self.must_be_mended}


def _count(found: list[Any], noun: str, rest: str) -> list[str]:
    plural = "classes" if noun == "class" else f"{noun}s"
    return [f"{len(found):,} {noun if len(found) == 1 else plural} {rest}"] if found else []


def scan(spec: str, *, threads: int = 4) -> Scan:
    """Check every example of the data set `spec`. Uses about 400 bytes of memory per example."""
    sources, missing = open_splits(spec)
    places: dict[bytes, list[tuple[Source, int, int]]] = defaultdict(list)  # by image hash
    splits = []
    with progress_line("checking", "images", sum(map(len, sources))) as advance:
        for source in sources:
            names = source.class_names
            found = SplitScan(source.split, len(source), names, [0] * len(names))
            sizes = []
            load = partial(inspect, source)
            with contextlib.closing(prefetched(load, range(len(source)), threads)) as all_facts:
                for index, facts in enumerate(all_facts):
                    name, label = source.describe(index), facts.label
                    if facts.bad is not None:
                        found.bad.append(BadRecord(index, name, facts.bad))
                    if label is not None and 0 <= label < len(names):
                        found.class_counts[label] += 1
                    elif label is not None:
                        found.labels_out_of_range.append(f"{name}: {label}")
                    for kind, detail in facts.odd:
                        text = f"{name}: {detail}" if detail else name
                        found.odd.setdefault(kind, []).append(text)
                    if facts.size and label is not None:  # corrupt images are not compared
                        sizes.append(facts.size)
                        places[facts.digest].append((source, index, label))
                    advance()
            if sizes:
                spread = np.quantile(sizes, (0, 0.5, 1), axis=0).astype(int)
                found.width, found.height = map(tuple, spread.T.tolist())
            splits.append(found)
    duplicates = [_duplicates(group) for group in places.values() if len(group) > 1]
    left_out = merged(source.left_out for source in sources)
    return Scan(spec, splits, list(missing), duplicates, left_out)


def _duplicates(group: list[tuple[Source, int, int]]) -> Duplicates:
    splits = [source.split for source, _, _ in group]
    names = [source.describe(index) for source, index, _ in group]
    labels = [
        source.class_names[label]
        if 0 <= label < len(source.class_names)
        else f"out of range: {label}"
        for source, _, label in group
    ]
    return Duplicates(splits, names, labels, len(set(splits)) > 1, len(set(labels)) > 1)


def print_scan(console: Console, found: Scan) -> None:
    """Print tables of image sizes and images per class, then the first items of each finding."""
    console.print(_split_table(found))
    if found.missing:
        console.print(f"split {' or '.join(found.missing)} not found")
    if "val" in found.missing and "train" not in found.missing:
        fix = f"train with {with_holdout(found.source)}, which validates on a tenth"
        console.print(escape(fix), soft_wrap=True)
    console.print(_class_table(found))
    balance = ", ".join(
        f"{each.split} has empty classes ({len(each.empty_classes)})"
        if each.empty_classes
        else f"{each.split} {max(each.class_counts) / min(each.class_counts):.2f}"
        for each in found.splits
    )
    console.print(f"ratio of largest to smallest class: {balance}", soft_wrap=True)
    for each in found.splits:
        _print_names(console, f"corrupt in {each.split}", [str(record) for record in each.bad])
        _print_names(console, f"labels out of range in {each.split}", each.labels_out_of_range)
        for kind, names in sorted(each.odd.items()):
            if len(names) == each.images:
                console.print(escape(f"{kind}, in {each.split}: all"))
            else:
                _print_names(console, f"{kind}, in {each.split}", names, ODD_NAMED)
    groups = {
        "the same bytes in more than one split": [d for d in found.duplicates if d.leak],
        "the same bytes more than once in one split": [d for d in found.duplicates if not d.leak],
        "the same bytes under different labels": [d for d in found.duplicates if d.contradict],
    }
    for title, duplicates in groups.items():
        _print_names(console, title, [_equal(each.names) for each in duplicates])
    for reason, names in found.left_out.items():
        _print_names(console, f"skipped, {reason} ({REASONS[reason]})", names, ODD_NAMED)
    to_fix = found.must_be_mended
    line = f"must be fixed: {'; '.join(to_fix)}" if to_fix else "nothing needs to be fixed"
    console.print(escape(line), soft_wrap=True)


def _split_table(found: Scan) -> Table:
    table = Table("split", title=escape(found.source), title_justify="left")
    for name in ("images", "corrupt", "classes", "width (smallest, median, largest)", "height"):
        table.add_column(name, justify="right")
    for each in found.splits:
        counts = (each.images,), (len(each.bad),), (len(each.class_names),)
        cells = (*counts, each.width or (), each.height or ())
        table.add_row(each.split, *(" ".join(f"{n:,}" for n in cell) for cell in cells))
    return table


def _class_table(found: Scan) -> Table:
    table = Table("class", title="images per class", title_justify="left")
    for each in found.splits:
        table.add_column(each.split, justify="right")
    counts = [dict(zip(s.class_names, s.class_counts, strict=True)) for s in found.splits]
    names = list(dict.fromkeys(name for each in counts for name in each))
    if len(names) > ROWS:
        names.sort(key=lambda name: counts[0].get(name, 0))
        hidden = slice(ROWS // 2, len(names) - ROWS // 2)
        names[hidden] = [f"... {len(names[hidden]):,} more"]
    for name in names:
        cells = (f"{each[name]:,}" if name in each else "" for each in counts)
        table.add_row(escape(name), *cells)
    return table


def _equal(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return " = ".join(names[:NAMED]) + (f" and {rest:,} more" if rest > 0 else "")


def _print_names(console: Console, title: str, names: Sequence[str], named: int = NAMED) -> None:
    if not names:
        return
    console.print(escape(f"{title}: {len(names):,}"), soft_wrap=True)
    for name in names[:named]:
        console.print(escape(f"  {as_text(name)}"), soft_wrap=True)
    if len(names) > named:
        console.print(f"  and {len(names) - named:,} more; --json lists all")
