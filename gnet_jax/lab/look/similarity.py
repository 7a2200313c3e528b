"""Compare what the blocks of networks compute: similarity (linear CKA) and linear probes.

Shapes: N images, C and D channels, K classes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from gnet_jax.config import UserError
from gnet_jax.data.augment import preprocess
from gnet_jax.data.decode import central_crop
from gnet_jax.inference.images import Pictures
from gnet_jax.inference.predict import load
from gnet_jax.lab.palette import colour_of, style
from gnet_jax.model.googlenet import endpoints
from gnet_jax.model_folder import TrainedModel

BATCH = 32
RIDGE = 1.0  # weight of the penalty of a probe, for features of variance 1


class Comparison(NamedTuple):
    """The blocks of several models, compared on the same images."""

    blocks: dict[str, list[str]]  # of each model
    cka: dict[str, np.ndarray]  # (blocks of the first model, blocks of this one)
    probes: dict[str, list[float]]  # accuracy of a linear classifier on each block of the model


def cka(a_NC: np.ndarray, b_ND: np.ndarray) -> float:
    """Returns linear CKA (arXiv 1905.00414): 1 if features are equal up to rotation and scale."""
    a, b = (each - each.mean(axis=0) for each in (a_NC.astype(float), b_ND.astype(float)))
    norms = [np.linalg.norm(each.T @ each) for each in (a, b)]
    return float(np.linalg.norm(a.T @ b) ** 2 / (norms[0] * norms[1]))


def probe(features_NC: np.ndarray, label_N: np.ndarray) -> float:
    """Returns the accuracy of a linear classifier (ridge regression) on every second image.

    The other images fit it.
    """
    x = features_NC.astype(float)
    x = (x - x[::2].mean(axis=0)) / (x[::2].std(axis=0) + 1e-6)
    x = np.hstack([x, np.ones((len(x), 1))])
    targets = np.eye(int(label_N.max()) + 1)[label_N]
    gram = x[::2].T @ x[::2] + RIDGE * np.eye(x.shape[1])
    scores = x[1::2] @ np.linalg.solve(gram, x[::2].T @ targets[::2])
    return float((scores.argmax(axis=1) == label_N[1::2]).mean())


def block_features(trained: TrainedModel, squares_NSSC: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the mean over positions (N, C) of each block's output, by block."""

    @jax.jit
    def run(variables: Any, squares_BSSC: jax.Array) -> dict[str, jax.Array]:
        x = preprocess(squares_BSSC, preprocessing=trained.preprocessing)
        found = endpoints(trained.model, variables, x)
        outputs = {block: found[f"inception_{block}/output"] for block in trained.model.arch.widths}
        return jax.tree.map(lambda value: value.astype(jnp.float32).mean(axis=(1, 2)), outputs)

    padded = np.pad(squares_NSSC, [(0, -len(squares_NSSC) % BATCH), (0, 0), (0, 0), (0, 0)])
    starts = range(0, len(padded), BATCH)
    parts = [run(trained.variables, padded[start : start + BATCH]) for start in starts]
    return {
        block: np.concatenate([np.asarray(part[block]) for part in parts])[: len(squares_NSSC)]
        for block in trained.model.arch.widths
    }


def compare(models: Mapping[str, TrainedModel], pictures: Pictures) -> Comparison:
    """Returns the similarity of each model's blocks with those of the first model, and the probes.

    Raises UserError if an image cannot be read or has no label, or there are fewer than 20.
    """
    found = list(pictures)
    labels = [each.label for each in found if each.label is not None]
    if len(found) < 20 or len(labels) < len(found):
        raise UserError(f"probes need at least 20 labelled images; {len(labels)} were given")
    features = {}
    for name, trained in models.items():
        p = trained.preprocessing
        squares = np.stack([central_crop(each.opened(), p) for each in found])
        features[name] = block_features(trained, squares)
    (first, *_), label_N = features.values(), np.array(labels)
    return Comparison(
        {name: list(own) for name, own in features.items()},
        {
            name: np.array([[cka(a, b) for b in own.values()] for a in first.values()])
            for name, own in features.items()
        },
        {name: [probe(each, label_N) for each in own.values()] for name, own in features.items()},
    )


def compare_runs(workdirs: Mapping[str, Path], data: str) -> tuple[str, Figure]:
    """Returns a caption and the figure of training runs by name, on a set's validation images."""
    if len(workdirs) < 2:
        raise UserError("the blocks of networks can be compared after two runs have finished")
    models = {name: load(workdir.absolute()) for name, workdir in workdirs.items()}
    caption = f"Similarity (linear CKA) of the blocks of networks, on {data}, and the accuracy of "
    caption += "a linear probe on each block. Blocks are averaged over their positions."
    return caption, draw_comparison(compare(models, Pictures(data)))


def draw_comparison(found: Comparison) -> Figure:
    """Returns a figure: CKA of each other model with the first one, and the probes of all."""
    first, *others = found.blocks
    figure = Figure(figsize=(3.2 * (len(others) + 1), 3.2), layout="constrained")
    *maps, lines = np.atleast_1d(figure.subplots(1, len(others) + 1))
    for axes, name in zip(maps, others, strict=True):
        axes.imshow(found.cka[name], vmin=0, vmax=1, cmap="viridis")
        for (y, x), value in np.ndenumerate(found.cka[name]):
            colour = "black" if value > 0.6 else "white"
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=5, color=colour)
        axes.set_xticks(range(len(found.blocks[name])), found.blocks[name])
        axes.set_yticks(range(len(found.blocks[first])), found.blocks[first])
        axes.set(xlabel=name, ylabel=first, title="CKA of the blocks")
    for place, (name, accuracies) in enumerate(found.probes.items()):
        lines.plot(found.blocks[name], accuracies, "o-", label=name, color=colour_of(place))
    style(lines)
    lines.set(title="linear probe", ylabel="accuracy", xlabel="block")
    lines.legend(fontsize=7)
    return figure
