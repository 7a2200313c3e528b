"""train.py as `tests.training.processes` has it, with a fault that one host meets alone.

The variable HOST_FAULT says which fault, and which host: "restore 1".
"""

import os
import sys
from unittest import mock

from gnet_jax.config import ConfigError, UserError
from tests.training import processes

FAULTS = {
    # no checkpoint can be read; a corrupt one cannot be renamed; the disk is full; a write fails
    "restore": (
        "gnet_jax.training.checkpoints.verify.SavedSteps.restore",
        ConfigError("no such file"),
    ),
    "rename": ("pathlib.Path.rename", OSError(13, "Permission denied")),
    "full": ("gnet_jax.training.checkpoints.storage.Disk.prepare", UserError("no room")),
    "write": ("gnet_jax.training.checkpoints.save.write_digests", OSError("Input/output error")),
}


def main() -> int:
    fault, host = os.environ["HOST_FAULT"].split()
    if sys.argv[sys.argv.index("--process-id") + 1] != host:
        return processes.main()
    place, error = FAULTS[fault]
    with mock.patch(place, side_effect=error):
        return processes.main()


if __name__ == "__main__":
    sys.exit(main())
