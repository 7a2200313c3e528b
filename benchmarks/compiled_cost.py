"""Compare the cost of plain and fast operations compiled for accelerators; none has to be present.

    python benchmarks/compiled_cost.py --json OUT.json

Compiles the training step of the paper's network with both auxiliary heads, in bfloat16 at 224
pixels and 256 images per chip, for each topology and with both forms of `gnet_jax.ops`. Each
compilation takes minutes. libtpu (the extra `[tpu]`) compiles for TPUs, JAX's CUDA plugin for GPUs.
The JSON is written after every compilation. For each topology, it has `plain`, `fast`, `ratios`.
"""

import argparse
import dataclasses
import json
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
from rich.table import Table

from gnet_jax.cli.output import console
from gnet_jax.config import Config, DataConfig, ModelConfig, UserError
from gnet_jax.ops.fast import FAST
from gnet_jax.ops.reference import REFERENCE, Ops
from gnet_jax.pods.plan import CompiledCost, DataSize, compile_cost, program_for
from gnet_jax.pods.topology import Topology, get_topology

FORMS = {"plain": REFERENCE, "fast": FAST}
# key in the JSON: label in the table, divisor and unit
FIGURES: dict[str, tuple[str, float, str]] = {
    "bytes_per_image": ("traffic per image", 1e6, "MB"),
    "flops_per_image": ("arithmetic per image", 1e9, "GFLOP"),
    "cycles": ("compiler's estimate per step", 1e6, "Mcycles"),
    "temp_bytes": ("temporaries per step", 1e9, "GB"),
    "memory_bytes_per_image": ("memory per image, with the state", 1e6, "MB"),
    "fusions": ("fusions", 1, ""),
    "convolutions": ("convolutions, products, library calls", 1, ""),
    "donated": ("donated arrays", 1, ""),
}


def cost_of(topology: Topology, images: int, width: float, ops: Ops) -> CompiledCost:
    """Returns the cost of a training step with `images` images per chip, computed by `ops`."""
    config = Config(
        batch_size=images * len(topology.devices),
        model=ModelConfig(dtype="bfloat16", width_multiplier=width),
        data=DataConfig(source="tfds:imagenet2012"),
    )
    size = DataSize(1_281_167, tuple(map(str, range(1000))))
    program = program_for(config, topology, size)
    program = dataclasses.replace(program, model=program.model.clone(ops=ops))
    return compile_cost(program, topology.chip)


def figures(cost: CompiledCost, images: int) -> dict[str, Any]:
    """Returns the figures of a compiled program: None for those its compiler does not report."""
    return {
        "bytes_per_image": cost.bytes / images,
        "flops_per_image": None if cost.flops is None else cost.flops / images,
        "cycles": cost.cycles or None,
        "temp_bytes": cost.temp_bytes,
        "memory_bytes_per_image": cost.memory_bytes / images,
        "fusions": cost.fusions,
        "convolutions": cost.convolutions,
        "donated": cost.donated,
        "compile_seconds": cost.seconds,
    }


def ratios(plain: dict[str, Any], fast: dict[str, Any]) -> dict[str, float]:
    """Returns each figure of the fast form divided by that of the plain form, if both exist."""
    return {name: fast[name] / plain[name] for name in FIGURES if plain[name] and fast[name]}


def print_comparison(topology: str, images: int, found: dict[str, dict[str, Any]]) -> None:
    """Print a table with the figures of each compiled form and the ratio of fast to plain."""
    table = Table(title=f"{topology}, {images} images per chip", title_justify="left")
    table.add_column("")
    for name in (*FORMS, "fast / plain"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, (what, unit, unit_name) in FIGURES.items():
        values = [found.get(form, {}).get(name) for form in FORMS]
        texts = ["-" if v is None else f"{v / unit:,.{0 if unit == 1 else 2}f}" for v in values]
        share = found.get("ratios", {}).get(name)
        texts.append("-" if share is None else f"{share:.3f}")
        table.add_row(f"{what} ({unit_name})" if unit_name else what, *texts)
    console().print(table)


def main() -> None:
    """Compile the step, compare the forms and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--topology", nargs="+", default=["v5e:1x1", "h100:8"])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--images", type=int, default=256, help="images per chip")
    parser.add_argument("--width", type=float, default=1.0, help="width multiplier of the network")
    parser.add_argument("--json", type=Path, help="file to update with the results")
    given = parser.parse_args()
    kept: Path | None = given.json
    report = json.loads(kept.read_text()) if kept is not None and kept.is_file() else {}
    asked = {"images_per_chip": given.images, "width": given.width}
    if any(report.get(name, value) != value for name, value in asked.items()):
        sys.exit(f"compiled_cost.py: error: {kept} has another --images or --width")
    report |= asked | {
        "jax": jax.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    try:
        machines = [get_topology(text) for text in given.topology]
    except UserError as error:
        sys.exit(f"compiled_cost.py: error: {error}")
    for topology in machines:
        found = report.setdefault(topology.name, {})
        for form in given.forms:
            print(f"compiling {form} for {topology.name} ...", file=sys.stderr, flush=True)
            try:
                cost = cost_of(topology, given.images, given.width, FORMS[form])
            except UserError as error:
                sys.exit(f"compiled_cost.py: error: {error}")
            found[form] = figures(cost, given.images)
            if all(name in found for name in FORMS):
                found["ratios"] = ratios(found["plain"], found["fast"])
            if given.json is not None:
                given.json.write_text(json.dumps(report, indent=2) + "\n")
        print_comparison(topology.name, given.images, found)


if __name__ == "__main__":
    main()
