"""How steps are committed, deleted and marked as corrupt: in a folder on a disk, and in a bucket.

On a disk, renaming its folder commits a step. In a bucket, where nothing can be renamed, a step is
committed while it has the object COMMITTED, which Orbax writes last, and no object DAMAGED.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from gnet_jax.config import ConfigError, UserError
from gnet_jax.config.bucket import BucketPath, Place, explain
from gnet_jax.config.paths import plain_path
from gnet_jax.errors import first_line

QUARANTINED = ".damaged"  # appended to the name of a corrupt checkpoint
PARTIAL = ".orbax-checkpoint-tmp"  # part of the name of a folder being written or deleted
COMMITTED = "commit_success.txt"
DAMAGED = "damaged.txt"
_STEP = re.compile("0|[1-9][0-9]*")


class Disk:
    """Steps in a folder on a local or mounted disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def list_steps(self) -> list[int]:
        """Returns the committed steps. Raises ConfigError if the folder cannot be listed."""
        try:  # not with glob, which returns nothing for a folder that cannot be listed
            names = [path.name for path in self.folder.iterdir() if path.is_dir()]
        except FileNotFoundError:
            names = []
        except OSError as error:
            raise ConfigError(
                f"the checkpoints in {self.folder} cannot be listed: {error.strerror}; make the "
                "folder readable"
            ) from error
        return sorted(int(name) for name in names if _STEP.fullmatch(name))

    def path_for_orbax(self, step: int) -> str:
        """Returns the path of a new step."""
        return str(plain_path(self.folder) / str(step))

    def delete(self, step: int) -> None:
        """Delete a step. If the process is killed meanwhile, the next start deletes the rest."""
        deleted = self.folder / f"{step}{PARTIAL}"
        try:
            (self.folder / str(step)).rename(deleted)
        except FileNotFoundError:
            return
        shutil.rmtree(deleted, ignore_errors=True)

    def delete_partial(self) -> bool:
        """Delete what interrupted saves or deletions left; returns whether there was any."""
        found = list(self.folder.glob(f"*{PARTIAL}*"))
        for folder in found:
            shutil.rmtree(folder, ignore_errors=True)
        return bool(found)

    def quarantine(self, step: int) -> str:
        """Rename a corrupt step (120 to 120.damaged), and say so."""
        names = (f"{step}{QUARANTINED}{'' if n == 1 else f'-{n}'}" for n in range(1, 1000))
        renamed = next(self.folder / name for name in names if not (self.folder / name).exists())
        try:
            (self.folder / str(step)).rename(renamed)
        except OSError as failure:
            raise ConfigError(
                f"checkpoint {step} is corrupt and cannot be renamed to {renamed}: "
                f"{failure.strerror}; move it away, or make the folder writable"
            ) from failure
        return f"it is renamed to {renamed}"

    def has_quarantined(self) -> bool:
        return any(self.folder.glob(f"*{QUARANTINED}*"))

    def explain(self, error: Exception) -> str:
        """Returns why a save failed, as one line."""
        return first_line(error)

    def prepare(self, step: int, needed: int) -> None:
        """Raise a UserError if the disk has not `needed` bytes, before threads of Orbax fail."""
        disk = shutil.disk_usage(self.folder)
        if disk.total > 0 and disk.free < needed:  # some network drives report no size at all
            raise UserError(
                f"the disk is full: {needed / 1e6:,.1f} MB are needed, {disk.free / 1e6:,.1f} free"
            )


class Bucket:
    """Steps in a bucket."""

    def __init__(self, folder: BucketPath) -> None:
        self.folder = folder

    def list_steps(self) -> list[int]:
        """Returns the committed steps."""
        steps = self._steps_with(COMMITTED) - self._steps_with(DAMAGED)
        return sorted(int(step) for step in steps if _STEP.fullmatch(step))

    def path_for_orbax(self, step: int) -> str:
        """Returns the path of a new step."""
        return str(self.folder / step)

    def delete(self, step: int) -> None:
        """Delete a step. If the process is killed meanwhile, the next start deletes the rest."""
        (self.folder / step / COMMITTED).unlink()
        (self.folder / step).rmtree()

    def delete_partial(self) -> bool:
        """Delete what interrupted saves or deletions left; returns whether there was any."""
        partial = self._steps_with() - self._steps_with(COMMITTED) - self._steps_with(DAMAGED)
        for name in partial:
            (self.folder / name).rmtree()
        return bool(partial)

    def quarantine(self, step: int) -> str:
        """Mark a corrupt step, and say so. It stays until a step of this number is saved."""
        mark = self.folder / step / DAMAGED
        mark.write_text("This checkpoint is corrupt. It is not used.")
        return f"it is marked with {mark}"

    def has_quarantined(self) -> bool:
        return bool(self._steps_with(DAMAGED))

    def _steps_with(self, mark: str = "") -> set[str]:
        """Returns the folders of steps, or those that directly contain the object `mark`."""
        parts = [name.partition("/") for name in self.folder.names()]
        return {step for step, _, name in parts if mark in ("", name)}

    def explain(self, error: Exception) -> str:
        """Returns why a save failed, as one line."""
        return explain(error)

    def prepare(self, step: int, needed: int) -> None:
        """Delete a corrupt step of this number, whose place the new one takes."""
        self.delete(step)


def open_storage(folder: Place) -> Disk | Bucket:
    """Returns what lists, deletes and marks the steps in `folder`."""
    return Bucket(folder) if isinstance(folder, BucketPath) else Disk(folder)


def kvstore(folder: Place) -> dict[str, Any]:
    """Returns TensorStore's description of a folder."""
    if isinstance(folder, BucketPath):
        return {"driver": "gcs", "bucket": folder.bucket, "path": f"{folder.key}/"}
    return {"driver": "file", "path": f"{plain_path(folder)}/"}


def check_readable(checkpoint: Place) -> None:
    """Raise a UserError if a file or object of the checkpoint cannot be opened."""
    if isinstance(checkpoint, BucketPath):
        for name in checkpoint.names():
            (checkpoint / name).read_bytes()  # raises BucketError
        return
    try:
        for path in [checkpoint, *checkpoint.rglob("*")]:
            os.listdir(path) if path.is_dir() else open(path, "rb").close()
    except OSError as error:
        raise ConfigError(
            f"{error.filename} cannot be opened ({error.strerror}), so the checkpoint cannot be "
            "verified; make it readable, then run the same command again"
        ) from error
