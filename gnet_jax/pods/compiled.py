"""The cost of a training step compiled for a topology, from XLA's analyses and program text.

All figures are of one device, because a step is one program that every device of the mesh runs.
"""

import dataclasses
import math
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from gnet_jax.config import UserError, choose
from gnet_jax.pods.topology import Chip
from gnet_jax.training.program import Program
from gnet_jax.training.sharding import compile_train_step

# How often a ring sends the data: twice for a sum, once for all others.
ONCE = ("all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
COLLECTIVES = {"all-reduce": 2} | dict.fromkeys(ONCE, 1)
# These only name memory, so they cause no traffic.
FREE = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "partition-id")
LIBRARY_CALL = re.compile(r'custom_call_target="__(?:cudnn|cublas|triton)')
BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0} | {
    f"{kind}{bits}": bits for kind in "fsuc" for bits in (1, 2, 4, 8, 16, 32, 64, 128)
}
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:, |$)")
ARRAY = re.compile(r"\b([a-z]+\d*)(?:e\d+m\d+\w*)?\[([\d,]*)\]")


class OutOfMemoryError(UserError):
    """A step that the compiler refuses because it needs more memory than a device has."""

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message)
        self.needed = needed  # bytes


@dataclasses.dataclass(frozen=True)
class Collective:
    """The collectives of one kind in a program."""

    kind: str
    count: int
    bytes: int  # of their results, on one device; counted once even inside a loop


@dataclasses.dataclass(frozen=True)
class CompiledCost:
    """The cost of one compiled training step on each device."""

    argument_bytes: int
    output_bytes: int
    alias_bytes: int  # of results that reuse an argument's memory, as the donated state does
    temp_bytes: int
    code_bytes: int
    flops: float | None  # multiplications and additions; None if the compiler does not count
    bytes: float  # read and written
    cycles: int  # estimated by a TPU's compiler; 0 if it gives no estimate
    collectives: tuple[Collective, ...]
    fusions: int
    convolutions: int  # with matrix products and library calls
    donated: int  # arrays
    seconds: float  # of compilation

    @property
    def memory_bytes(self) -> int:
        """Memory of the program, its arguments and its results."""
        own = self.temp_bytes + self.code_bytes
        return self.argument_bytes + self.output_bytes - self.alias_bytes + own


def compile_cost(program: Program, chip: Chip) -> CompiledCost:
    """Compile the training step of `program` for the devices of its mesh, which takes minutes.

    Raises OutOfMemoryError if the compiler finds that it does not fit.
    """
    start = time.perf_counter()
    try:
        compiled = compile_train_step(
            program.mesh,
            program.train_step(),
            program.abstract_state(),
            program.abstract_batch(),
            manual=program.canonical,
            # Autotuning runs kernels, which needs a GPU.
            compiler_options={"xla_gpu_autotune_level": "0"} if chip.platform == "cuda" else None,
        )
    except jax.errors.JaxRuntimeError as error:
        refused = parse_out_of_memory(str(error), chip)
        if refused is None:
            raise
        raise refused from error
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    text = compiled.as_text() or ""
    counted = compiled.cost_analysis() or {}
    fusions, convolutions = count_operations(text)
    return CompiledCost(
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        flops=counted.get("flops"),
        bytes=counted.get("bytes accessed") or count_traffic(text),  # CUDA's compiler has none
        cycles=sum_cycles(text),
        collectives=find_collectives(text),
        fusions=fusions,
        convolutions=convolutions,
        donated=count_donated(text),
        seconds=seconds,
    )


def parse_out_of_memory(message: str, chip: Chip) -> OutOfMemoryError | None:
    """Returns the error in a compiler's message; None if the message is not about memory."""
    found = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of ", message)
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        return None
    needed = float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1)
    return OutOfMemoryError(
        f"the step needs {needed / 2**30:.1f} GiB a chip, and a {chip.name} has "
        f"{chip.hbm_bytes / 2**30:.1f}; use a smaller --batch, more chips, or --optim.accumulate",
        int(needed),
    )


class Instruction(NamedTuple):
    """One line of a program; `bytes` is the size of its result."""

    name: str
    opcode: str
    bytes: int
    operands: list[str]


def array_bytes(shape: str) -> int:
    """Returns the bytes of the arrays in a shape's text, such as "f32[2,3]{1,0}" or a tuple."""
    return sum(
        math.prod(int(side) for side in sides.split(",") if side)
        * choose("the element type of an array in the program", kind, BITS)
        // 8
        for kind, sides in ARRAY.findall(shape)
    )


def instructions(text: str) -> Iterator[Instruction]:
    """Yield the instructions in a program's text."""
    for line in text.splitlines():
        found = INSTRUCTION.match(line)
        if found:
            name, shape, opcode, operands = found.groups()
            yield Instruction(name, opcode, array_bytes(shape), re.findall(r"%([\w.-]+)", operands))


def _entry(text: str) -> str:
    """Returns the text of a program's entry computation, which is the last."""
    return text[max(text.find("\nENTRY "), 0) :]


def find_collectives(text: str) -> tuple[Collective, ...]:
    """Returns the collectives of a program by kind; asynchronous ones count at their start."""
    sizes: dict[str, int] = {}
    found: dict[str, list[int]] = {}
    for each in instructions(text):
        sizes[each.name] = each.bytes
        kind = each.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            # The shape of a start includes the operands, except for a sum.
            with_operands = each.opcode != kind and kind != "all-reduce"
            operands = sum(sizes.get(name, 0) for name in each.operands) if with_operands else 0
            found.setdefault(kind, []).append(each.bytes - operands)
    return tuple(Collective(kind, len(each), sum(each)) for kind, each in sorted(found.items()))


def count_traffic(text: str) -> int:
    """Returns the bytes that the entry's instructions read and write, each operand whole."""
    sizes, total = {}, 0
    for each in instructions(_entry(text)):
        sizes[each.name] = each.bytes
        if each.opcode not in FREE and not each.opcode.endswith("-done"):
            total += each.bytes + sum(sizes.get(name, 0) for name in each.operands)
    return total


def count_operations(text: str) -> tuple[int, int]:
    """Returns the number of fusions; and of convolutions, products and library calls anywhere."""
    opcodes = Counter(each.opcode for each in instructions(text))
    products = opcodes["convolution"] + opcodes["dot"] + len(LIBRARY_CALL.findall(text))
    return opcodes["fusion"], products


def count_donated(text: str) -> int:
    """Returns how many of a program's results reuse the memory of an argument."""
    found = re.search(r"input_output_alias=\{(.*?)\}, \w+=", text[: text.index("\n")])
    return 0 if found is None else found[1].count("-alias)")


def sum_cycles(text: str) -> int:
    """Returns the cycles that a TPU's compiler estimates for the entry's fusions, 0 if none.

    Some instructions, such as the gradient of a max pool, carry no estimate.
    """
    return sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', _entry(text))))
