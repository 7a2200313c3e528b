"""Folders of the user: the home, and the cache in it. In a container there may be neither."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path


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
