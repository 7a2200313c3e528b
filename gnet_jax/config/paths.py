"""Functions for paths: cache folders, paths that every library accepts, printable names."""

import contextlib
import difflib
import functools
import os
import re
import secrets
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path


def cache_folder() -> Path:
    """Returns XDG_CACHE_HOME/gnet_jax or ~/.cache/gnet_jax; if not writable, `temporary_home()`."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base) / "gnet_jax"
    parent = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    writable = parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)
    return folder if os.path.isabs(base) and writable else temporary_home()


def temporary_home() -> Path:
    """Returns an existing folder for temporary files, the same for all processes of this user."""
    folder = Path(tempfile.gettempdir()) / f"gnet_jax-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
        return folder
    return Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))  # the name belongs to another user


# Control characters, line separators, and Python's surrogates for bytes that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def as_text(name: str) -> str:
    r"""Returns `name` as one line of valid Unicode, which JSON, protobuf and terminals accept.

    A byte that is not UTF-8 becomes \xNN. A control character becomes its Python escape sequence.
    """

    def escape(found: re.Match[str]) -> str:
        byte = ord(found[0]) - 0xDC00  # os.fsdecode maps the byte 0x80 to U+DC80, and so on
        if 0x80 <= byte <= 0xFF:
            return f"\\x{byte:02x}"
        return found[0].encode("unicode_escape").decode()

    return _UNPRINTABLE.sub(escape, name)


def typed_path(text: str | Path) -> Path:
    """Returns `text` as a path, and expands ~ unless a file has exactly the name `text`.

    The name of a user who does not exist is not expanded.
    """
    return Path(text if os.path.exists(text) else os.path.expanduser(text))


def did_you_mean(missing: str | Path, known: Iterable[str] = ()) -> str:
    """Returns " (did you mean NAME?)", or "" if neither a known name nor a path is similar."""
    found = Path()
    if os.path.lexists(Path(missing)):
        return ""
    if near := difflib.get_close_matches(str(missing), list(known), n=1):
        return f" (did you mean {near[0]}?)"
    try:
        for part in Path(missing).parts:
            # The limit keeps this fast in folders of many images.
            names = [part] if (found / part).exists() else os.listdir(found)[:10_000]
            folded = {name.casefold(): name for name in names}
            found /= folded[difflib.get_close_matches(part.casefold(), folded, n=1)[0]]
    except (OSError, IndexError):  # a folder that cannot be listed, or has no similar name
        return ""
    return f" (did you mean {found}?)"


_PLAIN = re.compile(r"[A-Za-z0-9_./+=,-]*")
_lock = threading.Lock()
_links: dict[Path, Path] = {}  # symbolic links, by the folder that they point to


def plain_path(path: Path) -> Path:
    """Returns a path of the same file without characters that some libraries misread, such as [.

    The path begins with a symbolic link to the deepest folder whose name has such a character. This
    folder must exist before the path is used for writing. The link is deleted when this process
    ends; if it is deleted earlier, the next call restores it.
    """
    if _PLAIN.fullmatch(str(path)):
        return path
    path = path.resolve()
    odd = [i for i, part in enumerate(path.parts) if not _PLAIN.fullmatch(part)]
    if not odd:
        return path
    folder, rest = Path(*path.parts[: odd[-1] + 1]), path.parts[odd[-1] + 1 :]
    # A link, because changing the working directory would affect all threads. Each host makes its
    # own, because Orbax does not compare paths between hosts.
    with _lock:
        if folder not in _links:
            _links[folder] = Path(_links_folder().name, secrets.token_hex(4))
        link = _links[folder]
        if not link.is_symlink():
            shutil.rmtree(link, ignore_errors=True)  # written while there was no link
            link.parent.mkdir(mode=0o700, exist_ok=True)
            link.symlink_to(folder)
        return link.joinpath(*rest)


@functools.cache
def _links_folder() -> tempfile.TemporaryDirectory[str]:
    place = tempfile.gettempdir()
    plain = place if _PLAIN.fullmatch(place) else "/tmp"
    return tempfile.TemporaryDirectory(prefix="gnet_jax-", dir=plain)
