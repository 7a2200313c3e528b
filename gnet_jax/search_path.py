"""What the commands may import: the standard library, installed packages, and this package.

Python searches the working directory (`python -m gnet_jax`), the script's folder (`python
train.py`) and the checkout of an editable install, too. A file random.py there would replace a
library's own import, and a folder torch would be taken for PyTorch by libraries that use it if they
can import it. This module imports only what Python has imported before it looks there.
"""

import os
import sys
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from types import ModuleType

PACKAGE = os.path.dirname(os.path.abspath(__file__))


class _OwnPackage(FileFinder):
    """Finds this package in the checkout, and nothing beside it."""

    def find_spec(self, fullname: str, target: ModuleType | None = None) -> ModuleSpec | None:
        own = fullname == os.path.basename(PACKAGE)
        return super().find_spec(fullname, target) if own else None


def leave_out_local_modules() -> None:
    """Import nothing but this package from the script's folder or working directory, and checkout.

    Folders that the user has named in PYTHONPATH stay, except the checkout.
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
            sys.path_importer_cache[entry] = _OwnPackage(entry, (SourceFileLoader, SOURCE_SUFFIXES))


def _same(entry: str, folder: str) -> bool:
    entry = entry or os.curdir
    return os.path.exists(entry) and os.path.samefile(entry, folder)
