"""Read the traces of `--profile`: the time of every operation, and of every scope of the step.

The name of an operation comes from the trace, and its scope from the text of the compiled step,
which is saved beside the trace. Both are the same on CPUs, GPUs and TPUs.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure
from rich.table import Table

from gnet_jax.config import UserError
from gnet_jax.config.paths import did_you_mean
from gnet_jax.lab.cost.ledger import number_table
from gnet_jax.lab.palette import COLOURS, WIDTHS, style
from gnet_jax.training.observe.profile import FOLDER, PROGRAM, SUFFIX, window_folder

OTHER = "other"  # the scope of operations that belong to none
COMMUNICATION = "communication"  # the scope of collectives; one may combine gradients of all layers
COLLECTIVE = re.compile(
    r"(?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+)(?:-start|-done)?"
)
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = (?:\(.*?\)|\S+) ([\w-]+)\(")
COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$")
OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
CALLS = re.compile(r"calls=%?([\w.-]+)")
CONTAINERS = ("while", "conditional", "call")  # the trace also has the operations inside
# Parts of an operation's name that are no scopes: the network, and control flow.
SKIPPED = re.compile(r"GoogLeNet|while|body|cond|branch_\d+_fun|closed_call|checkpoint|shard_map|")


@dataclasses.dataclass(frozen=True)
class Operation:
    """The mean time of an operation in one step on one device."""

    name: str  # in the trace and in the compiled step
    scope: str  # "stem", "inception_3a", "optimizer", ...
    backward: bool  # whether it belongs to the gradient
    source: str  # the operation's name in JAX; that of its last operation if it is a fusion
    ms: float


@dataclasses.dataclass(frozen=True)
class Profile:
    """The operations of the traced steps, the most expensive first."""

    first: int
    last: int
    devices: int
    operations: tuple[Operation, ...]

    @property
    def ms(self) -> float:
        """The time of all operations of a step on one device."""
        return sum(each.ms for each in self.operations)

    def scopes(self) -> dict[str, tuple[float, float]]:
        """Returns the milliseconds (forward, backward) of each scope, the largest sum first."""
        sums: Counter[tuple[str, bool]] = Counter()
        for each in self.operations:
            sums[each.scope, each.backward] += each.ms  # pyright: ignore[reportArgumentType]
        names = {scope for scope, _ in sums}
        times = {scope: (sums[scope, False], sums[scope, True]) for scope in names}
        return dict(sorted(times.items(), key=lambda item: (-sum(item[1]), item[0])))


def read_profile(workdir: Path, window: tuple[int, int] | None = None) -> Profile:
    """Returns the profile of a window of steps, by default the last one that `workdir` has.
    Raises a UserError if there is no folder or trace, or no operation of the training step in it.
    """
    if not workdir.is_dir():
        raise UserError(f"there is no folder {workdir}{did_you_mean(str(workdir))}")
    found = {}
    for program in (workdir / FOLDER).glob(f"steps-*-*/{PROGRAM}"):
        first, last = program.parent.name.split("-")[1:]
        found[int(first), int(last)] = program
    if not found:
        raise UserError(f"{workdir} has no trace; train with --profile FIRST:LAST")
    first, last = chosen = window or max(found)
    if chosen not in found:
        have = ", ".join(f"{first}:{last}" for first, last in sorted(found))
        raise UserError(f"{workdir} has no trace of steps {first}:{last}; it has {have}")
    text = found[chosen].read_text()
    module, names = text.split(None, 2)[1].rstrip(","), parse_program(text)
    times: Counter[str] = Counter()
    devices = set()
    for file in window_folder(workdir, *chosen).glob(f"*{SUFFIX}"):
        for device, name, seconds in _read_trace(file, module):
            if name in names:
                devices.add((file.name, device))
                times[name] += seconds  # pyright: ignore[reportArgumentType]
    if not times:
        raise UserError(f"the trace in {found[chosen].parent} has no operation of a training step")
    share = 1000 / len(devices) / (last - first + 1)
    operations = (
        Operation(name, *scope_of(names[name]), names[name], seconds * share)
        for name, seconds in times.most_common()
    )
    return Profile(first, last, len(devices), tuple(operations))


def parse_program(text: str) -> dict[str, str]:
    """Returns the name in JAX of each operation in a compiled program, "" if it has none.
    A fusion without a name has that of its root. Any other operation without a name has that of one
    whose result it takes, or else of one that takes its result. A collective is in `COMMUNICATION`.
    Loops, conditionals and calls are left out.
    """
    names: dict[str, str] = {}
    roots: dict[str, str] = {}  # the name of the last named operation of each computation
    places: dict[str, int] = {}  # in the order of execution
    computation, operands, left_out = "", [], set()
    for line in text.splitlines():
        found = INSTRUCTION.match(line)
        if found is None:
            start = COMPUTATION.match(line)
            computation = start[1] if start else computation
            continue
        name, opcode = found.groups()
        own, called = OP_NAME.search(line), CALLS.search(line)
        used = re.findall(r"%([\w.-]+)", line[found.end() :])
        source = own[1] if own else roots.get(called[1], "") if called else ""
        scoped = [each for each in used if _has_scope(names.get(each, ""))]
        if scoped and not source:  # the newest: a weight's gradient also takes a forward result
            source = names[max(scoped, key=places.__getitem__)]
        if source:
            roots[computation] = source
        if COLLECTIVE.fullmatch(opcode):
            source = f"/{COMMUNICATION}/{opcode}"
        names[name], places[name] = source, len(places)
        operands.append((name, used))
        if opcode in CONTAINERS:
            left_out.add(name)
    for user, used in reversed(operands):
        for each in used:
            if names.get(each) == "" and _has_scope(names[user]):
                names[each] = names[user]
    return {name: source for name, source in names.items() if name not in left_out}


def _has_scope(source: str) -> bool:
    return scope_of(source)[0] not in (OTHER, COMMUNICATION)


def scope_of(source: str) -> tuple[str, bool]:
    """Returns the outermost scope in an operation's name in JAX, and whether it is backward.
    "jit(step)/transpose(jvp(GoogLeNet))/stem/conv1/add" gives ("stem", True).
    """
    backward = "transpose(" in source
    for part in source.split("/")[1:-1]:
        inner = re.sub(r"^(?:(?:jvp|transpose|vmap)\()+|\)+$", "", part)
        if inner.startswith("jit("):  # a function of JAX; what is inside is not ours
            break
        if not SKIPPED.fullmatch(inner):
            return inner, backward
    return OTHER, backward


def _read_trace(file: Path, module: str) -> Iterator[tuple[Any, str, float]]:
    """Yield (device, name, seconds) for each operation of the program `module` in a trace."""
    try:
        planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    except RuntimeError as error:
        fix = "trace the steps again in another workdir"
        raise UserError(f"the trace {file} is corrupt ({error}); {fix}") from error
    # GPUs and TPUs have planes of their own; the host's plane then has only the launches.
    on_device = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in on_device or planes:
        lines = list(plane.lines)
        # The other lines of a TPU group the same time by step and by module.
        lines = [line for line in lines if line.name == "XLA Ops"] or lines
        events = [(each, dict(each.stats)) for line in lines for each in line.events]
        # On CPUs, an event "end: NAME" marks the end of an operation that runs in other threads.
        ends = {stats["_c"]: each.end_ns for each, stats in events if each.name[:5] == "end: "}
        for each, stats in events:
            if stats.get("hlo_module", module) != module:
                continue
            if "hlo_op" in stats:
                name = stats["hlo_op"]
            elif on_device:  # on a TPU, the event is named by the text of the operation
                name = each.name.split(" ")[0].lstrip("%")
            else:
                continue
            end = ends.get(stats.get("_p"), each.end_ns)
            yield (plane.name, stats.get("device_ordinal")), name, 1e-9 * (end - each.start_ns)


def operations_table(profile: Profile, count: int = 10) -> Table:
    """Returns a table of the most expensive operations."""
    table = number_table("most expensive operations", "operation", "ms per step", "share")
    table.add_column("scope", overflow="fold")
    table.add_column("operation in JAX (of a fusion, the last one)", overflow="fold")
    for each in profile.operations[:count]:
        scope = f"{each.scope}, backward" if each.backward else each.scope
        source = "/".join(each.source.split("/")[1:])
        table.add_row(each.name, f"{each.ms:.3f}", f"{each.ms / profile.ms:.1%}", scope, source)
    return table


def scopes_table(profile: Profile) -> Table:
    """Returns a table of the time of each scope, forward and backward."""
    columns = ("forward, ms per step", "backward", "both", "share")
    table = number_table("time by scope", "scope", *columns)
    for scope, times in profile.scopes().items():
        both = sum(times)
        table.add_row(scope, *(f"{ms:.3f}" for ms in (*times, both)), f"{both / profile.ms:.1%}")
    return table


def draw_scopes(profile: Profile) -> Figure:
    """Returns a bar chart of the time of each scope."""
    scopes = profile.scopes()
    figure = Figure(figsize=(WIDTHS[2], 0.6 + 0.22 * len(scopes)), layout="constrained")
    axes, left = figure.subplots(), [0.0] * len(scopes)
    for number, label in enumerate(("forward", "backward")):
        widths = [times[number] for times in scopes.values()]
        axes.barh(list(scopes), widths, left=left, color=COLOURS[number], label=label)
        left = widths
    axes.invert_yaxis()
    style(axes, axis="x")
    axes.set_xlabel(f"ms per step and device, steps {profile.first} to {profile.last}")
    axes.legend(loc="lower right")
    return figure
