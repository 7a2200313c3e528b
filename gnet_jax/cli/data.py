"""Commands about data: check-data, show-data, prepare."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from gnet_jax.cli.output import console, json_line
from gnet_jax.config import UserError


def check_data(
    source: Annotated[Positional[str], arg(metavar="SOURCE")],
    json: Annotated[bool, arg(name="json")] = False,
    threads: int = 4,
    write_manifest: Path | None = None,
    manifest: Path | None = None,
) -> int:
    """Read every image of every split; list what is damaged, odd, unbalanced or there twice.

    Exit code 1 where something has to be mended: damaged images, labels out of range, classes that
    are empty or differ between splits, images in several splits, or other than in the manifest.

    Args:
        source: digits, folder:PATH, npz:PATH, or tfds:NAME.
        json: print one JSON object that names every finding.
        threads: that read and decode.
        write_manifest: write name, length and crc32 of every image into this file.
        manifest: compare with such a file, which also finds the flipped bits that decode.
    """
    from gnet_jax.data.manifest import ManifestCheck, ManifestWriter
    from gnet_jax.data.scan import scan
    from gnet_jax.data.scan_report import print_scan

    if threads < 1:
        raise UserError(f"--threads is {threads}; it must be at least 1")
    known = None if manifest is None else ManifestCheck(manifest)
    with contextlib.ExitStack() as stack:
        writer = None
        if write_manifest is not None:
            writer = stack.enter_context(ManifestWriter(write_manifest))
        see = None if writer is None else writer.see
        found = scan(source, threads=threads, see=see, manifest=known)
    if json:
        print(json_line(found.as_dict()))
    else:
        print_scan(console(), found)
    return 1 if found.must_be_mended else 0
