"""A look at every example of every split: what is damaged, odd, unbalanced or there twice."""

import contextlib
import dataclasses
import hashlib
import io
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gnet_jax.data.bad_images import BadRecord
from gnet_jax.data.check.manifest import ManifestCheck
from gnet_jax.data.decode import ImageError, decode, known_formats, opening
from gnet_jax.data.prefetch import prefetched
from gnet_jax.data.progress import progress_line
from gnet_jax.data.sources import MissingSplitError, Source, open_source
from gnet_jax.data.sources.source import Split
from gnet_jax.data.sources.walk import IMAGES_LOST, SUFFIXES, LeftOut, counted, merged

SMALL_SIDE = 32  # pixels: below it an image is called small
LONG_ASPECT = 4  # longer side / shorter side: above it an image is called narrow
_QUIET = threading.Lock()  # catch_warnings changes the filters of all threads


class Facts(NamedTuple):
    """What was found out about an example."""

    label: int | None  # None where it cannot be read
    length: int  # bytes
    crc32: int
    sha256: bytes  # of its bytes, cut to 16
    size: tuple[int, int] | None  # (width, height), upright; None where it cannot be decoded
    bad: str | None  # why it cannot be used
    odd: tuple[tuple[str, str], ...]  # kinds of oddity, and of each what it is in this image


def inspect(source: Source, index: int) -> Facts:
    """Read and decode the example `index` of `source`; nothing about it is an error here."""
    try:
        image, label = source[index]
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        return Facts(None, 0, 0, b"", None, reason, ())
    except ImageError as error:  # a record that its source knows to be damaged
        return Facts(None, 0, 0, b"", None, str(error), ())
    if isinstance(image, bytes):
        data, shape = image, b""
    else:
        data, shape = image.tobytes(), str(image.shape).encode()
    identity = hashlib.sha256(shape + data).digest()[:16]
    known = label, len(data), zlib.crc32(data), identity
    try:
        size = decode(image).size
    except ImageError as error:
        return Facts(*known, None, str(error), ())
    odd = [*_odd_sizes(*size)]
    if isinstance(image, np.ndarray):
        odd += [("grey", "")] if image.ndim == 2 else []
    else:
        odd += _odd_encoding(image, source.describe(index))
    return Facts(*known, size, None, tuple(odd))


def _odd_sizes(width: int, height: int) -> list[tuple[str, str]]:
    short, long = sorted((width, height))
    found = []
    if short < SMALL_SIDE:
        found.append((f"a side below {SMALL_SIDE} pixels", f"{width}x{height}"))
    if long > LONG_ASPECT * short:
        found.append((f"longer than {LONG_ASPECT} : 1", f"{width}x{height}"))
    return found


def _odd_encoding(image: bytes, name: str) -> list[tuple[str, str]]:
    """Of an image that can be decoded."""
    found = []
    with opening(image) as (picture, _, orientation, tiff):
        expected = SUFFIXES.get(PurePath(name).suffix.lower())
        if expected is not None and picture.format != expected:
            found.append(("a format other than its suffix says", str(picture.format)))
        mode = picture.mode
        if mode == "CMYK":
            found.append(("CMYK", ""))
        if mode in ("1", "L", "LA", "I") or mode.startswith("I;16"):
            found.append(("grey", ""))
        if mode in ("P", "PA"):
            found.append(("palette", ""))
        if mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            found.append(("transparent", ""))
        # Of 16-bit colour Pillow tells in the raw mode alone.
        raw = str(picture.tile[0].args) if picture.tile else ""
        bits = tiff.bits if tiff else 16
        if bits > 8 and (mode == "I" or mode.startswith("I;16") or ";16" in raw):
            found.append((f"{bits} bit", ""))
    found += _pictures(image)
    if orientation != 1:
        found.append(("turned by EXIF", ""))
    return found


