"""Plan a run on a topology (a group of chips): the memory, traffic and least time of a step.

The least time is a roofline estimate: the longest of three times, for arithmetic, memory traffic
and communication, each at the chip's peak rate. A real step takes longer.
"""

import dataclasses
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
from rich.table import Table

from gnet_jax.config import Config, Decoder, choose
from gnet_jax.convert.start import with_start
from gnet_jax.data.prepare.tfds import IMAGES
from gnet_jax.data.sources import DataError, open_source
from gnet_jax.data.sources.tfds import class_names, open_builder
from gnet_jax.lab.cost.ledger import Ledger, network_ledger, number_table
from gnet_jax.pods.topology import HOSTS, Chip, Host, Topology
from gnet_jax.training.program import Program, make_program
from gnet_jax.training.sharding import check_batches, compile_train_step, data_mesh, step_memory

Bound = Literal["compute", "memory", "network"]
# How many times a ring of devices sends the data: twice for all-reduce, once for all others.
ONCE = ("all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
COLLECTIVES = {"all-reduce": 2} | dict.fromkeys(ONCE, 1)
# Operations that only refer to memory, so they cause no traffic.
FREE = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "partition-id", "while")
LIBRARY_CALL = re.compile(r'custom_call_target="__(?:cudnn|cublas|triton)')
BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0} | {
    f"{kind}{bits}": bits for kind in "fsuc" for bits in (1, 2, 4, 8, 16, 32, 64, 128)
}
INSTRUCTION = re.compile(r"(?m)^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:, |$)")
ARRAY = re.compile(r"\b([a-z]+\d*)(?:e\d+m\d+\w*)?\[([\d,]*)\](\{[^}]*S\(\d+\)[^}]*\})?")
COMPUTATION = re.compile(r"(?ms)^%?([\w.-]+) \([^\n]*\{\n(.*?)^\}")
LOOP = re.compile(r"\bwhile\(.*?\bbody=%?([\w.-]+)(?:.*?known_trip_count\D+(\d+))?")


# Images per CPU second of each decoder, and bytes per image. Measured on photos of ImageNet's size
# by benchmarks/input_pipeline.py (docs/pods.md).
DECODED = {"pillow": 610.0, "fast": 790.0}
IMAGE_BYTES = 112e3


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives (communication operations) of one kind in a program."""

    kind: str
    count: int
    bytes: int  # size of their results on one device; those in a loop are counted once


@dataclasses.dataclass(frozen=True)
class CompiledCost:
    """The cost of one compiled training step on each device."""

    argument_bytes: int
    temp_bytes: int
    memory_bytes: int  # of the program, its arguments and its results
    flops: float | None  # multiplications and additions; None if the compiler does not count them
    bytes: float  # of main memory, read and written
    cycles: int  # estimated by a TPU's compiler; 0 if it gives no estimate
    collectives: tuple[Collective, ...]
    fusions: int
    convolutions: int  # number of convolutions, matrix products and library calls
    donated: int  # number of donated arrays
    seconds: float  # compilation time


def compile_cost(program: Program, chip: Chip) -> CompiledCost:
    """Compile the training step and return its cost; raises JaxRuntimeError if it does not fit."""
    start = time.perf_counter()
    compiled = compile_train_step(
        program.mesh,
        program.train_step(),
        program.abstract_state(),
        program.abstract_batch(),
        manual=program.canonical,
        # Autotuning runs kernels, which needs a GPU.
        compiler_options={"xla_gpu_autotune_level": "0"} if chip.platform == "cuda" else None,
    )
    return read_cost(compiled, time.perf_counter() - start)


def read_cost(compiled: jax.stages.Compiled, seconds: float = 0.0) -> CompiledCost:
    """Returns the cost of a compiled training step, whose compilation took `seconds`."""
    memory: Any = compiled.memory_analysis()
    text = compiled.as_text() or ""
    counted = compiled.cost_analysis() or {}
    fusions, convolutions = count_operations(text)
    return CompiledCost(
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        memory_bytes=(step_memory(compiled) or 0) + memory.generated_code_size_in_bytes,
        flops=counted.get("flops"),
        bytes=count_traffic(text),
        cycles=sum_cycles(text),
        collectives=find_collectives(text),
        fusions=fusions,
        convolutions=convolutions,
        donated=count_donated(text),
        seconds=seconds,
    )


def parse_out_of_memory(message: str) -> int | None:
    """Returns the bytes that a step needs, from a compiler's message; None if it names none."""
    found = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of ", message)
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        return None
    return int(float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1))


