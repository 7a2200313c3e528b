"""Train a GoogLeNet: `python train.py [CONFIG] [--workdir DIR] [--field.path value ...]`.

CONFIG is a recipe's name (`digits`, the default) or a Python file with a `get_config()`. The same
command again goes on where it stopped. Exit codes: 0 done, 2 a mistake in the command, 1 numbers
that are no longer finite (or heads that do not learn, where dead_heads is "stop"), 128 + n stopped
by signal n after saving (130: Ctrl-C, 143: SIGTERM). Data that turn out damaged end the run with 2,
after saving.
"""

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence

from gnet_jax.config import Config, UserError
from gnet_jax.config.command import parse_config


def parse(arguments: Sequence[str]) -> Config:
    """The recipe that `arguments` name, with their overrides. `--help` and typos end here.

    Raises:
        ConfigError: if there is no such recipe.
    """
    return parse_config(arguments, "train.py")


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    try:
        config = parse(arguments)
        return run(config, arguments)
    except UserError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted before the first step; nothing to save", file=sys.stderr)
        return 130


def run(config: Config, arguments: Sequence[str]) -> int:
    """Train as `config` says, and tell what is going on; returns the exit code."""
    # Imported here, so that --help and a typo answer at once.
    from gnet_jax.data import order_fingerprint
    from gnet_jax.lab.ledger import network_ledger
    from gnet_jax.training.finetune import layers
    from gnet_jax.training.loop import TrainingError, train
    from gnet_jax.training.record import open_workdir
    from gnet_jax.training.report import duration
    from gnet_jax.training.sharding import use_compilation_cache
    from gnet_jax.weights.start import prepare_run

    use_compilation_cache()
    run = prepare_run(config)
    config = run.config
    fingerprints = {
        "train": run.train.fingerprint(),
        "val": run.val.fingerprint(),
        "order": order_fingerprint(len(run.train), config.seed),
    }
    workdir = open_workdir(config, fingerprints)
    cost = network_ledger(run.model, config.data.image_size)
    m, d, devices = config.model, config.data, run.mesh.devices.flat
    heads = ", ".join(m.aux_after) or "none"
    network = f"{m.variant}, width x{m.width_multiplier:g}, reductions x{m.reduction_factor:g}"
    plan = {
        "model": f"GoogLeNet, {network if config.init is None else config.init}, {m.dtype}, "
        f"aux heads: {heads}",
        "size": f"{cost.params:,} parameters ({cost.params_with_aux:,} with aux heads), "
        f"{cost.macs / 1e6:,.1f} M multiply-adds an image",
        "data": f"{d.source}: {len(run.train):,} to train, {len(run.val):,} to validate "
        f"({run.val.split} split), "
        f"{len(run.train.class_names)} classes, seen at {d.image_size}x{d.image_size}, "
        f"decoder: {d.decoder}",
        "devices": f"{run.mesh.size} x {devices[0].device_kind}",
        "steps": f"{run.total_steps:,} of {config.batch_size} images ({config.epochs:g} epochs), "
        f"{config.optim.optimizer}, {config.optim.schedule} from {config.optim.learning_rate:g}",
        "workdir": f"{workdir} (checkpoints, metrics.jsonl, tensorboard, run.json)",
    }
    if run.takeover is not None:
        plan["loaded"] = ", ".join(layers(run.takeover.loaded)) or "nothing"
        new = {layers([name])[0]: why for name, why in run.takeover.fresh.items()}
        plan["new"] = ", ".join(f"{layer} ({why})" for layer, why in new.items()) or "nothing"
        plan["frozen"] = ", ".join(config.optim.freeze) or "nothing"
    for name, text in plan.items():
        print(f"{name:>8}  {text}", flush=True)

    # What to type: make installs into .venv, which few have in their PATH.
    found = shutil.which("python") == sys.executable
    python = "python" if found else shlex.quote(os.path.relpath(sys.executable))
    again = " ".join([python, "train.py", *(shlex.quote(argument) for argument in arguments)])
    try:
        result = train(run, workdir)
    except TrainingError as error:
        print(f"train.py: stopped: {error}", file=sys.stderr)
        return 1
    if result.signal is not None:
        name = signal.Signals(result.signal).name
        print(
            f"stopped by {name}; step {result.step} is saved in {workdir}. Go on with:\n  {again}"
        )
        return 128 + result.signal
    if result.heads:
        print(f"done in {duration(result.seconds)}")
        for head, top1 in result.heads.items():
            if head.endswith("_top1"):
                print(f"  training top-1, {head[len('train/') : -len('_top1')]} head: {top1:.1%}")
    else:
        print(f"already finished: all {result.step} steps are done")
    if result.val:
        print(
            f"  validation top-1 {result.val['val/top1']:.2%}, top-5 {result.val['val/top5']:.2%}"
        )
    if result.best is not None:
        print(f"  best: top-1 {result.best[1]:.2%} at step {result.best[0]}")
    print(f"  checkpoint: {result.checkpoint}")
    where = shlex.quote(str(workdir))
    print(f"next:  {python} -m gnet_jax predict {where} PHOTO.png   (what it sees in a photo)")
    print(f"       {python} -m gnet_jax convert {where} DST         (a model folder to keep)")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(main(sys.argv[1:]))
