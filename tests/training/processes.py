"""Runs over real processes on this machine: train.py as a user starts it, on three blocks.

The processes meet over gloo on loopback, each with some virtual CPU devices. Programs are compiled
without optimisation and kept in a folder that all runs of a test session share.
`python -m tests.training.processes` is what each of them runs: train.py, the network cut down.
"""

import contextlib
import dataclasses
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gnet_jax.training.hosts.supervise import newest_step

ROOT = Path(__file__).parents[2]
# Of the digits recipe, what every run has otherwise: seconds to compile, milliseconds a step.
RECIPE = (
    *("--batch-size", "16", "--eval-batch-size", "104", "--log-every-steps", "1"),
    *("--model.variant", "paper", "--model.aux-after", "4a", "--data.threads", "1"),
    *("--optim.learning-rate", "0.01", "--optim.warmup-epochs", "0"),
)
FLAGS = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"


def free_port() -> int:
    """A port of this machine that nobody listens on.

    From below those that the system hands out by itself: until a process listens there, seconds
    from now, it gives them to others.
    """
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("localhost", random.randint(15_000, 32_000)))
            return probe.getsockname()[1]


def load() -> float:
    """How many times longer things may take, as there is more work than cores; at least 1."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@dataclasses.dataclass
class Hosts:
    """The processes of one run, and the files that hold what they print."""

    processes: list[subprocess.Popen[bytes]]
    outputs: list[Path]
    workdir: Path

    def wait(self, seconds: float = 300) -> list[int]:
        """The exit codes of all, once all have ended; those that have not are killed."""
        deadline = time.monotonic() + seconds
        try:
            return [
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
                for process in self.processes
            ]
        finally:
            self.end()

    def end(self) -> None:
        """Kill those that are left, stopped ones too."""
        for process in self.processes:
            process.kill()
            process.wait()

    def text(self, host: int = 0) -> str:
        """What a process has printed so far."""
        return self.outputs[host].read_text()

    def lines(self, host: int = 0) -> list[str]:
        """The lines of it, but those of Gloo and JAX's cache, which speak of their own accord."""
        others = ("[Gloo]", "peer ranks", "persistent compilation cache", "  warnings.warn(")
        lines = self.text(host).splitlines()
        return [line for line in lines if line and not any(words in line for words in others)]

    def wait_for(self, text: str, host: int = 0, seconds: float = 300) -> None:
        """Return once a process has printed `text`."""
        self._until(lambda: text in self.text(host), seconds)

    def wait_for_step(self, step: int, seconds: float = 300) -> None:
        """Return once `step`, or a later one, is saved."""
        self._until(lambda: newest_step(self.workdir / "checkpoints") >= step, seconds)

    def _until(self, holds, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            ended = [p.poll() for p in self.processes]
            told = "\n".join(f"--- {i}\n{self.text(i)}" for i in range(len(self.processes)))
            assert None in ended, f"ended with {ended}:\n{told}"
            assert time.monotonic() < deadline, told
            time.sleep(0.02)


def start(
    workdir: Path,
    *arguments: str,
    processes: int = 1,
    devices: int = 4,
    of_host: Sequence[Sequence[str]] = (),
    module: str = "tests.training.processes",
) -> Hosts:
    """A run of `processes` processes with `devices` devices each.

    Args:
        arguments: of train.py, for all processes.
        of_host: further arguments of each process.
        module: what each process runs.
    """
    command = [sys.executable, "-m", module, "--workdir", str(workdir), *RECIPE, *arguments]
    commands = joined(command, processes) if processes > 1 else [command]
    if of_host:
        commands = [[*each, *own] for each, own in zip(commands, of_host, strict=True)]
    return launch(commands, workdir, devices)


def joined(command: Sequence[str], processes: int) -> list[list[str]]:
    """The command of each of `processes` processes that meet on this machine."""
    meet = ("--coordinator", f"localhost:{free_port()}", "--num-processes", str(processes))
    return [[*command, *meet, "--process-id", str(number)] for number in range(processes)]


def launch(commands: Sequence[Sequence[str]], workdir: Path, devices: int) -> Hosts:
    """Start the commands, which print into files beside `workdir`."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": FLAGS.format(devices=devices),
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent.parent / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    workdir.parent.mkdir(parents=True, exist_ok=True)
    started, outputs = [], []
    for number, command in enumerate(commands):
        outputs.append(workdir.parent / f"{workdir.name}-{time.monotonic_ns()}-{number}.txt")
        with outputs[-1].open("wb") as output:
            started.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
                )
            )
    return Hosts(started, outputs, workdir)


def main() -> int:
    """train.py with three blocks at a sixteenth of the width, whatever the config names."""
    import train
    from gnet_jax.config import ModelConfig
    from tests.tiny import tiny_arch

    ModelConfig.build = lambda self, **_: tiny_arch(self.variant)
    return train.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
