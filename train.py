"""Train a GoogLeNet: `python train.py [CONFIG] [--workdir DIR] [--field.path value ...]`.

The same as `gnet train`; gnet_jax/cli/train.py has the code and the exit codes.
"""

import sys
from collections.abc import Sequence

if __name__ != "train":  # as a script, also in the processes that load data
    from gnet_jax.search_path import leave_out_local_modules

    leave_out_local_modules()

from gnet_jax.cli import train
from gnet_jax.config import Config

PROG = "train.py"


def parse(arguments: Sequence[str]) -> Config:
    """Returns the config of a command line."""
    return train.parse(arguments, PROG).config


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    return train.main(arguments, PROG)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
