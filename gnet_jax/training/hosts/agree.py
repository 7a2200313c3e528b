"""What the hosts of a run must have in common, compared before anything long begins."""

import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from gnet_jax.config import Config, ConfigError, flatten
from gnet_jax.training.checkpoints.save import digest
from gnet_jax.training.hosts.collectives import gather, together
from gnet_jax.training.program import Run
from gnet_jax.training.workdir import code_version, open_workdir, package_versions

# Fields that name a place of a host's, or how it works: hosts may differ in them.
OF_A_HOST = ("workdir", "init", "data.source", "data.threads", "data.workers")
SEEN_WITHIN_SECONDS = 10  # a file that another host has written, over a network file system


def identity(run: Run, fingerprints: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same on every host: fields, data, weights, code and versions, by name.

    The fingerprint of a split tells other classes too; a thousand names would hide what differs.
    """
    fields = {name: value for name, value in flatten(run.config).items() if name not in OF_A_HOST}
    pretrained = run.program.pretrained
    weights = {} if pretrained is None else {"init": digest(pretrained.variables)}
    return (
        fields
        | weights
        | {f"data.fingerprint.{k}": v for k, v in fingerprints.items() if k != "classes"}
        | {f"version of {name}": value for name, value in package_versions().items()}
        | {"code": code_version()}
    )


def compare(own: Mapping[str, Any]) -> None:
    """Refuse to train where the hosts' values differ from those of host 0; all must call this.

    Raises:
        ConfigError: the same on every host; it names the first host that differs, and in what.
    """
    hosts = [json.loads(text) for text in gather(json.dumps(own))]
    for host, values in enumerate(hosts):
        first = hosts[0]
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
    """The run's folder, opened on every host, once all are seen to look at the same one.

    Raises:
        ConfigError: as `open_workdir`, of any host; or naming the host that sees another folder.
    """
    if jax.process_count() == 1:
        return open_workdir(config, fingerprints)
    first = jax.process_index() == 0
    own = Path(config.workdir).expanduser()
    if first:
        own = together(lambda: open_workdir(config, fingerprints))
        token = f".shared-{secrets.token_hex(8)}"
        (own / token).touch()
    else:
        together(lambda: None)
        token = ""
    token = gather(token)[0]
    try:
        together(lambda: _see(own, token))
        return together(lambda: open_workdir(config, fingerprints))
    finally:
        if first:
            (own / token).unlink(missing_ok=True)


def _see(workdir: Path, token: str) -> None:
    deadline = time.monotonic() + SEEN_WITHIN_SECONDS
    while not workdir.is_dir() or token not in os.listdir(workdir):
        if time.monotonic() > deadline:
            raise ConfigError(
                f"the workdir {workdir.absolute()} is another folder here than on host 0; give a "
                "--workdir on a file system that all hosts share"
            )
        time.sleep(0.2)
