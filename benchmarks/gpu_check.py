"""The parts of `benchmarks/gpu_check.sh` that are not benchmarks of their own, and its report.

python benchmarks/gpu_check.py memory|parity|train|report FILE-OR-FOLDER ...
"""

import argparse
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

STOPPED = (124, 137)  # exit codes of `timeout` at the limit, and after --kill-after
PARTS = ("peers", "memory", "parity", "modern", "cifar10")


def memory(batch: int, size: int) -> dict[str, Any]:
    """Returns the bytes of a bfloat16 training step: XLA's plan, and the allocator's peak.

    The peak is None on CPUs, where JAX does not report it.
    """
    import jax
    import jax.numpy as jnp
    from peers import training

    from gnet_jax.model.architecture import architecture
    from gnet_jax.model.googlenet import GoogLeNet, init
    from gnet_jax.training.sharding import xla_options

    model = GoogLeNet(architecture("paper", 1000), dtype=jnp.bfloat16)
    variables = init(model, jax.random.PRNGKey(0), size)
    run, planned = training(
        model, variables, batch, size, xla_options(jax.default_backend(), training=True)
    )
    run(2)
    stats = jax.local_devices()[0].memory_stats() or {}
    return {"batch": batch, "planned_bytes": planned, "peak_bytes": stats.get("peak_bytes_in_use")}


def parity(caffe: Path) -> dict[str, Any]:
    """Returns the largest difference of any layer from Caffe's, relative to the layer's maximum."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from gnet_jax.convert.caffe import from_caffe, read_caffemodel
    from gnet_jax.model.googlenet import GoogLeNet, endpoints
    from gnet_jax.model_folder.folder import unflatten

    blobs = dict(np.load(caffe / "caffe_blobs_227.npz"))
    arch, flat = from_caffe(read_caffemodel(caffe / "bvlc_googlenet.caffemodel")[0], "Caffe's")
    model, variables = GoogLeNet(arch), unflatten(flat)
    images = jnp.asarray(blobs.pop("data"))[None]
    found: dict[str, Any] = {"layers": len(blobs)}
    for precision in ("highest", "default"):
        with jax.default_matmul_precision(precision):
            ours = jax.jit(lambda v, x: endpoints(model, v, x))(variables, images)
        outputs = {name.replace("/", "_"): np.asarray(x)[0] for name, x in ours.items()}
        found[precision] = max(
            float(np.abs(outputs[name].reshape(blob.shape) - blob).max() / np.abs(blob).max())
            for name, blob in blobs.items()
        )
    if not found["highest"] < 1e-4:
        sys.exit(f"differs from Caffe by {found['highest']:.1e} of a layer's maximum")
    return found


def train(arguments: list[str], photos: int, steps: int) -> dict[str, Any]:
    """Train with these arguments of train.py; returns speed, loss, accuracy and goodput.

    Args:
        arguments: a recipe and its options.
        photos: number of synthetic JPEGs to train on; 0 uses the recipe's data.
        steps: number of steps on the photos.
    """
    from gnet_jax.cli.train import main, parse

    config = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if photos:
            from input_pipeline import write_photos

            write_photos(Path(folder), photos)
            epochs = str(steps / (photos // config.batch_size))
            arguments = [*arguments, "--data.source", f"folder:{folder}", "--epochs", epochs]
            arguments += ["--eval-every-epochs", epochs]
        if code := main(arguments):
            sys.exit(code)
    lines = (Path(config.workdir) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    trained = [each for each in records if "perf/images_per_sec" in each]
    last = {key: value for each in records for key, value in each.items()}
    later = trained[len(trained) // 2 :]  # without warming up
    speeds = sorted(each["perf/images_per_sec"] for each in later)
    return {
        "steps": last["step"],
        "images_per_sec": speeds[len(speeds) // 2],
        "loss": last["train/loss"],
        "top1": last.get("val/top1"),
        "goodput": last.get("perf/goodput"),
    }


def report(out: Path) -> int:
    """Print a table of all parts and write result.json; returns 1 if a part failed, otherwise 0."""
    import jax
    from side_by_side import keep, machine, show

    from gnet_jax.training.workdir import package_versions

    parts: dict[str, dict[str, Any]] = {}
    for name in PARTS:
        status = json.loads((out / f"{name}.status").read_text())
        file = out / f"{name}.json"
        result = json.loads(file.read_text()) if file.exists() else None
        parts[name] = status | {"result": result}
    show(
        ("part", "status", "seconds", "result"),
        [
            (name, describe(part), part.get("seconds", ""), summary(name, part["result"]))
            for name, part in parts.items()
        ],
    )
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": jax.devices()[0].device_kind,
        "machine": machine(),
        "versions": package_versions(),
    }
    keep(out / "result.json", facts | {"parts": parts})
    return int(any(part.get("code", 0) for part in parts.values()))


def describe(part: dict[str, Any]) -> str:
    """Returns how a part ended."""
    if "skipped" in part:
        return f"skipped: {part['skipped']}"
    if part["code"] in STOPPED:
        return f"stopped after {part['limit']} s"
    return f"exit code {part['code']}" if part["code"] else "ok"


def summary(name: str, result: dict[str, Any] | None) -> str:
    """Returns a part's main figures in one line, or "" without a result."""
    if result is None:
        return ""
    if name == "peers":
        return "; ".join(
            f"{key}: " + ", ".join(f"{case} {ratio:.2f}" for case, ratio in result[key].items())
            for key in result
            if key.startswith("ratios")
        )
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in result.items()
    )


def main() -> int:
    """Run one part, and write its result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("part", choices=("memory", "parity", "train", "report"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--caffe", type=Path)
    parser.add_argument("--photos", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0)
    a, options = parser.parse_known_args()
    if a.part == "report":
        return report(a.out)
    if a.part == "memory":
        result = memory(a.batch, a.size)
    elif a.part == "parity":
        result = parity(a.caffe)
    else:
        result = train(options, a.photos, a.steps)
    a.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
