"""Entry point of `python -m gnet_jax` and of the script `gnet`.

Importing this module restricts imports to the standard library, installed packages and gnet_jax.
Otherwise a file random.py in the working directory, the script's folder or the checkout would hide
the standard module `random`. This module imports only modules that Python has already loaded.
"""

import os
import sys
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from types import ModuleType

PACKAGE = os.path.dirname(os.path.abspath(__file__))


class _PackageFinder(FileFinder):
    """Finds the package gnet_jax in the checkout, and hides everything else in the checkout."""

    def find_spec(self, fullname: str, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname == os.path.basename(PACKAGE):
            return super().find_spec(fullname, target)
        return None


def ignore_local_modules() -> None:
    """Hide all modules in the script's folder, working directory and checkout, except gnet_jax.

    Folders that the user named in PYTHONPATH stay importable, except the checkout.
    """
    checkout = os.path.dirname(PACKAGE)
    script = os.path.dirname(os.path.realpath(sys.argv[0]))
    local = any(_same(sys.path[0], folder) for folder in (os.curdir, script))
    if local and not _same(sys.path[0], checkout):
        del sys.path[0]
    if os.path.isdir(os.path.join(PACKAGE, "configs")):
        return  # installed from a wheel, so `checkout` is site-packages
    for entry in map(os.path.abspath, sys.path):
        if _same(entry, checkout):
            sys.path_importer_cache[entry] = _PackageFinder(
                entry, (SourceFileLoader, SOURCE_SUFFIXES)
            )


def _same(entry: str, folder: str) -> bool:
    entry = entry or os.curdir
    return os.path.exists(entry) and os.path.samefile(entry, folder)


# Called on import, because processes that load data import the main program's file again.
ignore_local_modules()


def console_script() -> None:
    """Run `gnet`, and end the process with its exit code."""
    from gnet_jax.cli.main import main
    from gnet_jax.cli.output import leave_at_once

    try:
        code = main()
    except KeyboardInterrupt:
        leave_at_once("gnet: interrupted")
    sys.exit(code)


if __name__ == "__main__":
    # Without a spec, processes that load data import this file by its path, as with a script.
    __spec__ = None
    console_script()
