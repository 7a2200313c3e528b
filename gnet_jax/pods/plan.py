"""The plan of a run on a topology: what a step takes of each chip, and how long it takes at best.

The time is a roofline: arithmetic, memory traffic and communication each at the chip's peak, and
the slowest of the three alone. A real step takes longer; how much, only the hardware tells.
"""

import dataclasses
from typing import Any, Literal

from gnet_jax.config import Config, choose
from gnet_jax.convert.start import with_start
from gnet_jax.lab.cost.ledger import Ledger, network_ledger
from gnet_jax.pods.chips import Chip
from gnet_jax.pods.compiled import COLLECTIVES, Collective, OutOfMemoryError, compile_cost
from gnet_jax.pods.data_size import DataSize
from gnet_jax.pods.topology import Topology
from gnet_jax.training.program import Program, make_program
from gnet_jax.training.sharding import check_batches, data_mesh

Bound = Literal["compute", "memory", "network"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run takes of a topology; all of None where the step does not fit and nothing came out
    of the compiler but that.
    """

    topology: str
    chips: int
    hosts: int
    batch_size: int
    fits: bool
    hbm_bytes: int  # that a chip must have
    hbm_available: int  # that a program may have of it
    argument_bytes: int | None = None
    temp_bytes: int | None = None
    flops_per_image: float | None = None
    flops_from: Literal["compiler", "ledger"] | None = None
    ledger_flops_per_image: float | None = None
    bytes_per_image: float | None = None
    temp_bytes_per_image: float | None = None
    seconds: dict[Bound, float] | None = None  # of a step, if that side alone took time
    bound: Bound | None = None
    step_seconds: float | None = None
    images_per_sec: float | None = None
    days: float | None = None  # for the config's epochs
    images_per_sec_per_host: float | None = None  # that each host must read and decode
    collectives: tuple[Collective, ...] = ()
    fusions: int | None = None
    convolutions: int | None = None
    donated: int | None = None  # arrays of the state whose memory is used again
    compile_seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Every figure by its name, ready for JSON."""
        return dataclasses.asdict(self)


def program_for(config: Config, topology: Topology, data: DataSize) -> Program:
    """The program of the run that `config` describes on a topology, for data of the given size.

    Raises:
        ConfigError, DataError: as `make_program`; nothing was compiled.
        WeightsError: if the model that the config starts from cannot be read.
    """
    config, pretrained = with_start(config)
    mesh = data_mesh(topology.devices)
    check_batches(config, mesh)
    return make_program(config, data.class_names, data.images, mesh, pretrained)


def plan_program(program: Program, topology: Topology) -> Plan:
    """The plan of `program`, whose mesh is that of `topology`. It compiles for minutes."""
    chip, chips = topology.chip, len(topology.devices)
    base = {
        "topology": topology.name,
        "chips": chips,
        "hosts": topology.hosts,
        "batch_size": program.config.batch_size,
        "hbm_available": round(chip.usable * chip.hbm_bytes),
    }
    try:
        cost = compile_cost(program, chip)
    except OutOfMemoryError as error:
        return Plan(**base, fits=False, hbm_bytes=error.needed)
    share = program.config.batch_size / chips
    costs = network_ledger(program.model, program.config.data.image_size)
    counted = training_flops(costs)
    flops = counted if cost.flops is None else cost.flops / share
    seconds = roofline(chip, flops * share, cost.bytes, cost.collectives, chips)
    bound = max(seconds, key=lambda side: seconds[side])
    images_per_sec = program.config.batch_size / seconds[bound]
    return Plan(
        **base,
        fits=cost.memory_bytes <= base["hbm_available"],
        hbm_bytes=cost.memory_bytes,
        argument_bytes=cost.argument_bytes,
        temp_bytes=cost.temp_bytes,
        flops_per_image=flops,
        flops_from="ledger" if cost.flops is None else "compiler",
        ledger_flops_per_image=counted,
        bytes_per_image=cost.bytes / share,
        temp_bytes_per_image=cost.temp_bytes / share,
        seconds=seconds,
        bound=bound,
        step_seconds=seconds[bound],
        images_per_sec=images_per_sec,
        days=program.total_steps * seconds[bound] / 86_400,
        images_per_sec_per_host=images_per_sec / topology.hosts,
        collectives=cost.collectives,
        fusions=cost.fusions,
        convolutions=cost.convolutions,
        donated=cost.donated,
        compile_seconds=cost.seconds,
    )


def training_flops(costs: Ledger) -> float:
    """Multiplications and additions of one image's training step by the cost ledger.

    Each layer's forward pass costs two for a multiply-add, and so do the gradients of its weights
    and of its input; the first layer's input needs none. Padded taps count, which compilers leave
    out; pooling, normalisation and the optimiser do not.
    """
    return 2.0 * (3 * costs.macs_with_aux - costs.layers[0].macs)


def roofline(
    chip: Chip, flops: float, traffic: float, collectives: tuple[Collective, ...], chips: int
) -> dict[Bound, float]:
    """Seconds that a step takes at least, by each side of a chip alone.

    Args:
        chip: its peaks.
        flops: of one chip.
        traffic: bytes that one chip reads and writes.
        collectives: of one chip.
        chips: that take part in them.
    """
    sent = sum(
        each.bytes * (chips - 1) / chips * choose("collective", each.kind, COLLECTIVES)
        for each in collectives
    )
    return {
        "compute": flops / chip.flops,
        "memory": traffic / chip.bandwidth,
        "network": sent / chip.link_bandwidth,
    }
