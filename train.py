"""Train a GoogLeNet: `python train.py [CONFIG] [--workdir DIR] [--field.path value ...]`.

The same as `gnet train`; gnet_jax/cli/train.py has the code and the exit codes.
"""

import sys
from collections.abc import Sequence

if __name__ != "train":  # as a script, also in the processes that load data
    import gnet_jax.__main__  # noqa: F401  (local modules are not imported from then on)

from gnet_jax.cli import train
from gnet_jax.config import Config

PROG = "train.py"


def parse(arguments: Sequence[str]) -> Config:
    """The config that the command line gives."""
    return train.parse(arguments, PROG)


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    return train.main(arguments, PROG)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
