"""Train a GoogLeNet: `python train.py [CONFIG] [--workdir DIR] [--field.path value ...]`.

The same as `gnet train`; gnet_jax/cli/train.py has the code and the exit codes.
"""

import sys

if __name__ != "train":  # as a script, also in the processes that load data
    import gnet_jax.__main__  # noqa: F401  (local modules are not imported from then on)

from gnet_jax.cli.train import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
