"""Run a bad batch again to find the images and layers with values that are not finite."""

import dataclasses
import json
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gnet_jax.config import Config, UserError
from gnet_jax.model.architecture import Architecture
from gnet_jax.model.googlenet import GoogLeNet, layer_outputs
from gnet_jax.model_folder.folder import from_json
from gnet_jax.training.checkpoints.verify import named_leaves
from gnet_jax.training.observe.faults import NOTES
from gnet_jax.training.optimizer import make_optimizer, scaled
from gnet_jax.training.program import Program, augmentation, flat
from gnet_jax.training.sharding import compile_train_step, data_mesh, put_state
from gnet_jax.training.step import TrainState, compute_loss, step_keys

# The errors that corrupt zip files, arrays and JSON raise.
_CORRUPT = (ValueError, TypeError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile)


@dataclasses.dataclass(frozen=True)
class Replay:
    """The contents of a replay file."""

    program: Program  # of the run, on one device
    size: int | None  # side of the images in this step, if it is smaller than usual
    state: TrainState  # before the step
    batch: dict[str, np.ndarray]  # image (B, H, W, C) uint8, label, mask
    indices: np.ndarray  # (B,) int64, in the training data
    step: int
    metrics: dict[str, float]  # that the run logged for the step


@dataclasses.dataclass(frozen=True)
class BadExample:
    """An image that produces non-finite numbers when it is run alone."""

    place: int  # position in the batch
    index: int  # index in the training data
    label: int
    loss: float
    layer: str | None  # the first with a non-finite output; None if only gradients are not finite


@dataclasses.dataclass(frozen=True)
class Findings:
    """The result of running a batch again."""

    step: int
    metrics: dict[str, float]
    reproduced: bool  # whether the loss and the gradient norm match the run's
    bad_params: tuple[str, ...]  # parameters that were not finite before the step
    layer: str | None  # the first layer whose output for the whole batch is not finite
    bad_gradients: tuple[str, ...]  # layers whose gradient is not finite, the last layer first
    bad_examples: tuple[BadExample, ...]
    examples: int


def read_replay(file: Path) -> Replay:
    """Returns the contents of a replay file without executing them; raises UserError if corrupt."""
    try:
        # For other files, NumPy's error would suggest to unpickle the file.
        if file.is_file() and not zipfile.is_zipfile(file):
            raise ValueError("it is not an npz file")
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        notes = json.loads(arrays.pop(NOTES).tobytes())
        config = from_json(Config, notes["config"])
        arch = from_json(Architecture, notes["architecture"])
        model = GoogLeNet(
            arch,
            dtype=jnp.dtype(config.model.dtype),
            batch_norm_group=config.model.batch_norm_group,
        )
        lengths = notes["steps_per_epoch"], notes["total_steps"]
        optimizer = make_optimizer(scaled(config), *lengths, frozenset(notes["loaded"]))
        program = Program(config, model, optimizer, data_mesh(jax.devices()[:1]), *lengths)
        abstract = program.abstract_state()
        leaves = [arrays[f"state/{name}"] for name in named_leaves(abstract)]
        state = jax.tree.unflatten(jax.tree.structure(abstract), leaves)
        batch = {name: arrays[f"batch/{name}"] for name in ("image", "label", "mask")}
        metrics = {name: float(value) for name, value in notes["metrics"].items()}
        step = notes["step"]
        size = config.augment.early_size if step <= program.early_steps else None
        return Replay(program, size, state, batch, arrays["indices"], step, metrics)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    except _CORRUPT as error:
        raise UserError(f"{file} is corrupt or not a replay file: {error}") from error


