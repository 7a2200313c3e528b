"""A batch that did harm, run again: which image, and which layer, it begins in.

Shapes: B batch, H height, W width, C channels.
"""

import dataclasses
import json
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gnet_jax.config import Config, UserError
from gnet_jax.model.architecture import Architecture
from gnet_jax.model.googlenet import GoogLeNet, abstract_variables, layer_outputs
from gnet_jax.model_folder.folder import from_json
from gnet_jax.training.checkpoints.storage import named_leaves
from gnet_jax.training.feed import augmentation
from gnet_jax.training.finetune import flat, without_gradient
from gnet_jax.training.observe.bad_steps import NOTES
from gnet_jax.training.optimizer import Optimizer, make_optimizer
from gnet_jax.training.program import is_canonical, pure_train_step
from gnet_jax.training.sharding import compile_train_step, data_mesh, put_state
from gnet_jax.training.step import TrainState, compute_loss, create_state, step_keys

# What zip files, arrays and JSON raise that are not whole; a SchemaError is a ValueError.
_DAMAGE = (ValueError, TypeError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile)


@dataclasses.dataclass(frozen=True)
class Replay:
    """What a replay file holds."""

    config: Config
    model: GoogLeNet
    optimizer: Optimizer
    state: TrainState  # in front of the step
    batch: dict[str, np.ndarray]  # image (B, H, W, C) uint8, label, mask
    indices: np.ndarray  # (B,) int64, in the training data
    step: int
    metrics: dict[str, float]  # of the step, as the run saw them


@dataclasses.dataclass(frozen=True)
class BadExample:
    """An image that is enough, alone, for numbers that are not finite."""

    place: int  # in the batch
    index: int  # in the training data
    label: int
    loss: float
    layer: str | None  # the first whose output is not finite; None where only gradients are


@dataclasses.dataclass(frozen=True)
class Findings:
    """What came of running a batch again."""

    step: int
    metrics: dict[str, float]
    reproduced: bool  # the loss and the gradient's norm are those that the run saw
    bad_params: tuple[str, ...]  # parameters that were not finite before the step
    layer: str | None  # the first, of the whole batch, whose output is not finite
    bad_gradients: tuple[
        str, ...
    ]  # layers whose gradient is not finite, from the last to the first
    bad_examples: tuple[BadExample, ...]
    examples: int


