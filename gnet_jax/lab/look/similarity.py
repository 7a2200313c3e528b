"""Compare what the blocks of networks compute: similarity (linear CKA) and linear probes.

Shapes: N images, C and D channels, K classes.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from gnet_jax.config import UserError
from gnet_jax.data.augment import preprocess
from gnet_jax.data.decode import central_crop
from gnet_jax.data.progress import progress_line
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
    if not (np.ptp(a_NC, axis=0).any() and np.ptp(b_ND, axis=0).any()):
        return math.nan  # undefined, because the features are the same for all images
    a, b = (each - each.mean(axis=0) for each in (a_NC.astype(float), b_ND.astype(float)))
    norms = [np.linalg.norm(each.T @ each) for each in (a, b)]
    return float(np.linalg.norm(a.T @ b) ** 2 / (norms[0] * norms[1]))


def probe(features_NC: np.ndarray, label_N: np.ndarray) -> float:
    """Returns the accuracy of a linear classifier (ridge regression).

    It is fitted to one half of each class and tested on the other. The halves are random, but
    always the same.
    """
    order = np.random.default_rng(0).permutation(len(label_N))
    order = order[np.argsort(label_N[order], kind="stable")]  # shuffled within each class
    fit, test = order[::2], order[1::2]
    x = features_NC.astype(float)
    x = (x - x[fit].mean(axis=0)) / (x[fit].std(axis=0) + 1e-6)
    x = np.hstack([x, np.ones((len(x), 1))])
    targets = np.zeros((len(x), int(label_N.max()) + 1))
    targets[np.arange(len(x)), label_N] = 1
    gram = x[fit].T @ x[fit] + RIDGE * np.eye(x.shape[1])
    scores = x[test] @ np.linalg.solve(gram, x[fit].T @ targets[fit])
    return float((scores.argmax(axis=1) == label_N[test]).mean())


def block_features(trained: TrainedModel) -> Callable[[np.ndarray], list[jax.Array]]:
    """Returns a function from uint8 squares (N, S, S, 3) to the mean outputs (N, C) of blocks."""

    @jax.jit
    def run(variables: Any, squares_NSSC: jax.Array) -> list[jax.Array]:
        x = preprocess(squares_NSSC, preprocessing=trained.preprocessing)
        found = endpoints(trained.model, variables, x)
        outputs = [found[f"inception_{block}/output"] for block in trained.model.arch.widths]
        return [value.astype(jnp.float32).mean(axis=(1, 2)) for value in outputs]

    return functools.partial(run, trained.variables)


def compare(models: Mapping[str, TrainedModel], pictures: Pictures) -> Comparison:
    """Returns the similarity of each model's blocks with those of the first model, and the probes.

    Raises UserError if an image cannot be read or has no label, or there are fewer than 20.
    """
    if len(pictures) < 20:
        raise UserError(f"probes need at least 20 labelled images, not {len(pictures)}")
    runs = {name: block_features(trained) for name, trained in models.items()}
    parts: dict[str, list[list[np.ndarray]]] = {name: [] for name in models}
    labels, waiting = [], iter(pictures)
    with progress_line("comparing", "images", len(pictures), warm_up=True) as advance:
        while batch := list(itertools.islice(waiting, BATCH)):
            labels += [each.label for each in batch]
            if None in labels:
                raise UserError("probes need labelled images; give a data set, not a folder")
            for name, trained in models.items():
                squares = [central_crop(each.opened(), trained.preprocessing) for each in batch]
                padded = np.resize(squares, (BATCH, *squares[0].shape))  # for one program
                parts[name].append(jax.device_get(runs[name](padded)))
            advance(len(batch))
    found = {
        name: [np.concatenate(block)[: len(labels)] for block in zip(*own, strict=True)]
        for name, own in parts.items()
    }
    (first, *_), label_N = found.values(), np.array(labels)
    return Comparison(
        {name: list(trained.model.arch.widths) for name, trained in models.items()},
        {name: np.array([[cka(a, b) for b in own] for a in first]) for name, own in found.items()},
        {name: [probe(each, label_N) for each in own] for name, own in found.items()},
    )


def compare_runs(runs: Mapping[str, tuple[Path, int]], data: str) -> tuple[str, Figure]:
    """Returns a caption and the figure of training runs by name, on a set's validation images.

    A run is a workdir and the step of its checkpoint.
    """
    if len(runs) < 2:
        raise UserError("the blocks of networks can be compared after two runs have finished")
    models = {name: load(workdir.absolute(), step) for name, (workdir, step) in runs.items()}
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
            text = "\N{EN DASH}" if math.isnan(value) else f"{value:.2f}"
            colour = "white" if value <= 0.6 else "black"  # NaN has a white cell
            axes.text(x, y, text, ha="center", va="center", fontsize=5, color=colour)
        axes.set_xticks(range(len(found.blocks[name])), found.blocks[name])
        axes.set_yticks(range(len(found.blocks[first])), found.blocks[first])
        axes.set(xlabel=name, ylabel=first, title="CKA of the blocks")
    # Otherwise the blocks that the first network lacks would be last.
    lines.xaxis.update_units(sorted({*itertools.chain(*found.blocks.values())}))
    for place, (name, accuracies) in enumerate(found.probes.items()):
        lines.plot(found.blocks[name], accuracies, "o-", label=name, color=colour_of(place))
    style(lines)
    lines.set(title="linear probe", ylabel="accuracy", xlabel="block")
    lines.legend(fontsize=7)
    return figure
