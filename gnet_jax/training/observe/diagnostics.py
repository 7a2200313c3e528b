"""What goes on inside a net in training: gradients, activations and updates, block by block.

Computed beside the training step, by a program of its own, so that the step stays as it is.

Shapes: B batch, H height, W width, C channels.
"""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from gnet_jax.config import LossConfig
from gnet_jax.model.googlenet import GoogLeNet, layer_outputs
from gnet_jax.training.finetune import without_gradient
from gnet_jax.training.observe.console import Board
from gnet_jax.training.optimizer import Optimizer
from gnet_jax.training.step import TrainState, head_losses, head_names, step_keys
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
    """What the next training step on `batch` would see, with its augmentation and its dropout.

    It sees the batch at once. A step that sees it in parts (`optim.accumulate` above 1, canonical
    numerics) draws other masks for dropout, and its batch norm normalises each part by itself.

    Blocks are the top-level modules: conv1, inception_3a, aux_4a, classifier ...

    Returns:
        `scalars` by name, float32: `grad_norm/BLOCK` of the loss, and of it `grad_norm_HEAD/BLOCK`,
        the part of each head (weighted as in the loss); `update_ratio/BLOCK`, the norm of the
        update over that of the parameters; `activation_rms/LAYER`, and `dead/LAYER`, the share of a
        layer's channels that are zero everywhere in the batch. `histograms` of each block's
        gradient and parameters: (counts, edges).
    """
    augment_key, dropout_key = step_keys(state.rng, state.step)
    images_BHWC, targets_BK = augment(batch["image"], batch["label"], augment_key)
    heads = head_names(model)
    weights = (1.0, *[loss.aux_weight] * (len(heads) - 1))

    def losses_of(params: Any) -> Any:
        params = without_gradient(params, optimizer.frozen)
        outputs, found = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images_BHWC,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats", "intermediates"],
        )
        losses = head_losses(outputs, targets_BK, loss.label_smoothing)
        weighted = tuple(w * value for w, value in zip(weights, losses, strict=True))
        return weighted, found["intermediates"]

    losses, pull_back, layers = jax.vjp(losses_of, state.params, has_aux=True)
    scalars: dict[str, jax.Array] = {}
    grads: Any = jax.tree.map(jnp.zeros_like, state.params)
    for number, head in enumerate(heads):
        unit = tuple(jnp.full_like(each, place == number) for place, each in enumerate(losses))
        (own,) = pull_back(unit)
        grads = jax.tree.map(jnp.add, grads, own)
        scalars |= _norms(f"grad_norm_{head}", own)
    scalars |= _norms("grad_norm", grads)
    updates: Any = optimizer.tx.update(grads, state.opt_state, state.params)[0]
    for block, size in _norms("", updates).items():
        whole = optax.tree.norm(state.params[block[1:]])
        scalars[f"update_ratio{block}"] = size / jnp.maximum(whole, 1e-30)
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
    """Scale and share of dead channels of every layer's output, after its ReLU."""
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


class Diagnostics:
    """Diagnoses a run every so many steps, into `diagnostics.jsonl` and TensorBoard.

    Args:
        workdir: of the run.
        step: the compiled `(state, batch)` program of `diagnose`.
        every: steps from one diagnosis to the next; None for none at all.
        start: finished steps of the run.
        tell: is told of the compilation, and what a full disk keeps from being written.
    """

    def __init__(
        self,
        workdir: Path,
        step: Callable[..., Any],
        every: int | None,
        start: int,
        tell: Callable[[str], None],
    ) -> None:
        self._step, self._every, self._tell = step, every, tell
        self._board: Board | None = None
        self._compiled = False
        self._file = MetricsFile(workdir / FILE)
        if every is not None and jax.process_index() == 0:
            if self._file.path.is_file():
                self._file.forget_after(start - 1)
            self._board = Board(workdir / "tensorboard" / "diagnostics", start)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._board is not None:
            with contextlib.suppress(OSError):  # a full disk, of which `__call__` has told
                self._board.close()

    def __call__(self, finished: int, state: TrainState, batch: Mapping[str, jax.Array]) -> None:
        """Diagnose the step after `finished` ones, if its turn has come."""
        if self._every is None or finished % self._every:
            return
        if not self._compiled:
            self._tell("compiling the look inside, longer than the step itself ...")
            self._compiled = True
        found = jax.device_get(self._step(state, batch))
        if self._board is None:
            return
        scalars = {name: value.item() for name, value in found["scalars"].items()}
        # Of numbers that are not finite the loop says what is wrong, and stops.
        histograms = {
            name: (counts, edges)
            for name, (counts, edges) in found["histograms"].items()
            if np.isfinite(edges).all()
        }
        try:
            self._file.append(finished, scalars)
            self._board.add(finished, scalars, histograms)
        except OSError as error:
            self._tell(
                f"warning: the diagnosis after step {finished} could not be logged "
                f"({error.strerror or error})"
            )
