"""A run whose workdir is in a bucket: the lock, and the local copy of its small files.

Checkpoints are written to the bucket itself. Objects cannot be appended to, so all other files are
written to a local folder, and a thread uploads those that have changed.
"""

import contextlib
import json
import os
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gnet_jax.config import ConfigError
from gnet_jax.config.bucket import BucketError, BucketPath, small_files

BEAT_SECONDS = 5.0  # between two uploads, and two renewals of the lock
LEASE_SECONDS = 60.0  # a lock that was not renewed for this time is that of a dead process
SETTLE_SECONDS = 2.0  # if two processes replace the lock of a dead one, the last within this wins


class BusyError(ConfigError):
    """Another process is training in the workdir."""


class BucketFiles(contextlib.AbstractContextManager["BucketFiles"]):
    """The small files of a run in a bucket, as local files in `folder`.

    Begins with the JSON files and logs of the bucket. A thread uploads changed files. With `lock`,
    another one renews the lock. When closed, uploads the rest and unlocks. Losing the network only
    causes warnings.
    """

    def __init__(self, run: BucketPath, *, lock: bool) -> None:
        self._run = run
        self._lock = _Lock(run / "lock") if lock else None
        self.tell: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)
        self._uploaded: dict[Path, tuple[int, int]] = {}  # time and size of each file
        self._uploading, self._closing, self._warned = threading.Lock(), threading.Event(), False
        works = (self._upload_all, self._keep_lock) if lock else (self._upload_all,)
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]

    def __enter__(self) -> "BucketFiles":
        if self._lock is not None:
            self._lock.take(self.tell)
        self.folder = Path(tempfile.mkdtemp(prefix="gnet_jax-run-"))
        try:
            self._run.download(self.folder, small_files(self._run))
            self._uploaded = dict(self._changed())
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            if self._lock is not None:
                self._lock.release()
            raise
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()
        if self.upload():
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            self.tell(f"warning: the logs that could not be uploaded are in {self.folder}")
        if self._lock is not None:
            self._lock.release()

    def upload(self) -> bool:
        """Upload the files that have changed; if that fails, warn and return False."""
        with self._uploading:
            for file, state in self._changed():
                try:
                    content = file.read_bytes()
                    (self._run / file.relative_to(self.folder).as_posix()).write_bytes(content)
                except FileNotFoundError:  # replaced or deleted meanwhile
                    continue
                except BucketError as error:
                    if not self._warned:
                        self.tell(f"warning: {error}; training continues and tries again")
                    self._warned = True
                    return False
                self._uploaded[file] = state
            self._warned = False
            return True

    def _changed(self) -> Iterator[tuple[Path, tuple[int, int]]]:
        for file in sorted(self.folder.rglob("*")):
            with contextlib.suppress(FileNotFoundError):
                status = file.stat()
                state = status.st_mtime_ns, status.st_size
                finished = file.is_file() and file.suffix != ".partial"
                if finished and self._uploaded.get(file) != state:
                    yield file, state

    def _upload_all(self) -> None:
        pause = BEAT_SECONDS
        while not self._closing.wait(pause):
            began = time.monotonic()
            self.upload()
            pause = max(BEAT_SECONDS, 5 * (time.monotonic() - began))  # large logs less often

    def _keep_lock(self) -> None:
        while not self._closing.wait(BEAT_SECONDS):
            if self._lock is not None and not self._lock.renew():
                text = f"stopped: another process has taken over the run in {self._run}"
                print(text, file=sys.stderr, flush=True)
                os._exit(1)


class _Lock:
    """An object that names the process that trains, and that this process renews.

    Waiting processes compare what they read, so the clocks of machines do not matter.
    """

    def __init__(self, file: BucketPath) -> None:
        self._file, self._renewals = file, 0
        self._owner = {"token": secrets.token_hex(8), "place": _place(), "pid": os.getpid()}

    def take(self, tell: Callable[[str], None]) -> None:
        """Create the object; raises BusyError if another process owns and renews it."""
        busy = BusyError(f"another process is training in {self._file.parent}; wait for it")
        found = self._read()
        if found is not None:
            self._wait_until_expired(found, busy, tell)
        try:
            self._write(only_new=found is None)
        except FileExistsError as error:
            raise busy from error
        # Another process may have replaced the same lock. An emulator may ignore `only_new`.
        time.sleep(0.2 if found is None else SETTLE_SECONDS)
        if not self._is_own(self._read()):
            raise busy

    def _wait_until_expired(
        self, found: dict[str, Any], busy: BusyError, tell: Callable[[str], None]
    ) -> None:
        """Returns if the lock stays as it was `found` until it expires, or if it is deleted."""
        deadline, told = time.monotonic() + LEASE_SECONDS, False
        while (now := self._read()) is not None:
            if now != found:
                raise busy
            if time.monotonic() >= deadline:
                return
            if now.get("place") == _place() and not os.path.exists(f"/proc/{now.get('pid')}"):
                return
            if not told:
                tell(
                    f"{self._file.parent} is locked; waiting up to {LEASE_SECONDS:.0f} s to see "
                    "whether that process still runs ..."
                )
            told = True
            time.sleep(1)

    def renew(self) -> bool:
        """Renew the lock if the bucket can be reached; returns False if this process has lost it.
        A missing lock is lost, too: another process has taken it over, and has ended since.
        """
        with contextlib.suppress(BucketError):
            if not self._is_own(self._read()):
                return False
            self._write()
        return True

    def release(self) -> None:
        with contextlib.suppress(BucketError):
            if self._is_own(self._read()):
                self._file.unlink()

    def _is_own(self, found: dict[str, Any] | None) -> bool:
        return found is not None and found.get("token") == self._owner["token"]

    def _read(self) -> dict[str, Any] | None:
        """Returns the content; None without a lock. Raises BucketError if it cannot be read."""
        try:
            content = self._file.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return dict(json.loads(content))
        except (ValueError, TypeError):
            return {}

    def _write(self, *, only_new: bool = False) -> None:
        self._renewals += 1
        text = json.dumps({**self._owner, "renewals": self._renewals})
        self._file.write_bytes(text.encode(), only_new=only_new)


def _place() -> str:
    """Returns a name of what process ids belong to: a boot of a machine, and a container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return boot + os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux: no process is known to be dead
        return secrets.token_hex(8)
