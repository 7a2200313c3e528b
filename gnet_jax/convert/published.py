"""Published weights by name: where they are, what is known of them, and how to download them."""

import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gnet_jax.config import bucket
from gnet_jax.config.bucket import Place
from gnet_jax.config.paths import cache_folder, typed_path
from gnet_jax.data import download
from gnet_jax.model_folder import hub


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


_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
PUBLISHED = {name: Published(**fields) for name, fields in _TABLE.items()}
"""The weights that can be loaded by name."""


def locate(name: str | Path) -> Place:
    """Returns the path of the model called `name`.

    `name` is a path, a key of `PUBLISHED`, or hf:OWNER/NAME for a model folder on the Hugging Face
    Hub; an existing path has priority. The weights are downloaded if they are not in the cache.
    gs://BUCKET/NAME is a workdir, or a model folder or file, which is copied. Raises a UserError if
    the model cannot be downloaded.
    """
    if bucket.is_url(name):
        from gnet_jax.training.checkpoints.verify import is_workdir  # imports jax, which is slow

        place = bucket.locate(name)
        return place if is_workdir(place) else bucket.local_copy(place, bucket.own_files)
    path, text = typed_path(name), str(name)
    if os.path.lexists(path):
        if text in PUBLISHED:
            note = "not the published weights of this name; rename it to use them"
            print(f"{text}: using {path.absolute()}, {note}", file=sys.stderr)
        return path
    if text.startswith(hub.PREFIX):
        return hub.download(text.removeprefix(hub.PREFIX))
    return fetch(text) if text in PUBLISHED else path


def fetch(name: str) -> Path:
    """Returns the file of the published weights `name`, downloaded to the cache folder if needed.

    Raises a UserError if no server has the file.
    """
    published = PUBLISHED[name]
    file = cache_folder() / "weights" / Path(published.urls[0]).name
    return download.fetch(published.urls, file, published.digest)
