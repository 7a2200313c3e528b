"""Download files whose hashes are known."""

import fcntl
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnet_jax.errors import UserError

TIMEOUT = 20.0  # seconds to wait for the next bytes from a server


def has_digest(file: Path, digest: str) -> bool:
    """Returns whether `file` exists and has `digest`: "sha256 HEX", "sha1 HEX" or "md5 HEX".

    The first digits of a hash are enough.
    """
    import pooch

    algorithm, digits = digest.split()
    return file.is_file() and pooch.file_hash(str(file), algorithm).startswith(digits)


def fetch(urls: Sequence[str], file: Path, digest: str) -> Path:
    """Returns `file`, and downloads it from the first of `urls` that has it if necessary.

    Every call verifies the file; `has_digest` explains `digest`. An interrupted download resumes.
    Only one process downloads a file; others that need it wait. Raises UserError if no server
    has the file. The message says where to save the file by hand.
    """
    if has_digest(file, digest):
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{file}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel unlocks it if this process dies
            if not has_digest(file, digest):
                _download(urls, file, digest)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror or error}") from error
    return file


def _download(urls: Sequence[str], file: Path, digest: str) -> None:
    problems, partial = [], file.with_name(f"{file.name}.partial")
    kept = file.with_name(f"{file.name}.kept")
    for url in urls:
        if kept.exists():  # the last server sent something else
            kept.replace(partial)
        print(f"downloading {url}", file=sys.stderr)
        problem = _continue(partial, kept, url, digest)
        if problem is None:
            partial.replace(file)
            kept.unlink(missing_ok=True)
            return
        problems.append(f"{url}: {problem}")
    raise UserError(
        f"cannot download {file.name} ({'; '.join(problems)}); try again later, or save the file "
        f"as {file} ({digest})"
    )


def _continue(partial: Path, kept: Path, url: str, digest: str) -> str | None:
    """Download what `partial` lacks from `url`. Returns None, or why it is not the whole file.

    A part that turns out to be of another file is deleted, and the download starts again. If the
    server does not continue the part, but sends a whole file (or a page such as "sign in"), the
    part is copied to `kept` first.
    """
    import requests
    from pooch import HTTPDownloader

    with partial.open("ab") as file:
        start = file.tell()

        def check_range(response: requests.Response, **_: Any) -> None:
            if start and response.status_code == requests.codes.ok:
                shutil.copyfile(partial, kept)
                file.truncate(0)

        headers = {"Accept-Encoding": "identity"}  # a range of a compressed file is of no use
        download = HTTPDownloader(
            progressbar=sys.stderr.isatty(),
            chunk_size=2**16,
            timeout=TIMEOUT,
            headers=headers | ({"Range": f"bytes={start}-"} if start else {}),
            hooks={"response": check_range},
        )
        try:
            download(url, file, None)  # pyright: ignore[reportArgumentType]
        except requests.HTTPError as error:
            status = getattr(error.response, "status_code", None)
            if status != requests.codes.requested_range_not_satisfiable:
                return f"it answers {status}"
        except requests.RequestException as error:
            # requests has several classes for a server that does not answer.
            return "no answer" if "timed out" in str(error) else "the connection failed"
        except ValueError as error:  # requests does not wrap those for a malformed header
            return f"its answer is invalid: {error}"
    if has_digest(partial, digest):
        return None
    partial.unlink()
    if start and not kept.exists():
        return _continue(partial, kept, url, digest)
    return "it has another file"
