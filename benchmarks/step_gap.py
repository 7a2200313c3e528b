"""Measure how long the devices wait between two training steps: `python benchmarks/step_gap.py`.

Trains a network of three blocks on digits, in two processes of four virtual CPU devices. The gap
is the time from the end of a step to the dispatch of the next one; it is 0 if that was dispatched
before. Prints the median gap after steps with a report and after the others. To compare two
versions of the code, give the folder of the other one: `--code DIR`.
"""

import argparse
import dataclasses
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROCESSES, DEVICES, REPORT_EVERY = 2, 4, 5
SKIPPED = 10  # steps at the start, whose times vary most
RECIPE = (
    *("digits", "--batch-size", "64", "--eval-every-epochs", "1000", "--data.threads", "1"),
    *("--model.width-multiplier", "0.0625", "--log-every-steps", str(REPORT_EVERY)),
    *("--model.variant", "paper", "--model.aux-after", "4a"),
)


class Recorder:
    """Calls a compiled step, and records when each call is dispatched and when it is done."""

    def __init__(self, step: Any) -> None:
        self._step = step
        self.dispatched: list[float] = []
        self.done: dict[int, float] = {}
        self._threads: list[threading.Thread] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    def __call__(self, *arguments: Any) -> Any:
        self.dispatched.append(time.perf_counter())
        results = self._step(*arguments)
        (_, metrics), _ = results
        waits = threading.Thread(target=self._wait, args=(len(self.dispatched) - 1, metrics))
        waits.start()
        self._threads.append(waits)
        return results

    def _wait(self, number: int, metrics: Any) -> None:
        import jax

        jax.block_until_ready(metrics)
        self.done[number] = time.perf_counter()

    def gaps(self) -> list[float]:
        """Returns the gap after each step but the last, in milliseconds."""
        for thread in self._threads:
            thread.join()
        pairs = enumerate(self.dispatched[1:])
        return [1000 * max(0.0, later - self.done[step]) for step, later in pairs]


def work(arguments: list[str], out: Path) -> None:
    """Train in this process, and write the gaps."""
    from gnet_jax.cli import train
    from gnet_jax.config import ModelConfig
    from gnet_jax.training.loop import CompiledSteps

    build = ModelConfig.build

    def three_blocks(self: ModelConfig) -> Any:
        arch = build(self)
        widths = {name: arch.widths[name] for name in ("3a", "4a", "5a")}
        return dataclasses.replace(arch, widths=widths)

    ModelConfig.build = three_blocks
    recorders: list[Recorder] = []
    compiled: Any = CompiledSteps.train

    def recorded(steps: CompiledSteps) -> Recorder:
        if not recorders:
            recorders.append(Recorder(compiled.func(steps)))
        return recorders[0]

    CompiledSteps.train = property(recorded)  # pyright: ignore[reportAttributeAccessIssue]
    code = train.main(arguments, "train.py")
    if code:
        sys.exit(code)
    out.write_text(json.dumps(recorders[0].gaps()))


def main() -> None:
    """Start the processes, and print the gaps of the first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--code", type=Path, default=ROOT, help="folder of the code to measure")
    parser.add_argument("--epochs", type=float, default=6, help="23 steps each")
    parser.add_argument("--json", type=Path, help="file for the gaps in milliseconds")
    a = parser.parse_args()
    flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={DEVICES}"
    environment = os.environ | {"PYTHONPATH": str(a.code), "XLA_FLAGS": flags}
    environment |= {"JAX_PLATFORMS": "cpu"}
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = [sys.executable, __file__, "--work", folder, *RECIPE, "--epochs", str(a.epochs)]
        command += ["--workdir", f"{folder}/run", "--coordinator", f"localhost:{port}"]
        command += ["--num-processes", str(PROCESSES), "--process-id"]
        started = [
            subprocess.Popen([*command, str(number)], env=environment, stdout=subprocess.DEVNULL)
            for number in range(PROCESSES)
        ]
        codes = [process.wait() for process in started]
        if any(codes):
            sys.exit(f"the processes exited with {codes}")
        gaps = json.loads(Path(folder, "gaps-0.json").read_text())
    numbered = list(enumerate(gaps, 1))[SKIPPED:]
    for what, report in (("a report", True), ("no report", False)):
        own = [gap for step, gap in numbered if (step % REPORT_EVERY == 0) == report]
        waits = sum(gap > 0 for gap in own)
        print(
            f"after steps with {what}: median gap {statistics.median(own):.2f} ms, "
            f"a gap after {waits} of {len(own)} steps"
        )
    if a.json:
        a.json.write_text(json.dumps(gaps))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        folder, *arguments = sys.argv[2:]
        work(arguments, Path(folder, f"gaps-{arguments[-1]}.json"))
    else:
        main()
