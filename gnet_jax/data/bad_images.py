"""Record corrupt images, and raise an error that lists them if there are too many."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from gnet_jax.config.paths import as_text
from gnet_jax.data.sources import DataError, Example, Source

SHOWN = 10  # number of corrupt images that a message lists; it counts the others


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """An example whose image cannot be decoded."""

    index: int
    name: str  # `Source.describe(index)`
    reason: str

    def __str__(self) -> str:
        return f"{as_text(self.name)}: {self.reason}"


class TooManyBadRecordsError(DataError):
    """There are more corrupt images than the limit allows."""


class BadRecords:
    """The corrupt images of one source that were found so far, each once.

    `limit` is the largest fraction of the examples that may be corrupt. `known` are the corrupt
    images found before a restart. `told` is called once with each other corrupt image. `listed_in`
    is the file with the complete list, which the error message refers to.
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
        """The largest number of examples that may be corrupt."""
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
            f"{len(self):,} of {self._images:,} images are corrupt, but the limit of "
            f"{self._limit:.2%} allows {self.allowed:,}:",
            *(f"  {record}" for record in list(self)[:SHOWN]),
        ]
        if len(self) > SHOWN:
            where = "" if self._listed_in is None else f", listed in {self._listed_in}"
            lines.append(f"  and {len(self) - SHOWN:,} more{where}")
        fix = (
            "`gnet check-data` lists all of them; fix or remove them, or raise the limit "
            "(--data.bad-limit of train.py, --bad-limit of gnet evaluate)"
        )
        raise TooManyBadRecordsError("\n".join([*lines, fix]))


def read_example(source: Source, index: int) -> Example:
    """Returns `source[index]` after checking its label.

    Raises ImageError if the source detects that the record is corrupt. Raises DataError for a label
    out of range or a file that cannot be read. Training does not replace such examples, because a
    wrong label must be fixed and a read error may be temporary.
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
