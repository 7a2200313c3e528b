"""How a run is started: over how many processes, and whether it is started again after a crash."""

import dataclasses
import math
from typing import Literal

from gnet_jax.config.fields import ConfigError


@dataclasses.dataclass(frozen=True)
class Launch:
    """One start of a run. It is no part of the recipe, and the next start may have another."""

    distributed: Literal["auto", "on", "off"] = "auto"
    """auto joins the other processes of a TPU VM, GKE, Slurm or Open MPI job where it finds itself
    in one, or where --coordinator is given, and trains alone elsewhere; on insists; off never."""
    coordinator: str | None = None
    """HOST:PORT at which process 0 listens and which all others reach; found out in those jobs."""
    num_processes: int | None = None
    """Of the whole run; found out in those jobs."""
    process_id: int | None = None
    """Of this one, from 0; found out in those jobs."""
    start_timeout: int = 300
    """Seconds that the processes wait for one another at the start."""
    supervise: bool = False
    """Start again after a crash, waiting longer each time, until three in a row bring no newer
    checkpoint. Not after a mistake (exit code 2), nor after a signal that stopped the run."""
    supervise_preempted: bool = False
    """Start again, too, when a signal stopped the run and its step is saved; implies --supervise.
    A signal to the supervisor itself still ends both."""
    restart_delay: float = 5.0
    """Seconds before the first restart; doubled at every crash without a newer checkpoint, up to
    five minutes."""


def check_launch(launch: Launch) -> None:
    """Refuse options that contradict each other.

    Raises:
        ConfigError: naming the option, its value and what it may be.
    """
    named = {
        "--coordinator": launch.coordinator,
        "--num-processes": launch.num_processes,
        "--process-id": launch.process_id,
    }
    given = [name for name, value in named.items() if value is not None]
    if launch.distributed == "off" and given:
        raise ConfigError(f"{given[0]} is given, but --distributed is off; leave one of them out")
    if launch.coordinator is not None:
        host, _, port = launch.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(
                f"--coordinator is {launch.coordinator}; it must be HOST:PORT, as 10.0.0.2:8476"
            )
    count, process = launch.num_processes, launch.process_id
    if count is not None and count < 1:
        raise ConfigError(f"--num-processes is {count}; it must be at least 1")
    if process is not None and (process < 0 or (count is not None and process >= count)):
        limit = "at least 0" if count is None else f"from 0 to {count - 1}, of {count} processes"
        raise ConfigError(f"--process-id is {process}; it must be {limit}")
    if launch.start_timeout < 1:
        raise ConfigError(f"--start-timeout is {launch.start_timeout}; it must be at least 1")
    if not 0 <= launch.restart_delay < math.inf:
        raise ConfigError(
            f"--restart-delay is {launch.restart_delay}; it must be at least 0, and finite"
        )
