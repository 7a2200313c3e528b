"""Folders of the user: the home, and the cache in it. In a container there may be neither."""

import contextlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import threading
from pathlib import Path

from gnet_jax.config import UserError


def cache_folder() -> Path:
    """The folder for what can be computed again, which may not exist: gnet_jax/ in the cache.

    The user's cache is XDG_CACHE_HOME or ~/.cache, or a folder for temporary files if nothing can
    be written there.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base) / "gnet_jax"
    return folder if os.path.isabs(base) and _writable(folder) else temporary_home()


def temporary_home() -> Path:
    """This user's own folder for temporary files, which exists; the same one in every process."""
    folder = Path(tempfile.gettempdir()) / f"gnet_jax-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
        return folder
    return Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))  # another user has taken the name


def _writable(folder: Path) -> bool:
    """Whether `folder` can be written to, or made."""
    while not os.path.lexists(folder):
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


_PLAIN = re.compile(r"[A-Za-z0-9_./+=,-]*")
_lock = threading.Lock()
_links: dict[Path, Path] = {}  # by the folder that they lead to
_home: tempfile.TemporaryDirectory[str] | None = None  # of the links


def plain_path(path: Path) -> Path:
    """Returns a path to the same place whose characters mean themselves to every library.

    That is `path` if its characters already do. Otherwise it is valid in this process and those
    that it starts, until it ends. A later call returns the same path, and restores it if a cleaner
    of temporary files has removed it. The deepest folder with an odd name must exist before
    anything is written.

    Raises:
        UserError: if no folder for temporary files has such a path itself.
    """
    if _PLAIN.fullmatch(str(path)):
        return path
    path = path.resolve()
    odd = [i for i, part in enumerate(path.parts) if not _PLAIN.fullmatch(part)]
    if not odd:
        return path
    folder, rest = Path(*path.parts[: odd[-1] + 1]), path.parts[odd[-1] + 1 :]
    # A link works where the alternatives fail: a working directory is one for all threads, and
    # /proc/self/fd exists on Linux alone and leads elsewhere in worker processes. Every host makes
    # a link of its own, and Orbax never compares paths between hosts. A background save keeps its
    # link because links are removed only at exit; a killed process leaves the links and no data.
    with _lock:
        if folder not in _links:
            _links[folder] = _links_folder() / secrets.token_hex(4)
        link = _links[folder]
        if not link.is_symlink():
            shutil.rmtree(link, ignore_errors=True)  # what was written while it was missing
            link.parent.mkdir(mode=0o700, exist_ok=True)
            link.symlink_to(folder)
        return link.joinpath(*rest)


def _links_folder() -> Path:
    global _home
    if _home is None:
        places = [tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]
        usable = [p for p in places if _PLAIN.fullmatch(p) and os.access(p, os.W_OK | os.X_OK)]
        if not usable:
            raise UserError(
                f"TMPDIR is {places[0]!r}; a path with characters other than ASCII letters, digits "
                "and _./+=,- requires a writable folder for temporary files without them"
            )
        _home = tempfile.TemporaryDirectory(prefix="gnet_jax-", dir=usable[0])
    return Path(_home.name)