def read_replay(file: Path) -> Replay:
    """The contents of a replay file. Nothing in it is executed.

    Raises:
        UserError: if there is no such file, or it is no replay file, or damaged.
    """
    try:
        # Of any other file NumPy says that it could be unpickled.
        if file.is_file() and not zipfile.is_zipfile(file):
            raise ValueError("it is not an npz file")
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        notes = json.loads(arrays.pop(NOTES).tobytes())
        config = from_json(Config, notes["config"])
        model = GoogLeNet(
            from_json(Architecture, notes["architecture"]), dtype=jnp.dtype(config.model.dtype)
        )
        optimizer = make_optimizer(
            config.optim,
            notes["steps_per_epoch"],
            notes["total_steps"],
            frozenset(notes["loaded"]),
        )
        return Replay(
            config=config,
            model=model,
            optimizer=optimizer,
            state=_state(model, optimizer, config.data.image_size, arrays),
            batch={name: arrays[f"batch/{name}"] for name in ("image", "label", "mask")},
            indices=arrays["indices"],
            step=notes["step"],
            metrics={name: float(value) for name, value in notes["metrics"].items()},
        )
    except IsADirectoryError:
        raise UserError(
            f"{file} is a folder; name the replay-STEP.npz in it, which a run leaves that stopped"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    except _DAMAGE as error:
        raise UserError(f"{file} is no replay file, or damaged: {error}") from error


def _state(
    model: GoogLeNet, optimizer: Optimizer, size: int, arrays: dict[str, np.ndarray]
) -> TrainState:
    create = partial(create_state, optimizer=optimizer, seed=0)
    abstract = jax.eval_shape(create, abstract_variables(model, size))
    leaves = [arrays[f"state/{name}"] for name in named_leaves(abstract)]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def examine(replay: Replay) -> Findings:
    """Run the batch again: the step itself, then each layer, then each example alone.

    The step is the run's own, with its keys, on one device. An example alone goes through the
    network in training mode, its augmentation and mixing those of the step; batch norm then sees
    that example only, and dropout draws another mask.
    """
    state = replay.state
    augment_key, dropout_key = step_keys(jnp.asarray(state.rng), jnp.asarray(state.step))
    prepared = jax.jit(augmentation(replay.config, replay.model.arch.num_classes))
    images_BHWC, targets_BK = prepared(replay.batch["image"], replay.batch["label"], augment_key)
    metrics = _step_again(replay)
    layers, layer_flags, gradient_flags, losses = _each_alone(
        replay, images_BHWC, targets_BK, dropout_key
    )
    whole_flags = _whole(replay, images_BHWC, targets_BK, dropout_key)
    params = flat(state.params)
    by_layer = [name.rpartition("/")[0] for name in params]
    fine = layer_flags.all(1) & gradient_flags.all(1) & np.isfinite(losses)
    bad_examples = [
        BadExample(
            place=int(place),
            index=int(replay.indices[place]),
            label=int(replay.batch["label"][place]),
            loss=float(losses[place]),
            layer=_first(layers, layer_flags[place]),
        )
        for place in np.flatnonzero(~fine)
    ]
    wrong = [by_layer[number] for number in np.flatnonzero(~gradient_flags.all(axis=0))]
    order = {name: number for number, name in enumerate(layers)}
    wrong.sort(key=lambda name: _place(name, order))
    seen = ("loss", "grad_norm")
    return Findings(
        step=replay.step,
        metrics=metrics,
        reproduced=all(
            np.allclose(metrics[name], replay.metrics[name], rtol=1e-3, equal_nan=True)
            for name in seen
        ),
        bad_params=tuple(name for name, value in params.items() if not np.isfinite(value).all()),
        layer=_first(layers, whole_flags),
        bad_gradients=tuple(dict.fromkeys(reversed(wrong))),
        bad_examples=tuple(bad_examples),
        examples=len(losses),
    )


def _step_again(replay: Replay) -> dict[str, float]:
    config, mesh = replay.config, data_mesh(jax.devices()[:1])
    step = pure_train_step(config, replay.model, replay.optimizer)
    manual = is_canonical(config)
    compiled = compile_train_step(mesh, step, replay.state, replay.batch, manual=manual)
    _, metrics = compiled(put_state(replay.state, mesh), put_state(replay.batch, mesh))
    return {name: float(value) for name, value in jax.device_get(metrics).items()}


def _outputs(intermediates: Any) -> dict[str, jax.Array]:
    """The recorded outputs by layer."""
    return {
        name.removesuffix("/output"): value for name, value in layer_outputs(intermediates).items()
    }


def _layers(replay: Replay, *inputs: Any) -> list[str]:
    """The input and every layer, in the order in which they are computed."""
    found: list[str] = []

    def trace(params: Any, batch_stats: Any) -> jax.Array:
        # Here: what a transformation hands out is sorted by name.
        value, (updated, _) = _loss(replay)(params, batch_stats, *inputs)
        found.extend(["input", *_outputs(updated["intermediates"])])
        return value

    jax.eval_shape(trace, replay.state.params, replay.state.batch_stats)
    return found


def _loss(replay: Replay) -> Any:
    def of_learning(params: Any, *inputs: Any) -> Any:
        return compute_loss(
            without_gradient(params, replay.optimizer.frozen),
            *inputs,
            model=replay.model,
            loss=replay.config.loss,
            mutable=("batch_stats", "intermediates"),
        )

    return of_learning


def _whole(
    replay: Replay, images_BHWC: jax.Array, targets_BK: jax.Array, dropout_key: jax.Array
) -> np.ndarray:
    """Whether each layer's output is finite, for the whole batch at once."""

    @jax.jit
    def flags(params: Any, batch_stats: Any) -> list[jax.Array]:
        _, (updated, _) = _loss(replay)(params, batch_stats, images_BHWC, targets_BK, dropout_key)
        outputs = [images_BHWC, *_outputs(updated["intermediates"]).values()]
        return [jnp.isfinite(output).all() for output in outputs]

    return np.array(flags(replay.state.params, replay.state.batch_stats))


def _each_alone(
    replay: Replay, images_BHWC: jax.Array, targets_BK: jax.Array, dropout_key: jax.Array
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Names of the layers; whether their outputs, and the gradients, are finite; the losses.

    Shapes: (B, layers), (B, parameters) and (B,); the first layer is the input.
    """
    layers = _layers(replay, images_BHWC, targets_BK, dropout_key)

    @jax.jit
    def alone(params: Any, batch_stats: Any) -> Any:
        def of_one(example: Any) -> Any:
            image_HWC, own = jax.tree.map(lambda x: x[None], example)
            (value, (updated, _)), grads = jax.value_and_grad(_loss(replay), has_aux=True)(
                params, batch_stats, image_HWC, own, dropout_key
            )
            outputs = _outputs(updated["intermediates"]) | {"input": image_HWC}
            return (
                jnp.stack([jnp.isfinite(outputs[name]).all() for name in layers]),
                jnp.stack([jnp.isfinite(x).all() for x in flat(grads).values()]),
                value,
            )

        return jax.lax.map(of_one, (images_BHWC, targets_BK))

    found = jax.device_get(alone(replay.state.params, replay.state.batch_stats))
    return (layers, *found)


def _place(name: str, order: Mapping[str, int]) -> int:
    """When the parameters of a module are used: at the output of the module nearest around it.

    Linear layers, whose outputs are not recorded, are the last.
    """
    parts = name.split("/")
    around = ("/".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((order[module] for module in around if module in order), len(order))


def _first(layers: list[str], flags: np.ndarray) -> str | None:
    bad = np.flatnonzero(~flags)
    return layers[bad[0]] if len(bad) else None
