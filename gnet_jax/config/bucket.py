"""Objects in a bucket of Google Cloud Storage: gs://BUCKET/NAME."""

import contextlib
import dataclasses
import errno
import functools
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from gnet_jax.config.paths import typed_path
from gnet_jax.errors import UserError, first_line

_URL = re.compile("gs:/{1,2}([^/]+)/+(.+?)/*")  # pathlib writes the two slashes as one
_SCHEME = re.compile("[a-z][a-z0-9+.-]+://|(gs|s3|az|abfss?|hdfs):/")
# Why an access failed, and the fix, by what the errors of gcsfs and of the server contain.
_REASONS = {
    "Forbidden|Anonymous caller|[Cc]redential|Unauthorized|\\b40[13]\\b": "no permission; log "
    "in with `gcloud auth application-default login`, or give this machine's service account the "
    "role Storage Object User",
    "[Qq]uota|Too Many Requests|[Rr]ate limit|\\b429\\b": "the quota or the rate limit is used up; "
    "raise it, or save less often",
    "[Cc]onnect|[Tt]imeout|Unavailable|\\b50[0234]\\b": "the server cannot be reached; check the "
    "network",
}
IN_BUCKET = "may be gs://BUCKET/NAME"  # marks the type of a command's argument
EMULATOR = "STORAGE_EMULATOR_HOST"  # variable that Google's own libraries read


class BucketError(UserError):
    """A bucket cannot be read or written now; what it contains may be intact."""

    exit_code = 1


@dataclasses.dataclass(frozen=True)
class BucketPath:
    """An object, or a folder of objects, with the methods of `pathlib.Path` that a run needs.

    A write is atomic, and readers see it at once. Reading a missing object raises
    FileNotFoundError; whatever else prevents an access raises BucketError.
    """

    bucket: str
    key: str  # without slashes at its ends

    def __str__(self) -> str:
        return f"gs://{self.bucket}/{self.key}"

    def __truediv__(self, name: object) -> "BucketPath":
        return BucketPath(self.bucket, f"{self.key}/{name}")

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def parent(self) -> "BucketPath":
        return BucketPath(self.bucket, str(PurePosixPath(self.key).parent))

    def absolute(self) -> "BucketPath":
        return self

    def resolve(self) -> "BucketPath":
        return self

    def names(self) -> list[str]:
        """Returns the names, relative to this folder, of all objects below it, sorted."""
        start = f"{self.bucket}/{self.key}/"
        try:
            found = self._call("list", lambda files: files.find(start))
        except FileNotFoundError as error:
            raise self._no_bucket("list") from error
        # The console and gcsfuse mark a folder with an empty object whose name ends with a slash.
        return sorted(name.removeprefix(start) for name in found if not name.endswith("/"))

    def iterdir(self) -> Iterator["BucketPath"]:
        for name in sorted({name.partition("/")[0] for name in self.names()}):
            yield self / name

    def is_dir(self) -> bool:
        return bool(self.names())

    def exists(self) -> bool:
        return self.is_dir() or self.is_file()

    def is_file(self) -> bool:
        try:
            return self._call("read", lambda files: files.info(self._path))["type"] == "file"
        except FileNotFoundError:
            return False

    def read_bytes(self) -> bytes:
        try:
            return self._call("read", lambda files: files.cat_file(self._path))
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self)) from error

    def read_text(self, *options: str) -> str:
        return self.read_bytes().decode(*options)

    def write_bytes(self, content: bytes, *, only_new: bool = False) -> None:
        """Write the object. With `only_new`, raises FileExistsError if it exists.

        An emulator may ignore `only_new`.
        """
        mode = "create" if only_new else "overwrite"
        try:
            self._call("write", lambda files: files.pipe_file(self._path, content, mode=mode))
        except FileNotFoundError as error:
            raise self._no_bucket("write") from error

    def write_text(self, text: str) -> None:
        self.write_bytes(text.encode())

    def touch(self) -> None:
        self.write_bytes(b"")

    def mkdir(self, **_: bool) -> None:
        """Do nothing: a bucket has no folders, only names with slashes."""

    def unlink(self, missing_ok: bool = True) -> None:
        """Delete the object, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            self._call("delete", lambda files: files.rm_file(self._path))

    def rmtree(self) -> None:
        """Delete all objects below this folder."""
        _for_each(self.names(), lambda name: (self / name).unlink())

    def download(self, folder: Path, names: Iterable[str]) -> None:
        """Write the objects `names` below this folder to the same names in `folder`."""

        def copy(name: str) -> None:
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes((self / name).read_bytes())

        _for_each(names, copy)

    @property
    def _path(self) -> str:
        return f"{self.bucket}/{self.key}"

    def _no_bucket(self, verb: str) -> BucketError:
        reason = f"there is no bucket {self.bucket}; create it, or correct its name"
        return BucketError(f"cannot {verb} {self}: {reason}")

    def _call(self, verb: str, access: Callable[[Any], Any]) -> Any:
        try:
            return access(_file_system())
        except (UserError, FileNotFoundError, FileExistsError):
            raise
        except Exception as error:  # of gcsfs, aiohttp or google.auth, without a common class
            raise BucketError(f"cannot {verb} {self}: {explain(error)}") from error


def _for_each(names: Iterable[str], action: Callable[[str], None]) -> None:
    with ThreadPoolExecutor(16) as threads:
        for _ in threads.map(action, names):
            pass  # raises the first error


Place = Path | BucketPath


@functools.cache
def _file_system() -> Any:
    """Returns the file system of gcsfs, and sets up the one that Orbax gets from fsspec."""
    try:
        import fsspec.config
        from gcsfs.core import GCSFileSystem
    except ImportError as error:
        from gnet_jax.config.recipes import needs  # here, because it imports the fields' limits

        raise UserError(needs("a path in a bucket", error, "gcs")) from error
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # a BucketError says it in one sentence
    # The default class asks for the kind of every bucket, which needs another permission.
    fsspec.register_implementation("gcs", GCSFileSystem, clobber=True)
    options = fsspec.config.conf.setdefault("gcs", {})
    options["use_listings_cache"] = False  # other processes write and delete, too
    if EMULATOR in os.environ:
        options.setdefault("token", "anon")
    return fsspec.filesystem("gcs")


def explain(error: Exception) -> str:
    """Returns why a bucket could not be accessed, and the fix, as one line."""
    # The name of an object, such as checkpoints/404/state, can contain the number of an error.
    text = re.sub(r"\S*/\S*", "", f"{type(error).__name__} {error}")
    for pattern, reason in _REASONS.items():
        if re.search(pattern, text):
            return reason
    return first_line(error)


def is_url(path: object) -> bool:
    """Returns whether a path, such as gs://BUCKET/NAME, is not on a local or mounted disk."""
    return _SCHEME.match(str(path)) is not None


