"""A training step compiled for a topology, and what the compiler says that it takes.

All figures are of one device: a step is one program that every device of the mesh runs.
"""

import dataclasses
import math
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from gnet_jax.config import UserError, choose
from gnet_jax.pods.chips import Chip
from gnet_jax.training.program import Program
from gnet_jax.training.sharding import compile_train_step

# How often a ring sends the data of each: a sum goes around twice, all others once.
COLLECTIVES = {
    "all-reduce": 2,
    "all-gather": 1,
    "reduce-scatter": 1,
    "all-to-all": 1,
    "collective-permute": 1,
    "collective-broadcast": 1,
}
CONVOLUTIONS = ("convolution", "dot")
LIBRARIES = ("__cudnn", "__cublas", "__triton")
# These name a place in memory, or are the halves of a copy; they read and write nothing that the
# others do not.
FREE = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "partition-id")
BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0} | {
    f"{kind}{bits}": bits for kind in "fsuc" for bits in (1, 2, 4, 8, 16, 32, 64, 128)
}
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:, |$)")
ARRAY = re.compile(r"\b([a-z]+\d*)(?:e\d+m\d+\w*)?\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """The collectives of one kind in a program."""

    kind: str
    count: int
    bytes: int  # of their results, on one device; once, where a loop runs them several times


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program."""

    name: str
    opcode: str
    bytes: int  # of its result
    operands: tuple[str, ...]
    text: str


def array_bytes(shape: str) -> int:
    """Bytes of the arrays in the text of a shape: "f32[2,3]{1,0}", or a tuple of such.

    Raises:
        UserError: for an element type of unknown size.
    """
    return sum(
        math.prod(int(side) for side in sides.split(",") if side)
        * choose("the element type of an array in the program", kind, BITS)
        // 8
        for kind, sides in ARRAY.findall(shape)
    )


def instructions(text: str, entry: bool = False) -> Iterator[Instruction]:
    """The instructions of a program; with `entry` those of its entry computation alone."""
    if entry:
        text = text[text.index("\nENTRY ") :] if "\nENTRY " in text else text
    for line in text.splitlines():
        found = INSTRUCTION.match(line)
        if found:
            name, shape, opcode, operands = found.groups()
            names = tuple(re.findall(r"%([\w.-]+)", operands))
            yield Instruction(name, opcode, array_bytes(shape), names, line)


def collectives(text: str) -> tuple[Collective, ...]:
    """The collectives of a program by kind; of an asynchronous one the start counts."""
    sizes: dict[str, int] = {}
    found: dict[str, list[int]] = {}
    for each in instructions(text):
        sizes[each.name] = each.bytes
        kind = each.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            # The start of most kinds names its operands beside its results; a sum's does not.
            named = each.opcode != kind and kind != "all-reduce"
            given = sum(sizes.get(name, 0) for name in each.operands) if named else 0
            found.setdefault(kind, []).append(each.bytes - given)
    return tuple(Collective(kind, len(sizes), sum(sizes)) for kind, sizes in sorted(found.items()))


def traffic(text: str) -> int:
    """Bytes that the entry's instructions read and write, each operand whole.

    For compilers that give no count of their own.
    """
    sizes, total = {}, 0
    for each in instructions(text, entry=True):
        sizes[each.name] = each.bytes
        if each.opcode not in FREE and not each.opcode.endswith("-done"):
            total += each.bytes + sum(sizes.get(name, 0) for name in each.operands)
    return total


def program_size(text: str) -> tuple[int, int]:
    """How many fusions a program has, and how many convolutions, matrix products and calls of
    libraries, those inside fusions among them.
    """
    fusions = products = 0
    for each in instructions(text):
        fusions += each.opcode == "fusion"
        called = re.search(r'custom_call_target="([^"]*)"', each.text)
        products += each.opcode in CONVOLUTIONS or (
            called is not None and called[1].startswith(LIBRARIES)
        )
    return fusions, products


def donated(text: str) -> int:
    """How many of a program's results take the place of an argument."""
    header = text[: text.index("\n")]
    found = re.search(r"input_output_alias=\{(.*?)\}, \w+=", header)
    return 0 if found is None else found[1].count("-alias)")


def estimated_cycles(text: str) -> int:
    """Cycles that a TPU's compiler expects the entry's fusions to take; 0 where it says none.

    Some instructions, such as the gradient of a max pool, carry no estimate.
    """
    found = (
        re.search(r'"estimated_cycles":"(\d+)"', each.text)
        for each in instructions(text, entry=True)
    )
    return sum(int(each[1]) for each in found if each)


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
