"""Corrupt images: which were found, how many are allowed, and how they are listed."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from gnet_jax.config.paths import as_text
from gnet_jax.data.sources import DataError, Example, Source

SHOWN = 10  # corrupt images that a message names; the others are counted


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """An example whose image cannot be decoded."""

    index: int
    name: str  # the source's description of it
    reason: str

    def __str__(self) -> str:
        return f"{as_text(self.name)}: {self.reason}"


class TooManyBadRecordsError(DataError):
    """More images are corrupt than the limit allows."""


class BadRecords:
    """The distinct corrupt images of one source that were found so far.

    `limit` is the largest fraction of its examples that may be corrupt. `on_new` is called once
    for each corrupt image that is not `known` from before a restart. `listed_in` is the file with
    the whole list, for the message.
    """

    def __init__(
        self,
        source: Source,
        limit: float = 0.0,
        *,
        on_new: Callable[[BadRecord], object] | None = None,
        known: Iterable[BadRecord] = (),
        listed_in: object = None,
    ) -> None:
        self._images, self._limit = len(source), limit
        self._found = {record.index: record for record in known}
        self._on_new, self._listed_in = on_new, listed_in

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[BadRecord]:
        return iter(self._found.values())

    @property
    def allowed(self) -> int:
        """The number of examples that may be corrupt."""
        return int(self._limit * self._images)

    def add(self, found: Iterable[BadRecord]) -> None:
        """Add corrupt images; each counts once. Raises TooManyBadRecordsError above the limit."""
        for record in found:
            if record.index not in self._found:
                self._found[record.index] = record
                if self._on_new is not None:
                    self._on_new(record)
        if len(self) <= self.allowed:
            return
        lines = [
            f"{len(self):,} of {self._images:,} images are corrupt, but a bad limit of "
            f"{self._limit:.2%} allows {self.allowed:,}:",
            *(f"  {record}" for record in list(self)[:SHOWN]),
        ]
        if len(self) > SHOWN:
            where = "" if self._listed_in is None else f", listed in {self._listed_in}"
            lines.append(f"  and {len(self) - SHOWN:,} more{where}")
        fix = (
            "`gnet check-data` lists all of them; fix or remove them, or raise the bad limit "
            "(--data.bad-limit of train.py, --bad-limit of gnet evaluate)"
        )
        raise TooManyBadRecordsError("\n".join([*lines, fix]))


def read_example(source: Source, index: int) -> Example:
    """Returns `source[index]` after checking its label.

    Raises ImageError if the source knows that the record is corrupt, and DataError for a label out
    of range or a file that cannot be read. Neither is replaced like a corrupt image: a wrong label
    needs a fix, and a read error may be temporary.
    """
    try:
        example = source[index]
    except OSError as error:
        raise DataError(
            f"cannot read {as_text(source.describe(index))} ({error.strerror or error}); run the "
            "same command again once it is readable"
        ) from error
    classes = len(source.class_names)
    if not 0 <= example.label < classes:
        raise DataError(
            f"{as_text(source.describe(index))} has label {example.label}, but the {classes} "
            f"classes are 0 to {classes - 1}; fix the label"
        )
    return example
