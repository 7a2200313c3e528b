"""`python -m gnet_jax` and the script `gnet`."""

from gnet_jax.search_path import leave_out_local_modules

leave_out_local_modules()

from gnet_jax.cli.main import console_script  # noqa: E402  (it imports libraries)

if __name__ == "__main__":
    # Processes that load data then start with this file, as with a script; not with `python -m`.
    __spec__ = None
    console_script()
