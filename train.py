"""Train a GoogLeNet: `python train.py [CONFIG] [--workdir DIR] [--field.path value ...]`.

This script does the same as `gnet train`. The code and the list of exit codes are in
gnet_jax/cli/train.py.
"""

import sys

if __name__ != "train":  # a script, here or in a spawned process that loads data
    import gnet_jax.__main__  # noqa: F401  (ignores local modules from here on)

from gnet_jax.cli.train import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
