"""Train a GoogLeNet: `python train.py [CONFIG] [--workdir DIR] [--field.path value ...]`.

The same as `gnet train`; gnet_jax/cli/train.py has the code and the exit codes.
"""

import sys

if __name__ != "train":  # as a script, also in the processes that load data
    from gnet_jax.search_path import leave_out_local_modules

    leave_out_local_modules()

from gnet_jax.cli.train import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
