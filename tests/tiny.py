"""Networks and runs small enough for tests: three blocks, a few channels, 16 pixels."""

import dataclasses
import time
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gnet_jax.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig
from gnet_jax.config.bucket import Place
from gnet_jax.model.architecture import Architecture, architecture
from gnet_jax.model.googlenet import GoogLeNet, Outputs, init
from gnet_jax.training.optimizer import Optimizer
from gnet_jax.training.program import Program, Run, prepare
from gnet_jax.training.sharding import data_mesh


def tiny_arch(variant: str = "paper", **changes: Any) -> Architecture:
    """The named variant with blocks 3a, 4a and 5a only, at a sixteenth of the width."""
    arch = architecture(variant, 10, width_multiplier=1 / 16, stem="small", aux_after=("4a",))
    blocks = {name: arch.widths[name] for name in ("3a", "4a", "5a")}
    return dataclasses.replace(arch, widths=blocks, **changes)


def tiny_variables(model: GoogLeNet) -> dict[str, Any]:
    return init(model, jax.random.PRNGKey(3), 16)  # no unit begins dead


def failing_late(error: Exception) -> Callable[..., None]:
    """What fails in the background of a save, once the few arrays beside it are likely written."""

    def fail(*_: object) -> None:
        time.sleep(0.3)
        raise error

    return fail


class Linear:
    """A network of one layer and two heads, `main` and `aux`."""

    arch = types.SimpleNamespace(aux_after=("4a",), num_classes=10)

    def clone(self, **_):
        return self

    def apply(self, variables, images, **_):
        x = images.reshape(len(images), -1)
        main, aux = (x @ variables["params"][head]["kernel"] for head in ("main", "aux"))
        return Outputs(main, (aux,)), {"intermediates": {}}


def linear_params() -> dict[str, Any]:
    """Those of `Linear` for 16 pixels and ten classes."""
    generator = np.random.default_rng(0)
    return {
        head: {"kernel": generator.normal(0, 0.02, (768, 10)).astype(np.float32)}
        for head in ("main", "aux")
    }


def tiny_config(workdir: Place, **changes: Any) -> Config:
    """Digits at 16 pixels in batches of 32, shuffled, mirrored, with dropout."""
    config = Config(
        workdir=str(workdir),
        epochs=0.2,
        eval_batch_size=200,
        log_every_steps=2,
        model=ModelConfig(width_multiplier=1 / 16, stem="small", aux_after=("4a",)),
        data=DataConfig(image_size=16, resize_to=16, threads=2),
        augment=AugmentConfig(crop_area=(0.7, 1.0)),
        optim=OptimConfig(learning_rate=1e-3, averaging="ema"),
    )
    return dataclasses.replace(config, **changes)


def tiny_run(workdir: Place, **changes: Any) -> Run:
    """`tiny_config` made ready, with the three-block network."""
    return with_program(prepare(tiny_config(workdir, **changes)), model=GoogLeNet(tiny_arch()))


def program_of(config: Config, model: Any, optimizer: Optimizer) -> Program:
    """The program of ten epochs of ten steps."""
    return Program(config, model, optimizer, data_mesh(), steps_per_epoch=10, total_steps=100)


def with_program(run: Run, **changes: Any) -> Run:
    """`run`, with changed fields of its program."""
    return dataclasses.replace(run, program=dataclasses.replace(run.program, **changes))


def tiny_batch(size: int = 16) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "image": generator.integers(0, 256, (size, 16, 16, 3), np.uint8),
        "label": generator.integers(0, 10, size).astype(np.int32),
        "mask": np.ones(size, bool),
    }