def _pictures(image: bytes) -> list[tuple[str, str]]:
    """How many there are, which metadata tell."""
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's, of metadata that it cannot read
        try:
            opened = Image.open(io.BytesIO(image), formats=known_formats())
        except Exception as error:  # Pillow lets out whatever odd metadata make its parsers raise
            return [("metadata that cannot be read", str(error))]
        try:
            with opened:
                pictures = getattr(opened, "n_frames", 1)
        except Exception as error:  # and what a cut file does
            return [("several pictures, the later ones damaged", str(error))]
    return [("several pictures", str(pictures))] if pictures > 1 else []


SPLITS: tuple[Split, ...] = ("train", "val", "test")
See = Callable[[Source, int, Facts], object]  # told of every example


@dataclasses.dataclass
class SplitScan:
    """What was found in one split."""

    split: str
    images: int
    class_names: tuple[str, ...]
    class_counts: list[int]  # images of each class
    bad: list[BadRecord] = dataclasses.field(default_factory=list)
    labels_out_of_range: list[str] = dataclasses.field(default_factory=list)
    odd: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # names, by kind
    width: tuple[int, int, int] | None = None  # smallest, median, largest
    height: tuple[int, int, int] | None = None

    @property
    def empty_classes(self) -> list[str]:
        """Classes without an image."""
        pairs = zip(self.class_names, self.class_counts, strict=True)
        return [name for name, count in pairs if not count]


@dataclasses.dataclass
class Duplicates:
    """Examples of the same bytes."""

    splits: list[str]
    names: list[str]
    labels: list[str]  # names of their classes, which splits may number differently

    @property
    def leak(self) -> bool:
        """Whether they are in more than one split: what is evaluated on was trained on."""
        return len(set(self.splits)) > 1

    @property
    def contradict(self) -> bool:
        """Whether their labels differ."""
        return len(set(self.labels)) > 1


@dataclasses.dataclass
class Scan:
    """What was found in a data set."""

    source: str
    splits: list[SplitScan]
    missing: list[str]  # splits that there are none of
    duplicates: list[Duplicates]
    left_out: LeftOut = dataclasses.field(default_factory=dict)  # of all splits, most serious first
    manifest: ManifestCheck | None = None

    @property
    def must_be_mended(self) -> list[str]:
        """What makes results wrong, a sentence each; empty where nothing does."""
        found = []
        for each in self.splits:
            if each.bad:
                found.append(f"{_count(each.bad, 'damaged image')} in {each.split}")
            if each.labels_out_of_range:
                count = _count(each.labels_out_of_range, "label")
                found.append(
                    f"{count} out of range (0 to {len(each.class_names) - 1}) in {each.split}"
                )
            if each.split == "train" and each.empty_classes:
                names = ", ".join(each.empty_classes[:5])
                count = _count(each.empty_classes, "class", "classes")
                found.append(f"{count} without an image in train: {names}")
            first = self.splits[0]
            odd = [name for name in each.class_names if name not in first.class_names]
            if odd:
                found.append(
                    f"{_count(odd, 'class', 'classes')} in {each.split} that {first.split} lacks: "
                    f"{', '.join(odd[:5])}"
                )
        leaks = [group for group in self.duplicates if group.leak]
        if leaks:
            found.append(f"{_count(leaks, 'image')} in more than one split")
        contradictions = [group for group in self.duplicates if group.contradict]
        if contradictions:
            found.append(f"{_count(contradictions, 'image')} under more than one label")
        lost = {reason: names for reason, names in self.left_out.items() if reason in IMAGES_LOST}
        if lost:
            found.append(f"images that are not read: {counted(lost)}")
        if self.manifest is not None:
            for what in ("changed", "missing", "new"):
                names = getattr(self.manifest, what)
                if names:
                    found.append(f"{_count(names, 'image')} {what} since {self.manifest.file}")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        found = dataclasses.asdict(self)
        for group, each in zip(found["duplicates"], self.duplicates, strict=True):
            group |= {"leak": each.leak, "contradict": each.contradict}
        if self.manifest is not None:
            found["manifest"] |= {"file": str(self.manifest.file), "missing": self.manifest.missing}
        return found | {"must_be_mended": self.must_be_mended}


