"""Published weights by name: where they are, what is known of them, and how to download them."""

import fcntl
import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gnet_jax.config.paths import cache_folder
from gnet_jax.model_folder import hub
from gnet_jax.model_folder.folder import WeightsError

TIMEOUT = 20.0  # seconds to wait for the next bytes from a server


class Published(NamedTuple):
    """A file that `convert.read` reads, and what published.toml says about it."""

    urls: Sequence[str]
    megabytes: int
    origin: str
    license: str
    accuracy: str
    sha256: str = ""  # the first digits are enough
    sha1: str = ""  # used if sha256 is empty

    @property
    def digest(self) -> str:
        return f"sha256 {self.sha256}" if self.sha256 else f"sha1 {self.sha1}"

    @property
    def facts(self) -> dict[str, str]:
        """What a model's `source` says about these weights."""
        return {"origin": self.origin, "license": self.license, "published_accuracy": self.accuracy}

    def is_in(self, file: Path) -> bool:
        """Returns whether `file` exists and has the published content."""
        import pooch

        algorithm, digits = self.digest.split()
        return file.is_file() and pooch.file_hash(str(file), algorithm).startswith(digits)


_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
PUBLISHED = {name: Published(**fields) for name, fields in _TABLE.items()}
"""The weights that can be loaded by name."""


def locate(name: str | Path) -> Path:
    """Returns the path of the model called `name`.

    `name` is a path, a key of `PUBLISHED`, or hf:OWNER/NAME for a model folder on the Hugging Face
    Hub; an existing path has priority. The weights are downloaded if they are not in the cache.
    Raises WeightsError if that fails.
    """
    path, text = Path(name).expanduser(), str(name)
    if os.path.lexists(path):
        if text in PUBLISHED:
            note = "not the published weights of this name; rename it to use them"
            print(f"{text}: using {path.absolute()}, {note}", file=sys.stderr)
        return path
    if text.startswith(hub.PREFIX):
        return hub.download(text.removeprefix(hub.PREFIX))
    return fetch(text) if text in PUBLISHED else path


def fetch(name: str) -> Path:
    """Returns the file of the published weights `name`, and downloads it if necessary.

    Downloads are kept in the cache folder, and verified at every call. If several processes need
    the same file, one of them downloads it while the others wait. Raises WeightsError if no server
    has the file; the message says how to install it by hand.
    """
    published = PUBLISHED[name]
    file = cache_folder() / "weights" / Path(published.urls[0]).name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{file}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel unlocks it if this process dies
            if not published.is_in(file):
                _download(name, file)
    except OSError as error:
        raise WeightsError(f"cannot write {file}: {error.strerror or error}") from error
    return file


def _download(name: str, file: Path) -> None:
    """Download `file` from the first server that has it. Raises WeightsError if none has."""
    published, problems = PUBLISHED[name], []
    partial = file.with_name(f"{file.name}.partial")
    for url in published.urls:
        print(f"downloading {url} ({published.megabytes} MB)", file=sys.stderr)
        problem = _continue(partial, url, published)
        if problem is None:
            partial.replace(file)
            return
        problems.append(f"{url}: {problem}")
    raise WeightsError(
        f"cannot download {name} ({'; '.join(problems)}); try again later, or save the file as "
        f"{file} ({published.digest})"
    )


def _continue(partial: Path, url: str, published: Published) -> str | None:
    """Download what `partial` lacks from `url`. Returns None, or why it is not the whole file.

    A part that turns out to be of another file is deleted, and the download starts again.
    """
    import requests
    from pooch import HTTPDownloader

    with partial.open("ab") as file:
        start = file.tell()

        def check_range(response: requests.Response, **_: Any) -> None:
            if response.status_code == requests.codes.ok:  # the server sends the whole file
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
    if published.is_in(partial):
        return None
    partial.unlink()
    return _continue(partial, url, published) if start else "it has another file"
