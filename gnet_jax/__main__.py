"""`python -m gnet_jax` and the script `gnet`.

Importing this module restricts imports to the standard library, installed packages and this one.
Otherwise a random.py in the working directory, the script's folder or the checkout would replace a
library's own import. This module itself imports only modules that Python has already loaded.
"""

import os
import sys
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from types import ModuleType

PACKAGE = os.path.dirname(os.path.abspath(__file__))


class _PackageFinder(FileFinder):
    """Finds this package in the checkout, and nothing else there."""

    def find_spec(self, fullname: str, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname == os.path.basename(PACKAGE):
            return super().find_spec(fullname, target)
        return None


def ignore_local_modules() -> None:
    """Import only this package from the script's folder, the working directory and the checkout.

    Folders that the user named in PYTHONPATH stay, except the checkout.
    """
    checkout = os.path.dirname(PACKAGE)
    script = os.path.dirname(os.path.realpath(sys.argv[0]))
    local = any(_same(sys.path[0], folder) for folder in (os.curdir, script))
    if local and not _same(sys.path[0], checkout):
        del sys.path[0]
    if os.path.isdir(os.path.join(PACKAGE, "configs")):
        return  # installed from a wheel: the folder is site-packages
    for entry in map(os.path.abspath, sys.path):
        if _same(entry, checkout):
            sys.path_importer_cache[entry] = _PackageFinder(
                entry, (SourceFileLoader, SOURCE_SUFFIXES)
            )


def _same(entry: str, folder: str) -> bool:
    entry = entry or os.curdir
    return os.path.exists(entry) and os.path.samefile(entry, folder)


# At import, because the processes that load data import the file of the main program again.
ignore_local_modules()


def console_script() -> None:
    """Run `gnet` and exit with its code."""
    from gnet_jax.cli.main import console_script

    console_script()


if __name__ == "__main__":
    # Processes that load data then start with this file, as with a script; not with `python -m`.
    __spec__ = None
    console_script()