def _count(found: list[Any], one: str, several: str | None = None) -> str:
    return f"{len(found):,} {one if len(found) == 1 else several or one + 's'}"


def open_splits(spec: str) -> tuple[list[Source], list[str]]:
    """Every split of the data that there is, and the names of those that there are not.

    Raises:
        MissingSplitError: if there is none.
        DataError: as `open_source`.
    """
    sources: list[Source] = []
    missing: list[str] = []
    error = None
    for split in SPLITS:
        try:
            source = open_source(spec, split)
        except MissingSplitError as found:
            missing.append(split)
            error = error or found
            continue
        if source.split in [known.split for known in sources]:  # val reads test where it must
            continue
        sources.append(source)
    if error is not None and not sources:
        raise error
    return sources, missing


def scan(
    spec: str,
    *,
    threads: int = 4,
    see: See | None = None,
    manifest: ManifestCheck | None = None,
) -> Scan:
    """Read and decode every example that `spec` names.

    Memory holds about 300 bytes an image.

    Args:
        threads: that read and decode; the result does not depend on it.
        see: is told of every example, in order.
        manifest: is compared with every example.

    Raises:
        DataError: as `open_splits`.
    """
    sources, missing = open_splits(spec)
    twins = _Twins(sources)
    tell = [each for each in (see, None if manifest is None else manifest.see) if each is not None]
    splits = []
    with progress_line("checking", "images", sum(map(len, sources))) as advance:
        for number, source in enumerate(sources):
            found = SplitScan(
                source.split, len(source), source.class_names, [0] * len(source.class_names)
            )
            sizes = []
            for index, facts in enumerate(_all_facts(source, threads)):
                _take_in(found, source, index, facts)
                if facts.size is not None:
                    sizes.append(facts.size)
                    twins.add(number, index, facts)
                for each in tell:
                    each(source, index, facts)
                advance()
            if sizes:
                low, middle, high = (f(sizes, axis=0) for f in (np.min, np.median, np.max))
                found.width, found.height = (
                    (int(low[i]), int(middle[i]), int(high[i])) for i in (0, 1)
                )
            splits.append(found)
    left_out = merged(source.left_out for source in sources)
    return Scan(spec, splits, missing, twins.groups(), left_out, manifest)


def _all_facts(source: Source, threads: int) -> Iterator[Facts]:
    load = partial(inspect, source)
    with contextlib.closing(prefetched(load, range(len(source)), threads)) as facts:
        yield from facts


def _take_in(found: SplitScan, source: Source, index: int, facts: Facts) -> None:
    if facts.bad is not None:
        found.bad.append(BadRecord(index, source.describe(index), facts.bad))
    if facts.label is not None:
        if 0 <= facts.label < len(found.class_counts):
            found.class_counts[facts.label] += 1
        else:
            found.labels_out_of_range.append(f"{source.describe(index)}: {facts.label}")
    for kind, detail in facts.odd:
        name = source.describe(index)
        found.odd.setdefault(kind, []).append(f"{name}: {detail}" if detail else name)


class _Twins:
    """Finds examples of the same bytes; those that cannot be decoded are damaged anyway."""

    def __init__(self, sources: list[Source]) -> None:
        self._sources = sources
        self._first: dict[bytes, tuple[int, int, int]] = {}  # split, index, label
        self._groups: dict[bytes, list[tuple[int, int, int]]] = {}

    def add(self, number: int, index: int, facts: Facts) -> None:
        where = (number, index, -1 if facts.label is None else facts.label)
        first = self._first.setdefault(facts.sha256, where)
        if first is not where:
            self._groups.setdefault(facts.sha256, [first]).append(where)

    def groups(self) -> list[Duplicates]:
        return [
            Duplicates(
                [self._sources[number].split for number, _, _ in group],
                [self._sources[number].describe(index) for number, index, _ in group],
                [_class_name(self._sources[number], label) for number, _, label in group],
            )
            for group in self._groups.values()
        ]


def _class_name(source: Source, label: int) -> str:
    names = source.class_names
    return names[label] if 0 <= label < len(names) else f"out of range: {label}"
