"""Exchange text and errors between hosts, and check that all of them run the same thing.

Every host must call these functions, in the same order.
"""

import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from gnet_jax.config import Config, ConfigError, UserError, flatten
from gnet_jax.training.checkpoints.verify import digest
from gnet_jax.training.workdir import code_version, open_workdir, package_versions

if TYPE_CHECKING:
    from gnet_jax.training.program import Run

Value = TypeVar("Value")

# Hosts may differ in these fields, which are paths and numbers of threads.
PER_HOST_FIELDS = ("workdir", "init", "data.source", "data.threads", "data.workers")
TOKEN_SECONDS = 10  # time limit for a file of host 0 to appear on a network file system


class TrainingError(RuntimeError):
    """Training cannot continue on any host: it is not finite, does not learn, or was not saved."""


class OneHostError(TrainingError):
    """An error that only this host raises; see `abort_on_unexpected_error`."""


def gather(text: str) -> list[str]:
    """Returns the `text` of every host, in the order of the hosts."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([own.size], np.int32)).ravel()
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
    padded[: own.size] = own
    rows = multihost_utils.process_allgather(padded)
    return [
        row[:size].tobytes().decode("utf-8", "surrogateescape")
        for row, size in zip(rows, sizes, strict=True)
    ]


def run_on_all_hosts(action: Callable[[], Value]) -> Value:
    """Call `action` on every host, and return its result here if it succeeds on all of them.

    If it raises a UserError here, raises it; if only on other hosts, a UserError with the first.
    """
    try:
        value, own = action(), None
    except UserError as error:
        value, own = None, error
    errors = gather("" if own is None else str(own) or type(own).__name__)
    if own is not None:
        raise own
    for host, error in enumerate(errors):
        if error:
            raise UserError(f"host {host} stopped: {error}")
    return value  # pyright: ignore[reportReturnType]


def identity(run: "Run", fingerprints: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that must be equal on every host, by name."""
    found = {k: value for k, value in flatten(run.config).items() if k not in PER_HOST_FIELDS}
    if run.program.pretrained is not None:
        found["init"] = digest(run.program.pretrained.variables)
    # The other fingerprints cover the class names.
    found |= {f"data.fingerprint.{k}": v for k, v in fingerprints.items() if k != "classes"}
    found |= {f"version of {name}": value for name, value in package_versions().items()}
    return found | {"code": code_version(run.program.model.arch.own_parts)}


def compare(own: Mapping[str, Any]) -> None:
    """Raise a ConfigError on every host that names the first host that differs from host 0."""
    first, *others = (json.loads(text) for text in gather(json.dumps(own)))
    for host, values in enumerate(others, 1):
        differing = [
            f"{name} is {values.get(name, 'absent')} there, {first.get(name, 'absent')} on host 0"
            for name in sorted(first.keys() | values.keys())
            if values.get(name) != first.get(name)
        ]
        if differing:
            rest = f" ({len(differing) - 3} more)" if len(differing) > 3 else ""
            raise ConfigError(
                f"host {host} differs: {'; '.join(differing[:3])}{rest}; start every host with the "
                "same command, code, libraries and data"
            )


def open_shared_workdir(config: Config, fingerprints: Mapping[str, Any]) -> Path:
    """Open the workdir on every host, or raise a ConfigError if they see different folders."""
    if jax.process_count() == 1:
        return open_workdir(config, fingerprints)
    first, token = jax.process_index() == 0, ""
    own = Path(config.workdir).expanduser()
    if run_on_all_hosts(lambda: open_workdir(config, fingerprints) if first else None):
        token = f".shared-{secrets.token_hex(8)}"
        (own / token).touch()
    token = gather(token)[0]
    try:
        run_on_all_hosts(lambda: _wait_for_token(own, token))
        return run_on_all_hosts(lambda: open_workdir(config, fingerprints))
    finally:
        if first:
            (own / token).unlink(missing_ok=True)


def _wait_for_token(workdir: Path, token: str) -> None:
    deadline = time.monotonic() + TOKEN_SECONDS
    while not workdir.is_dir() or token not in os.listdir(workdir):
        if time.monotonic() > deadline:
            raise ConfigError(
                f"the workdir {workdir.absolute()} is not the folder that host 0 sees; give a "
                "--workdir on a file system that all hosts share"
            )
        time.sleep(0.2)
