"""A training step compiled for a topology, and what the compiler says that it takes.

All figures are of one device: a step is one program that every device of the mesh runs.
"""

import dataclasses
import re
import time
from collections.abc import Mapping
from typing import Any

import jax

from gnet_jax.config import UserError, choose
from gnet_jax.pods.chips import Chip
from gnet_jax.pods.program_text import (
    Collective,
    collectives,
    donated,
    estimated_cycles,
    program_size,
    traffic,
)
from gnet_jax.training.run import Program
from gnet_jax.training.sharding import compile_train_step

# Without a GPU there is nothing to try out which kernel of a library is the fastest.
OPTIONS: Mapping[str, dict[str, Any] | None] = {
    "cuda": {"xla_gpu_autotune_level": "0"},
    "tpu": None,
}


class OutOfMemoryError(UserError):
    """A step that the compiler refuses because it needs more memory than a device has."""

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message)
        self.needed = needed  # bytes


@dataclasses.dataclass(frozen=True)
class CompiledCost:
    """What one compiled training step takes of each device."""

    argument_bytes: int
    output_bytes: int
    alias_bytes: int  # of results that take the place of arguments, as the donated state does
    temp_bytes: int
    code_bytes: int
    flops: float | None  # multiplications and additions; None where the compiler counts none
    bytes: float  # read and written
    cycles: int  # that a TPU's compiler expects; 0 where it expects none
    collectives: tuple[Collective, ...]
    fusions: int
    convolutions: int  # and matrix products, and calls of libraries
    donated: int  # arrays
    seconds: float  # that it took to compile

    @property
    def memory_bytes(self) -> int:
        """Memory that the program needs, with what it is given and what it returns."""
        return (
            self.argument_bytes
            + self.output_bytes
            - self.alias_bytes
            + self.temp_bytes
            + self.code_bytes
        )


def compile_cost(program: Program, chip: Chip) -> CompiledCost:
    """The cost of the training step of `program`, compiled for the devices of its mesh.

    It takes minutes.

    Raises:
        OutOfMemoryError: if the compiler finds that it does not fit.
    """
    start = time.perf_counter()
    try:
        compiled = compile_train_step(
            program.mesh,
            program.train_step(),
            program.abstract_state(),
            program.abstract_batch(),
            manual=program.canonical,
            compiler_options=choose("platform", chip.platform, OPTIONS),
        )
    except jax.errors.JaxRuntimeError as error:
        refused = out_of_memory(str(error), chip)
        if refused is None:
            raise
        raise refused from error
    return read_cost(compiled, time.perf_counter() - start)


def read_cost(compiled: jax.stages.Compiled, seconds: float) -> CompiledCost:
    """What a compiled program says of itself."""
    memory: Any = compiled.memory_analysis()
    text = compiled.as_text() or ""
    counted = compiled.cost_analysis() or {}
    fusions, convolutions = program_size(text)
    return CompiledCost(
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        flops=counted.get("flops"),
        bytes=counted.get("bytes accessed") or traffic(text),
        cycles=estimated_cycles(text),
        collectives=collectives(text),
        fusions=fusions,
        convolutions=convolutions,
        donated=donated(text),
        seconds=seconds,
    )


def out_of_memory(message: str, chip: Chip) -> OutOfMemoryError | None:
    """The error that a compiler's message is, if a program needs more memory than a chip has."""
    found = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of ", message)
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        return None
    needed = float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1)
    return OutOfMemoryError(
        f"the step needs {needed / 2**30:.1f} GiB a chip, and a {chip.name} has "
        f"{chip.hbm_bytes / 2**30:.1f}; use a smaller --batch, more chips, or --optim.accumulate",
        int(needed),
    )