def is_bucket(path: object) -> bool:
    """Returns whether a path is gs://BUCKET/NAME."""
    return _URL.fullmatch(str(path)) is not None


def check_local(what: str, path: object) -> None:
    """Raise a UserError if `path` is a URL; `what` is the name of the option or variable."""
    if is_url(path):
        raise UserError(
            f"{what} is {_two_slashes(path)}, but it must be on a local disk; mount the bucket "
            "(gcsfuse) and give its folder"
        )


def locate(path: str | Path) -> Place:
    """Returns `path` as a BucketPath if it is gs://BUCKET/NAME, otherwise as a local path.

    Raises a UserError if it is another kind of URL.
    """
    if not is_url(path):
        return typed_path(path)
    found = _URL.fullmatch(str(path))
    if not found:
        raise UserError(
            f"{_two_slashes(path)} is not gs://BUCKET/NAME; mount other kinds of storage and give "
            "the folder"
        )
    return BucketPath(*found.groups())


def _two_slashes(path: object) -> str:
    return re.sub("(?<=:)/+", "//", str(path), count=1)


@functools.cache
def _copies() -> tempfile.TemporaryDirectory[str]:
    """Returns the folder for copies of objects, which is deleted when this process ends."""
    return tempfile.TemporaryDirectory(prefix="gnet_jax-")


def as_urls(text: str) -> str:
    """Returns a message with the URLs of objects instead of the paths of their local copies."""
    copied = _copies.cache_info().currsize  # otherwise there is no folder
    return text.replace(f"{_copies().name}/", "gs://") if copied else text


def small_files(place: BucketPath) -> list[str]:
    """Returns the names of a run's or a sweep's JSON files and logs, without checkpoints."""
    suffixes = (".json", ".jsonl", ".log")
    found = [name for name in place.names() if name.endswith(suffixes)]
    return [name for name in found if "checkpoints" not in name.split("/")[:-1]]


def traces(place: BucketPath) -> list[str]:
    """Returns the names of the files of --profile in a run's workdir."""
    return [name for name in place.names() if name.startswith("profile/")]


def own_files(place: BucketPath) -> list[str]:
    """Returns the names of the objects directly in a folder, such as those of a model folder."""
    return [name for name in place.names() if "/" not in name]


def local_copy(path: Place | str, names: Callable[[BucketPath], Iterable[str]]) -> Path:
    """Returns `path` if it is local. Otherwise returns a copy of the objects `names(path)`.

    The copy is deleted when this process ends. If there are no such objects, `path` is an object.
    Raises a UserError if nothing is found.
    """
    place = path if isinstance(path, BucketPath) else locate(path)
    if isinstance(place, Path):
        return place
    copy = Path(_copies().name, place.bucket, place.key)
    found = list(names(place))
    if found:
        place.download(copy, found)
    elif place.is_file():
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(place.read_bytes())
    else:
        raise UserError(f"{place} does not exist, or has no files that this command reads")
    return copy