def array_bytes(shape: str, *, main_memory: bool = False) -> int:
    """Returns the size in bytes of a shape such as "f32[2,3]{1,0}", or of a tuple of shapes.

    With `main_memory`, arrays in other memory spaces ("S(1)" is a TPU's on-chip memory) count 0.
    """
    return sum(
        math.prod(int(side) for side in sides.split(",") if side)
        * choose("the element type of an array in the program", kind, BITS)
        // 8
        for kind, sides, other_memory in ARRAY.findall(shape)
        if not (main_memory and other_memory)
    )


def instructions(text: str, *, main_memory: bool = False) -> Iterator[tuple[str, int, int]]:
    """Yield (opcode, bytes of its result, bytes of all its operands) for each instruction."""
    sizes: dict[str, int] = {}
    for name, shape, opcode, operands in INSTRUCTION.findall(text):
        sizes[name] = array_bytes(shape, main_memory=main_memory)
        read = sum(sizes.get(each, 0) for each in re.findall(r"%([\w.-]+)", operands))
        yield opcode, sizes[name], read


def _entry(text: str) -> str:
    """Returns the entry computation, which is the last part of a compiled program's text."""
    return text[text.find("\nENTRY ") + 1 :]


def find_collectives(text: str) -> tuple[Collective, ...]:
    """Returns a Collective for each kind in a program; a -start and its -done count as one."""
    found: dict[str, list[int]] = {}
    for opcode, result, operands in instructions(text):
        kind = opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            # The shape of a "-start" instruction includes the operands, except for all-reduce.
            includes = opcode != kind and kind != "all-reduce"
            found.setdefault(kind, []).append(result - operands if includes else result)
    return tuple(Collective(kind, len(each), sum(each)) for kind, each in sorted(found.items()))


def count_traffic(text: str) -> int:
    """Returns the bytes of main memory that a compiled program reads and writes.

    Operands count in full, and a loop's body as often as it runs. Arrays in a TPU's on-chip memory
    do not count, and copies to it count once. XLA's own count for TPUs includes both, and counts
    each copied piece of an array as the whole array.
    """
    bodies = dict(COMPUTATION.findall(text))

    def traffic(body: str) -> int:
        total = sum(traffic(bodies[name]) * int(times or 1) for name, times in LOOP.findall(body))
        both = zip(instructions(body), instructions(body, main_memory=True), strict=True)
        for (opcode, result, operands), (_, written, read) in both:
            if opcode in ("copy-start", "slice-start"):  # their results include their operands
                written, read = written - read, min(read, result - operands)
            if opcode not in FREE and not opcode.endswith("-done"):
                total += written + read
        return total

    return traffic(_entry(text))


def count_operations(text: str) -> tuple[int, int]:
    """Returns two counts: fusions, and (convolutions + matrix products + library calls)."""
    opcodes = Counter(opcode for opcode, _, _ in instructions(text))
    products = opcodes["convolution"] + opcodes["dot"] + len(LIBRARY_CALL.findall(text))
    return opcodes["fusion"], products


def count_donated(text: str) -> int:
    """Returns how many results of a program reuse the memory of an argument."""
    found = re.search(r"input_output_alias=\{(.*?)\}, \w+=", text[: text.index("\n")])
    return 0 if found is None else found[1].count("-alias)")


def sum_cycles(text: str) -> int:
    """Returns the sum of the compiler's cycle estimates in the entry computation; 0 without any."""
    return sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', _entry(text))))


class DataSize(NamedTuple):
    """The number of training images, and the names of the classes."""

    images: int
    class_names: tuple[str, ...]


def data_size(spec: str, images: int | None = None, classes: int | None = None) -> DataSize:
    """Returns the size of the data set `spec` (see `open_source`). ImageNet need not be present.

    `images` and `classes` replace the numbers of the data set. With `classes`, the class names are
    "0", "1" and so on. Raises DataError if a number is not given and the data cannot be read.
    """
    names = tuple(map(str, range(classes or 0)))
    if images and names:
        return DataSize(images, names)
    try:
        source = open_source(spec, "train")
        found = DataSize(len(source), source.class_names)
    except DataError as error:
        if spec.split(":")[:2] != ["tfds", "imagenet2012"]:
            message = f"{error}. To plan without the data, give --images and --classes"
            raise DataError(message) from error
        features = open_builder("imagenet2012").info.features
        found = DataSize(IMAGES["train"], class_names(spec, features))
    return DataSize(images or found.images, names or found.class_names)


