"""Sweeps for tests: small to train, or on disk without any training."""

import json
from pathlib import Path

from gnet_jax.config import Config, Sweep, flatten
from gnet_jax.lab.sweeps.sweep import open_sweep
from gnet_jax.training.workdir import MetricsFile

TINY_SWEEP = '''
"""Two configs that cannot train, and a small net on digits.

For tests.
"""

import dataclasses

from gnet_jax.config import Config, DataConfig, ModelConfig, OptimConfig, Sweep

BASE = Config(
    epochs=6,
    batch_size=32,
    eval_batch_size=160,
    eval_every_epochs=2,
    save_every_steps=3,
    log_every_steps=2,
    model=ModelConfig(width_multiplier=1 / 16, stem="small", aux_after=("4a",)),
    data=DataConfig(source="digits#160", image_size=16, resize_to=16, threads=2),
    optim=OptimConfig(learning_rate=1e-3, averaging="ema"),
)


def get_sweep():
    nan = dataclasses.replace(BASE, optim=OptimConfig(learning_rate=1e30), max_bad_steps=1)
    large = dataclasses.replace(BASE, batch_size=2**28, epochs=2e6)  # a batch is within all epochs
    return Sweep({"nan": nan, "large": large, "good": BASE}, seeds=2)
'''


def finished_sweep(workdir: Path) -> Path:
    """A sweep's folder as its runs leave it: one run failed, one has not ended; nothing trained."""
    configs = {name: Config(epochs=2, batch_size=8 * n) for n, name in enumerate("abcd", 1)}
    open_sweep(workdir, Sweep(configs), "A title.\n\nAnd <what> it is.")
    for number, (name, config) in enumerate(configs.items()):
        for seed in range(3):
            folder = workdir / name / f"seed-{seed}"
            if (name, seed) == ("c", 1):
                continue
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps(flatten(config)))
            start = {
                "git_commit": "0123abc",
                "code": "0.1.0 b" if name == "b" else "0.1.0 a",
                "python": "3.11.2",
                "versions": {"jax": "0.7.2"},
                "devices": ["cpu"],
                "host": "here",
            }
            (folder / "run.json").write_text(json.dumps({"starts": [start]}))
            failed = {"status": "failed", "error": "TrainingError: step 2: the loss is nan"}
            result = done(number, seed) if (name, seed) != ("b", 2) else failed
            (folder / "result.json").write_text(json.dumps(result))
            metrics = MetricsFile(folder / "metrics.jsonl")
            for step in (5, 10):
                metrics.append(step, {"train/main_loss": 2.3 - 0.1 * step - 0.01 * seed})
                metrics.append(step, {"val/top1": 0.05 * step + 0.01 * seed})
    return workdir


def done(number: int, seed: int) -> dict:
    """The result of a run; means, medians and best values over the seeds all differ."""
    top1 = (0.5, 0.6, 0.4, 0.7)[number] + (0.0, 0.01, 0.05)[seed]
    heads = {"main": {"loss": 1.0 + seed, "top1": top1, "top5": top1 + 0.2}}
    if number:
        heads["aux4a"] = {"loss": 1.5 + seed / 2, "top1": top1 - 0.1, "top5": top1}
    return {
        "status": "done",
        "step": 10,
        "val_images": 360,
        "chance": 0.1,
        "top1": top1,
        "heads": heads,
        "params": (5000, 2000, 3000, 4000)[number],
        "params_with_aux": 6000 + number,
        "macs": 10_000 * (number + 1),
        "memory_bytes": 17 * 2**20,
        "images_per_sec": (100.0, 110.0, 150.0)[seed],
    }
