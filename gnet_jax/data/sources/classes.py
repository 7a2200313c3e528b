"""Sort class names, and match the class names of two lists."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources

import numpy as np

from gnet_jax.data.sources import DataError, Source


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sorts `names` as numbers if all are integers ("9" before "10"), otherwise as text."""
    names = sorted(names)
    return tuple(names if integers(names) is None else sorted(names, key=int))


def integers(names: Iterable[str]) -> list[int] | None:
    """Returns `names` as numbers, or None if one of them is not an integer."""
    names = list(names)
    known = all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names)
    return list(map(int, names)) if known else None


def nfc(name: str) -> str:
    """Returns `name` in Unicode form NFC, because macOS and Linux may encode "é" differently."""
    return unicodedata.normalize("NFC", name)


def joined(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    """Returns `first`, followed by the names of `second` that are not in `first`."""
    known = set(map(nfc, first))
    return (*first, *(name for name in second if nfc(name) not in known))


def find(names: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """Returns, for each of `names`, its index in `known`, or None if it is missing or repeated.

    Different Unicode forms of a name are equal, and an ImageNet label equals its WordNet id. Equal
    lists give 0, 1, 2, ..., even with repeated names, because ImageNet calls two classes "crane".
    """
    found = _find([*map(nfc, names)], [*map(nfc, known)])
    if None in found:  # try WordNet ids, which are unique
        by_id = _find(_with_ids(names), _with_ids(known))
        found = min(found, by_id, key=lambda each: each.count(None))
    return found


def same_classes(names: Sequence[str], others: Sequence[str]) -> bool:
    """Returns whether both lists have the same classes in the same order, compared by `find`."""
    return len(names) == len(others) and find(names, others) == list(range(len(names)))


def refuse_twice(names: Sequence[str], where: object) -> None:
    """Raises a DataError if a name occurs twice in `names`, possibly in two Unicode forms."""
    counts = Counter(map(nfc, names))
    repeated = next((name for name, count in counts.items() if count > 1), None)
    if repeated is not None:
        forms = " and ".join(ascii(name) for name in names if nfc(name) == repeated)
        raise DataError(f"{where} has the class {repeated} twice ({forms}); merge or rename them")


def empty_classes(source: Source) -> list[str]:
    """Returns the names of classes without images, or [] if the source does not know its labels."""
    if source.labels is None:
        return []
    empty = np.setdiff1d(np.arange(len(source.class_names)), source.labels)
    return [source.class_names[label] for label in empty]


def refuse_unknown(train: Source, other: Source, spec: str) -> None:
    """Raises a DataError if `other`, a split of `spec`, has images of classes not in `train`."""
    indices, empty = find(other.class_names, train.class_names), empty_classes(other)
    named = zip(other.class_names, indices, strict=True)
    unknown = [name for name, index in named if index is None and name not in empty]
    if unknown:
        raise DataError(
            f"the {other.split} split of {spec} has {listed(unknown)}, which the {train.split} "
            f"split lacks; add their images to {train.split}, or remove those in {other.split}"
        )


def listed(names: Sequence[str], shown: int = 5) -> str:
    """Returns text such as "the classes 'a', 'b' and 3 more", with at most `shown` names."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    first = ", ".join(map(repr, names[:shown]))
    return f"the class{'es' if len(names) > 1 else ''} {first}{more}"


@cache
def imagenet_classes() -> dict[str, str]:
    """Returns {WordNet id: label} of ImageNet's 1,000 classes, in the order of ILSVRC 2012."""
    text = (resources.files("gnet_jax.data.sources") / "imagenet_classes.txt").read_text("utf-8")
    return dict(line.split(" ", 1) for line in text.splitlines())


def imagenet_start(names: Sequence[str]) -> int | None:
    """Returns the index of the first ImageNet class, or None unless `names` ends with all 1,000."""
    start = len(names) - len(imagenet_classes())
    return start if start >= 0 and _with_ids(names)[start:] == [*imagenet_classes()] else None


def _with_ids(names: Sequence[str]) -> list[str]:
    """Replaces ImageNet's labels by WordNet ids if `names` ends with all 1,000 labels."""
    keys = [*map(nfc, names)]
    ids, labels = [*imagenet_classes()], [*imagenet_classes().values()]
    return keys[: -len(ids)] + ids if keys[-len(ids) :] == labels else keys


def _find(names: list[str], known: list[str]) -> list[int | None]:
    if names == known:
        return [*range(len(known))]
    indices = {name: index for index, name in enumerate(known)}
    once, known_once = Counter(names), Counter(known)
    return [indices[name] if once[name] == known_once[name] == 1 else None for name in names]
