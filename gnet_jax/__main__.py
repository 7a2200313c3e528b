"""`python -m gnet_jax`: the same as the console script `gnet`."""

import sys

from gnet_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