@dataclasses.dataclass(frozen=True)
class Input:
    """What each host needs to load ImageNet's JPEGs as fast as the chips can use them."""

    decode_cpus: float  # vCPUs that do nothing else
    read_bytes_per_sec: float
    host: Host | None  # what it has; None if the machine is unknown or only partly used
    verdict: str


def plan_input(images_per_sec: float, decoder: Decoder, host: Host | None) -> Input:
    """Returns what `host` needs to load `images_per_sec`, and whether it has that."""
    cpus = images_per_sec / choose("data.decoder", decoder, DECODED)
    read = images_per_sec * IMAGE_BYTES
    if host is None:
        return Input(cpus, read, None, "unknown, because the machine is unknown")
    share = min(host.cpus / cpus, math.inf if host.network is None else host.network / read)
    verdict = f"fast enough: {host.machine} can load {share:.1f} times as many images"
    if share < 1:
        fix = "use --data.decoder fast, or smaller images (gnet prepare --resize 256)"
        verdict = f"TOO SLOW: {host.machine} can load {share:.0%} of the images; {fix}"
    return Input(cpus, read, host, verdict)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of a run on a topology. If the compiler rejects the step, most values are None."""

    topology: str
    chips: int
    hosts: int
    batch_size: int
    hbm_available: int  # bytes that a program may use on each chip
    fits: bool
    hbm_bytes: int  # bytes that the step needs on each chip
    argument_bytes: int | None = None
    temp_bytes: int | None = None
    flops_per_image: float | None = None
    flops_from: Literal["compiler", "ledger"] | None = None
    ledger_flops_per_image: float | None = None
    bytes_per_image: float | None = None
    temp_bytes_per_image: float | None = None
    seconds: dict[Bound, float] | None = None  # least time of a step, by each limit alone
    bound: Bound | None = None
    step_seconds: float | None = None
    mfu: float | None = None  # the ledger's FLOPs over those that the chips can do in this time
    images_per_sec: float | None = None
    days: float | None = None  # for the config's epochs
    images_per_sec_per_host: float | None = None  # that each host must read and decode
    input: Input | None = None
    collectives: tuple[Collective, ...] = ()
    fusions: int | None = None
    convolutions: int | None = None
    donated: int | None = None  # arrays of the state whose memory is reused
    compile_seconds: float | None = None


def program_for(config: Config, topology: Topology, data: DataSize) -> Program:
    """Returns the training program of `config` on a topology; raises as `make_program` does."""
    config, pretrained = with_start(config)
    mesh = data_mesh(topology.devices)
    check_batches(config, mesh)
    return make_program(config, data.class_names, data.images, mesh, pretrained)


def plan_program(program: Program, topology: Topology) -> Plan:
    """Compile `program`, whose mesh must have the devices of `topology`, and return its plan."""
    chip, chips, batch_size = topology.chip, len(topology.devices), program.config.batch_size
    available = round(chip.usable * chip.hbm_bytes)
    place = (topology.name, chips, topology.hosts, batch_size, available)
    try:
        cost = compile_cost(program, chip)
    except jax.errors.JaxRuntimeError as error:
        needed = parse_out_of_memory(str(error))
        if needed is None:
            raise
        return Plan(*place, fits=False, hbm_bytes=needed)
    share = batch_size / chips
    counted = ledger_flops(program)
    flops = counted if cost.flops is None else cost.flops / share
    seconds = step_limits(program, chip, cost)
    bound = max(seconds, key=lambda side: seconds[side])
    step_seconds, names = seconds[bound], ("argument_bytes", "temp_bytes", "collectives")
    per_host = batch_size / step_seconds / topology.hosts
    host = HOSTS.get(chip.name) if chips == topology.hosts * chip.per_host else None
    same = {name: getattr(cost, name) for name in (*names, "fusions", "convolutions", "donated")}
    return Plan(
        *place,
        **same,
        fits=cost.memory_bytes <= available,
        hbm_bytes=cost.memory_bytes,
        flops_per_image=flops,
        flops_from="ledger" if cost.flops is None else "compiler",
        ledger_flops_per_image=counted,
        bytes_per_image=cost.bytes / share,
        temp_bytes_per_image=cost.temp_bytes / share,
        seconds=seconds,
        bound=bound,
        step_seconds=step_seconds,
        mfu=counted * share / chip.peak(program.config.model.dtype) / step_seconds,
        images_per_sec=batch_size / step_seconds,
        days=program.steps_left(0) * step_seconds / 86_400,
        images_per_sec_per_host=per_host,
        input=plan_input(per_host, program.config.data.decoder, host),
        compile_seconds=cost.seconds,
    )


def training_flops(costs: Ledger) -> float:
    """Returns the number of multiplications and additions of a training step for one image.

    A layer counts three times: for its output, the gradient of its weights and that of its input.
    The first layer needs no gradient of its input. Pooling, norms and the optimiser do not count.
    """
    return 2.0 * (3 * costs.macs_with_aux - costs.layers[0].macs)


def ledger_flops(program: Program) -> float:
    """Returns the FLOPs of a training step for one image, as the cost ledger counts them."""
    return training_flops(network_ledger(program.model, program.config.data.image_size))


def step_limits(program: Program, chip: Chip, cost: CompiledCost) -> dict[Bound, float]:
    """Returns the `roofline` of a compiled step of `program`."""
    chips, flops = program.mesh.size, cost.flops
    if flops is None:  # the compiler does not count them
        flops = ledger_flops(program) * program.config.batch_size / chips
    chip = dataclasses.replace(chip, flops=chip.peak(program.config.model.dtype))
    return roofline(chip, flops, cost.bytes, cost.collectives, chips)


def roofline(
    chip: Chip, flops: float, traffic: float, collectives: tuple[Collective, ...], chips: int
) -> dict[Bound, float]:
    """Returns the least time of a step by each `Bound`, in seconds, from its costs on one chip."""
    sizes = sum(each.bytes * choose("collective", each.kind, COLLECTIVES) for each in collectives)
    return {
        "compute": flops / chip.flops,
        "memory": traffic / chip.bandwidth,
        "network": sizes * (chips - 1) / chips / chip.link_bandwidth,
    }


def plan_table(plans: Sequence[Plan], title: str) -> Table:
    """Returns a table with one column for each topology; a dash marks an unknown value."""
    table = number_table(title, "", *(plan.topology for plan in plans))
    for rows in zip(*map(_figures, plans), strict=True):
        if rows[0] is None:
            table.add_section()
        else:
            table.add_row(rows[0][0], *(value for _, value in rows))
    return table


def _figures(plan: Plan) -> Iterator[tuple[str, str] | None]:
    """Yield the name and the text of every value, and None between groups of values."""
    collectives = (f"{c.count} {c.kind}, {c.bytes / 2**20:.1f} MiB" for c in plan.collectives)
    need, have = (value / 2**30 for value in (plan.hbm_bytes, plan.hbm_available))
    yield "chips on hosts", f"{plan.chips} on {plan.hosts}"
    yield "images per step", f"{plan.batch_size:,} ({plan.batch_size / plan.chips:g} per chip)"
    yield None
    yield "fits", "yes" if plan.fits else "NO"
    yield "memory per chip", f"{need:.2f} of {have:.2f} GiB"
    yield "  arguments", _text(plan.argument_bytes, 2**20, 0, " MiB")
    yield "  temporaries", _text(plan.temp_bytes, 2**20, 0, " MiB")
    yield "  temporaries per image", _text(plan.temp_bytes_per_image, 2**20, 1, " MiB")
    yield None
    yield "GFLOP per image", _text(plan.flops_per_image, 1e9, 2)
    yield "  by the cost ledger", _text(plan.ledger_flops_per_image, 1e9, 2)
    yield "MB per image", _text(plan.bytes_per_image, 1e6, 1)
    yield "collectives", "; ".join(collectives) or "none"
    yield "fusions", _text(plan.fusions, 1, 0)
    yield "convolutions", _text(plan.convolutions, 1, 0)
    yield None
    for side in ("compute", "memory", "network"):
        yield f"ms per step, {side} alone", _text((plan.seconds or {}).get(side), 1e-3, 2)
    yield "bound by", plan.bound or "-"
    yield "MFU, upper limit", _text(plan.mfu, 0.01, 1, " %")
    yield "images/s, upper limit", _text(plan.images_per_sec, 1, 0)
    yield "  that each host decodes", _text(plan.images_per_sec_per_host, 1, 0)
    need, host = plan.input, None if plan.input is None else plan.input.host
    cpus, read = (need.decode_cpus, need.read_bytes_per_sec) if need else (None, None)
    has_cpus, has_network = (host.cpus, host.network) if host else (None, None)
    yield "  vCPUs for that, of a host's", f"{_text(cpus, 1, 1)} of {_text(has_cpus, 1, 0)}"
    yield "  GB/s read for that", f"{_text(read, 1e9, 2)} of {_text(has_network, 1e9, 1)}"
    yield "  the input is", "-" if need is None else need.verdict
    yield "days, lower limit", _text(plan.days, 1, 3)


def _text(value: float | None, unit: float, digits: int, name: str = "") -> str:
    return "-" if value is None else f"{value / unit:,.{digits}f}{name}"
