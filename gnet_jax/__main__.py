"""`python -m gnet_jax`: the same as the console script `gnet`."""

from gnet_jax.cli import console_script

if __name__ == "__main__":
    console_script()
