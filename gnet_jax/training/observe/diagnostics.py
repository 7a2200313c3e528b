"""Diagnose the gradients, activations and updates of each block, outside the training step.

Shapes: B batch, H height, W width, C channels.
"""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from gnet_jax.config import LossConfig
from gnet_jax.model.googlenet import GoogLeNet, layer_outputs
from gnet_jax.training.observe.console import Board
from gnet_jax.training.optimizer import Optimizer
from gnet_jax.training.step import TrainState, compute_loss, head_names, step_keys
from gnet_jax.training.workdir import MetricsFile

FILE = "diagnostics.jsonl"
BINS = 40


def diagnose(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    *,
    model: GoogLeNet,
    optimizer: Optimizer,
    augment: Callable[..., tuple[jax.Array, jax.Array]],
    loss: LossConfig,
) -> dict[str, Any]:
    """Returns diagnostics of the next training step on `batch`, with that step's random keys.

    `scalars` are float32 values by name (docs/ablations.md lists them). `histograms` has a pair
    (counts, edges) for the gradient and one for the parameters of each block (a top-level module).
    The whole batch is processed at once, even if the training step splits it into parts with
    other dropout masks.
    """
    augment_key, dropout_key = step_keys(state.rng, state.step)
    images_BHWC, targets_BK = augment(batch["image"], batch["label"], augment_key)
    heads = head_names(model)
    weights = (1.0, *[loss.aux_weight] * (len(heads) - 1))

    def weighted_losses(params: Any) -> Any:
        _, (updated, metrics) = compute_loss(
            *(params, state.batch_stats, images_BHWC, targets_BK, dropout_key),
            model=model,
            optimizer=optimizer,
            loss=loss,
            mutable=("batch_stats", "intermediates"),
        )
        losses = [metrics[f"{head}_loss"] for head in heads]
        weighted = tuple(w * value for w, value in zip(weights, losses, strict=True))
        return weighted, updated["intermediates"]

    losses, pull_back, layers = jax.vjp(weighted_losses, state.params, has_aux=True)
    scalars: dict[str, jax.Array] = {}
    grads: Any = jax.tree.map(jnp.zeros_like, state.params)
    for number, head in enumerate(heads):
        unit = tuple(jnp.full_like(each, place == number) for place, each in enumerate(losses))
        (own,) = pull_back(unit)
        grads = jax.tree.map(jnp.add, grads, own)
        scalars |= _norms(f"grad_norm_{head}", own)
    scalars |= _norms("grad_norm", grads)
    updates: Any = optimizer.tx.update(grads, state.opt_state, state.params)[0]
    for block, update in updates.items():
        whole = jnp.maximum(optax.tree.norm(state.params[block]), 1e-30)
        scalars[f"update_ratio/{block}"] = optax.tree.norm(update) / whole
    scalars |= _activations(layers)
    histograms = {
        f"{what}/{block}": _histogram(tree[block])
        for what, tree in (("gradients", grads), ("parameters", state.params))
        for block in tree
    }
    return {"scalars": scalars, "histograms": histograms}


def _norms(name: str, tree: Mapping[str, Any]) -> dict[str, jax.Array]:
    return {f"{name}/{block}": optax.tree.norm(part) for block, part in tree.items()}


def _activations(layers: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns the RMS and the fraction of dead channels of each layer's output, after its ReLU."""
    flat: Any = traverse_util.flatten_dict(dict(layers))
    outputs = {path: values for path, values in flat.items() if path[-1] == "output"}
    found = {}
    for layer, value_BHWC in layer_outputs(traverse_util.unflatten_dict(outputs)).items():
        if value_BHWC.ndim == 4:
            x = value_BHWC.astype(jnp.float32)
            found[f"activation_rms/{layer}"] = jnp.sqrt(jnp.mean(x * x))
            found[f"dead/{layer}"] = jnp.mean(jnp.all(x == 0, axis=(0, 1, 2)))
    return found


def _histogram(tree: Any) -> tuple[jax.Array, jax.Array]:
    values = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
    counts, edges = jnp.histogram(values, BINS)
    return counts.astype(jnp.float32), edges


class Diagnostics(contextlib.AbstractContextManager["Diagnostics"]):
    """Diagnoses a run every `every` steps, and logs the results to a file and to TensorBoard.
    `step` is the compiled `diagnose`, a function of `(state, batch)`. `start` is the step from
    which the run resumes. `tell` prints a line.
    """

    def __init__(
        self,
        workdir: Path,
        step: Callable[..., Any],
        every: int,
        start: int,
        tell: Callable[[str], None],
    ) -> None:
        self._step, self._every, self._tell, self._compiled = step, every, tell, False
        self._file = MetricsFile(workdir / FILE)
        self._board = Board(workdir / "tensorboard" / "diagnostics", start)
        if jax.process_index() == 0:
            self._file.forget_after(start - 1)

    def __exit__(self, *_: object) -> None:
        self._board.close()

    def __call__(self, finished: int, state: TrainState, batch: Mapping[str, jax.Array]) -> None:
        """If a diagnosis is due after `finished` steps, diagnose the next step, on `batch`."""
        if finished % self._every:
            return
        if not self._compiled:
            self._tell("compiling the diagnosis (this takes longer than compiling the step) ...")
            self._compiled = True
        found = jax.device_get(self._step(state, batch))
        if jax.process_index():
            return
        scalars = {name: value.item() for name, value in found["scalars"].items()}
        histograms = found["histograms"].items()
        # A histogram of values that are not finite has no finite edges; the loop reports them.
        histograms = {name: each for name, each in histograms if np.isfinite(each[1]).all()}
        try:
            self._file.append(finished, scalars)
            self._board.add(finished, scalars, histograms)
        except OSError as error:
            self._tell(
                f"warning: the diagnosis after step {finished} could not be logged "
                f"({error.strerror or error})"
            )