def examine(replay: Replay) -> Findings:
    """Run the step again on one device with its random keys, then check each layer and example.

    Each example is also run alone, in training mode with the augmentation and mixup of the step.
    Batch norm then sees only this example, and dropout has a different mask.
    """
    state, layers = replay.state, []
    augment_key, dropout_key = step_keys(jnp.asarray(state.rng), jnp.asarray(state.step))
    config, classes = replay.program.config, replay.program.model.arch.num_classes
    prepared = jax.jit(augmentation(config, classes, replay.size))
    inputs = prepared(replay.batch["image"], replay.batch["label"], augment_key)
    metrics = _repeat_step(replay)
    fixed = (state.params, state.batch_stats, dropout_key)
    batch_flags = np.array(jax.jit(partial(_loss, replay, layers))(*fixed, *inputs)[1])
    found = jax.jit(partial(_check_examples, replay))(*fixed, *inputs)
    layer_flags, gradient_flags, losses = jax.device_get(found)
    fine = layer_flags.all(1) & gradient_flags.all(1) & np.isfinite(losses)
    bad_examples = [
        BadExample(
            place=int(place),
            index=int(replay.indices[place]),
            label=int(replay.batch["label"][place]),
            loss=float(losses[place]),
            layer=_first_bad(layers, layer_flags[place]),
        )
        for place in np.flatnonzero(~fine)
    ]
    params = flat(state.params)
    modules = [name.rpartition("/")[0] for name in params]
    bad_modules = [modules[number] for number in np.flatnonzero(~gradient_flags.all(axis=0))]
    bad_modules.sort(key=lambda name: _place(name, layers))
    return Findings(
        step=replay.step,
        metrics=metrics,
        reproduced=all(
            np.allclose(metrics[name], replay.metrics[name], rtol=1e-3, equal_nan=True)
            for name in ("loss", "grad_norm")
        ),
        bad_params=tuple(name for name, value in params.items() if not np.isfinite(value).all()),
        layer=_first_bad(layers, batch_flags),
        bad_gradients=tuple(dict.fromkeys(reversed(bad_modules))),
        bad_examples=tuple(bad_examples),
        examples=len(losses),
    )


def _repeat_step(replay: Replay) -> dict[str, float]:
    program, mesh = replay.program, replay.program.mesh
    inputs = program.train_step(replay.size), replay.state, replay.batch
    compiled = compile_train_step(mesh, *inputs, manual=program.canonical)
    _, metrics = compiled(put_state(replay.state, mesh), put_state(replay.batch, mesh))
    return {name: float(value) for name, value in jax.device_get(metrics).items()}


def _loss(
    replay: Replay,
    layers: list[str],
    params: Any,
    batch_stats: Any,
    dropout_key: jax.Array,
    images_BHWC: jax.Array,
    targets_BK: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the loss, and flags: whether the input and each layer's output are finite.

    Tracing writes the names of the flags to `layers`. (In a returned dict, jit would sort them.)
    """
    value, (updated, _) = compute_loss(
        params,
        batch_stats,
        images_BHWC,
        targets_BK,
        dropout_key,
        model=replay.program.model,
        optimizer=replay.program.optimizer,
        loss=replay.program.config.loss,
        mutable=("batch_stats", "intermediates"),
    )
    outputs = {"input": images_BHWC} | layer_outputs(updated["intermediates"])
    layers[:] = [name.removesuffix("/output") for name in outputs]
    return value, jnp.stack([jnp.isfinite(output).all() for output in outputs.values()])


def _check_examples(
    replay: Replay,
    params: Any,
    batch_stats: Any,
    dropout_key: jax.Array,
    images_BHWC: jax.Array,
    targets_BK: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns, by example, which layers and gradients are finite (B, n), and the loss (B,)."""
    model = replay.program.model.clone(batch_norm_group=None)
    alone = dataclasses.replace(replay, program=dataclasses.replace(replay.program, model=model))
    loss = jax.value_and_grad(partial(_loss, alone, []), has_aux=True)

    def run_one(example: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        image_BHWC, target_BK = jax.tree.map(lambda x: x[None], example)
        (value, flags), grads = loss(params, batch_stats, dropout_key, image_BHWC, target_BK)
        return flags, jnp.stack([jnp.isfinite(x).all() for x in flat(grads).values()]), value

    return jax.lax.map(run_one, (images_BHWC, targets_BK))


def _place(name: str, layers: list[str]) -> int:
    """Returns the index of the innermost layer that contains `name`; len(layers) if none does."""
    parts = name.split("/")
    around = ("/".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((layers.index(module) for module in around if module in layers), len(layers))


def _first_bad(layers: list[str], flags: np.ndarray) -> str | None:
    return None if flags.all() else layers[int(flags.argmin())]
