"""Manifests: name, length and crc32 of every example, to find what changed since.

A decoder accepts most flipped bits without an error; a crc32 does not.
"""

import dataclasses
import json
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from gnet_jax.data.sources import DataError, Source
from gnet_jax.data.sources.folder import FolderSource

if TYPE_CHECKING:
    from gnet_jax.data.check.scan import Facts


def example_name(source: Source, index: int) -> str:
    """SPLIT/CLASS/FILE, or SPLIT/INDEX where examples are no files: it stays when data move."""
    if isinstance(source, FolderSource):
        return source.relative_path(index)
    return f"{source.split}/{index}"


class ManifestWriter:
    """Writes one JSON object a line: name, bytes, crc32. The file appears when it is whole."""

    def __init__(self, file: Path) -> None:
        if file.is_dir() or not file.name:
            raise DataError(f"cannot write the manifest {file}: it is a folder; name a file in it")
        self._file, self._partial = file, file.with_name(file.name + ".partial")
        try:
            self._stream = self._partial.open("w")
        except OSError as error:
            raise self._unwritten(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._stream.close()
            if kind is None:
                self._partial.replace(self._file)
        except OSError as fault:
            raise self._unwritten(fault) from fault
        finally:
            self._partial.unlink(missing_ok=True)

    def _unwritten(self, error: OSError) -> DataError:
        return DataError(f"cannot write the manifest {self._file}: {error.strerror}")

    def see(self, source: Source, index: int, facts: "Facts") -> None:
        """Add an example."""
        line = {
            "name": example_name(source, index),
            "bytes": facts.length,
            "crc32": f"{facts.crc32:08x}",
        }
        try:
            self._stream.write(json.dumps(line) + "\n")
        except OSError as error:
            raise self._unwritten(error) from error


@dataclasses.dataclass
class ManifestCheck:
    """Compares examples with a manifest.

    Raises:
        DataError: if the file cannot be read or is no manifest.
    """

    file: Path
    changed: list[str] = dataclasses.field(default_factory=list)
    new: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self._left: dict[str, tuple[int, str]] = {}
        try:
            with self.file.open() as lines:
                for line in map(json.loads, lines):
                    self._left[str(line["name"])] = int(line["bytes"]), str(line["crc32"])
        except OSError as error:
            raise DataError(f"cannot read the manifest {self.file}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.file} is no manifest: its line {len(self._left) + 1} is not what `gnet "
                "check-data --write-manifest` writes"
            ) from error

    def see(self, source: Source, index: int, facts: "Facts") -> None:
        """Compare an example."""
        name = example_name(source, index)
        known = self._left.pop(name, None)
        if known is None:
            self.new.append(name)
        elif known != (facts.length, f"{facts.crc32:08x}"):
            self.changed.append(name)

    @property
    def missing(self) -> list[str]:
        """In the manifest, and not seen so far."""
        return list(self._left)
