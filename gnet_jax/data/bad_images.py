"""Damaged examples: what becomes of them, how many there may be, and how they are listed."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from gnet_jax.config.paths import as_text
from gnet_jax.data.decode import ImageError
from gnet_jax.data.sources import DataError, Example, Source

Pixels = TypeVar("Pixels")

SHOWN = 10  # damaged examples that a message names; the rest is counted


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """An example whose image cannot be decoded."""

    index: int
    name: str  # what its source calls it
    reason: str

    def __str__(self) -> str:
        return f"{as_text(self.name)}: {self.reason}"


class TooManyBadRecordsError(DataError):
    """More damaged examples than the limit allows."""


class BadRecords:
    """The distinct damaged examples of one source that were met so far, and their limit.

    Args:
        source: the examples' source.
        limit: largest share of its examples that may be damaged.
        told: called with each of them at first sight.
        known: met earlier, by the same run before it was stopped; nobody is told of them again.
        listed_in: the file that holds the whole list, for the message.
    """

    def __init__(
        self,
        source: Source,
        limit: float = 0.0,
        *,
        told: Callable[[BadRecord], object] | None = None,
        known: Iterable[BadRecord] = (),
        listed_in: object = None,
    ) -> None:
        self._of, self._limit = len(source), limit
        self._found = {record.index: record for record in known}
        self._told, self._listed_in = told, listed_in

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[BadRecord]:
        return iter(self._found.values())

    @property
    def allowed(self) -> int:
        """How many examples may be damaged."""
        return int(self._limit * self._of)

    def add(self, found: Iterable[BadRecord]) -> None:
        """Take in damaged examples; those that were met before count once.

        Raises:
            TooManyBadRecordsError: with the first ten by name, if there are now too many.
        """
        for record in found:
            if record.index not in self._found:
                self._found[record.index] = record
                if self._told is not None:
                    self._told(record)
        if len(self) > self.allowed:
            raise TooManyBadRecordsError(self._message())

    def _message(self) -> str:
        if not self.allowed and len(self) == 1:
            return (
                f"{next(iter(self))}; mend it, take it out of the data, or raise the bad limit, "
                "which is --data.bad-limit in training and --bad-limit of gnet evaluate "
                f"(now {self._limit:.2%} of {self._of:,} images)"
            )
        lines = [
            f"{len(self):,} of {self._of:,} images have turned out damaged, more than the "
            f"{self.allowed:,} that a bad limit of {self._limit:.2%} allows:",
            *(f"  {record}" for record in list(self)[:SHOWN]),
        ]
        rest = len(self) - SHOWN
        if rest > 0:
            where = "" if self._listed_in is None else f", listed in {self._listed_in}"
            lines.append(f"  and {rest:,} more{where}")
        lines.append(
            "`gnet check-data` lists all there are; mend them or take them out of the data, or "
            "raise the bad limit to go on without them (--bad-limit of `gnet evaluate`, "
            "--data.bad-limit otherwise)"
        )
        return "\n".join(lines)


def read_example(source: Source, index: int) -> Example:
    """`source[index]`, with its label checked.

    Raises:
        ImageError: if the source itself knows that the record is damaged.
        DataError: for a label out of range, or a file that cannot be read. Neither is a damaged
            image: the one spoils the loss, the other says something about the machine, and what
            took its place would depend on the moment.
    """
    try:
        example = source[index]
    except OSError as error:
        raise DataError(
            f"{as_text(source.describe(index))} cannot be read ({error.strerror or error}); when "
            "it can be, the same command goes on"
        ) from error
    classes = len(source.class_names)
    if not 0 <= example.label < classes:
        raise DataError(
            f"{as_text(source.describe(index))} has label {example.label}, but the data has "
            f"{classes} classes (0 to {classes - 1}); mend the label"
        )
    return example


def next_good(
    source: Source,
    index: int,
    found: dict[int, BadRecord],
    allowed: int,
    read: Callable[[bytes | np.ndarray], Pixels],
) -> tuple[Pixels, int] | None:
    """What `read` makes of the first image from `index` on that it can, and the image's label.

    What takes the place of a damaged example depends on the source alone, so every host, thread and
    restart finds the same one.

    Args:
        found: takes in the damaged examples on the way.
        allowed: most of them; None is returned as soon as `found` holds more.
        read: decodes; raises an ImageError for what cannot be.

    Raises:
        DataError: as `read_example`.
    """
    while len(found) <= allowed:
        try:
            example = read_example(source, index)
            return read(example.image), example.label
        except ImageError as error:
            found[index] = BadRecord(index, source.describe(index), str(error))
            index = (index + 1) % len(source)
    return None
