"""Classes by name: their order, and which class of one list is which of another."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources

import numpy as np

from gnet_jax.data.sources.source import DataError, Source


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Returns `names` sorted: as numbers if all are integers ("9" before "10"), else as text."""
    names = sorted(names)
    numbers = integers(names)
    if numbers is not None:
        names = [name for _, name in sorted(zip(numbers, names, strict=True))]
    return tuple(names)


def integers(names: Iterable[str]) -> list[int] | None:
    """Returns the numbers that `names` are, or None if one of them is not an integer."""
    names = list(names)
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names):
        return list(map(int, names))
    return None


def nfc(name: str) -> str:
    """Returns the form of `name` that is compared: macOS and Linux encode one "é" differently."""
    return unicodedata.normalize("NFC", name)


def joined(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    """Returns `first` and, after it, the names of `second` that it lacks."""
    known = set(map(nfc, first))
    return (*first, *(name for name in second if nfc(name) not in known))


def find(names: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """Returns the index in `known` of each of `names`; None if it is not there, or there twice.

    Unicode forms of one name are equal, and so are ImageNet's labels and WordNet ids. Equal lists
    match as they are: ImageNet has two classes called "crane".
    """
    found = _find([*map(nfc, names)], [*map(nfc, known)])
    if None in found:  # by id, a name that occurs twice is clear
        by_id = _find(_with_ids(names), _with_ids(known))
        found = min(found, by_id, key=lambda each: each.count(None))
    return found


def same_classes(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether both lists name the same classes in the same order; see `find`."""
    return len(names) == len(others) and find(names, others) == list(range(len(names)))


def refuse_twice(names: Sequence[str], where: object) -> None:
    """Raises a DataError if two of `names` are one name, be it in two Unicode forms."""
    counts = Counter(map(nfc, names))
    twins = [name for name in names if counts[nfc(name)] > 1]
    if twins:
        alike = [name for name in twins if nfc(name) == nfc(twins[0])]
        forms = " and ".join(map(ascii, alike))
        raise DataError(
            f"{where} has the class {alike[0]} twice ({forms}); join them, or rename one"
        )


def empty_classes(source: Source) -> list[str]:
    """Returns the classes that are known to have no image; none if only the records tell."""
    if source.labels is None:
        return []
    present = set(np.unique(source.labels).tolist())
    return [name for label, name in enumerate(source.class_names) if label not in present]


def refuse_unknown(train: Source, other: Source, spec: str) -> None:
    """Raises a DataError if `other`, a split of the data `spec`, has classes that `train` lacks."""
    places, empty = find(other.class_names, train.class_names), empty_classes(other)
    named = zip(other.class_names, places, strict=True)
    odd = [name for name, at in named if at is None and name not in empty]
    if odd:
        raise DataError(
            f"the {other.split} split of {spec} has {listed(odd)}, which the {train.split} split "
            "lacks; add images of it there, or take it out"
        )


def listed(names: Sequence[str], shown: int = 5) -> str:
    """Returns `names` as part of a sentence, at most `shown` of them."""
    rest = len(names) - shown
    more = f" and {rest:,} more" if rest > 0 else ""
    first = ", ".join(map(repr, names[:shown]))
    return f"the class{'es' if len(names) > 1 else ''} {first}{more}"


@cache
def imagenet_classes() -> dict[str, str]:
    """Returns the labels of ImageNet's 1,000 classes by WordNet id, in the order of ILSVRC 2012."""
    text = (resources.files("gnet_jax.data.sources") / "imagenet_classes.txt").read_text("utf-8")
    return dict(line.split(" ", 1) for line in text.splitlines())


def imagenet_start(names: Sequence[str]) -> int | None:
    """Returns where in `names` ImageNet's classes begin (TF-slim's have a class before them).

    They are labels or WordNet ids. None if they are not there.
    """
    start = len(names) - len(imagenet_classes())
    return start if start >= 0 and [*_with_ids(names)[start:]] == [*imagenet_classes()] else None


def _with_ids(names: Sequence[str]) -> list[str]:
    """Returns `names` with all of ImageNet's labels at their end replaced by WordNet ids."""
    keys = [*map(nfc, names)]
    ids, labels = [*imagenet_classes()], [*imagenet_classes().values()]
    return keys[: -len(ids)] + ids if keys[-len(ids) :] == labels else keys


def _find(names: list[str], known: list[str]) -> list[int | None]:
    if names == known:
        return [*range(len(known))]
    places: dict[str, list[int]] = {}
    for place, name in enumerate(known):
        places.setdefault(name, []).append(place)
    counts = Counter(names)
    unique = {name: found[0] for name, found in places.items() if len(found) == 1}
    return [unique.get(name) if counts[name] == 1 else None for name in names]
