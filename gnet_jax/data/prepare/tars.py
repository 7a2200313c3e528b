"""Find and read the files in a tar without unpacking it."""

import re
import tarfile
from pathlib import Path
from typing import BinaryIO

from gnet_jax.data.prepare.shards import PrepareError


def tar_files(
    file: BinaryIO, tar: Path, start: int, pattern: str, remedy: str = "copy it again"
) -> list[tuple[str, int, int]]:
    """Returns (name, offset, size) of each file matching `pattern` in the tar at byte `start`.

    The name is what the first group of `pattern` matches. Raises PrepareError, which ends with
    `remedy`, if the tar is corrupt or truncated.
    """
    found = []
    try:
        file.seek(start)
        with tarfile.TarFile(fileobj=file) as archive:
            for member in archive:
                name = re.fullmatch(pattern, member.name, re.DOTALL)
                if name and member.isreg():
                    found.append((name[1], member.offset_data, member.size))
            # Python also ends at a corrupt header, but the real end of a tar is a block of zeros.
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"at byte {archive.offset:,}")
    except (tarfile.TarError, OSError) as error:
        raise PrepareError(f"{tar} is corrupt or truncated ({error}); {remedy}") from error
    return found
