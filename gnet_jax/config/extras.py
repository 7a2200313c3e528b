"""Optional packages: what to install if one is missing."""

from gnet_jax.config.recipe import IN_CHECKOUT


def install(extra: str) -> str:
    """The command that installs an extra of this package."""
    return f"pip install -e '.[{extra}]'" if IN_CHECKOUT else f"pip install 'gnet-jax[{extra}]'"


def needs(what: str, error: ImportError, extra: str) -> str:
    """The sentence that `what` needs a package which cannot be imported, and how to install it."""
    if isinstance(error, ModuleNotFoundError):
        return f"{what} needs the package {error.name}, which is not installed: {install(extra)}"
    return f"{what} needs a package that cannot be imported ({error}): {install(extra)}"
