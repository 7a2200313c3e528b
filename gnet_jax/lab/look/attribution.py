"""Attribution: which pixels and regions of a photo the logit of a class depends on.

Gradients, SmoothGrad (arXiv 1706.03825), integrated gradients (arXiv 1703.01365) and Grad-CAM
(arXiv 1610.02391). A map that looks the same with random weights explains nothing about the network
(arXiv 1810.03292), so the figure can compare the two.

Shapes: B images, S side of the network's input, K classes.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from gnet_jax.data.augment import CHANNEL_STEPS, preprocess
from gnet_jax.inference.cam import ActivationMap, ActivationMapper
from gnet_jax.inference.cam import draw as draw_activation
from gnet_jax.model.googlenet import init
from gnet_jax.model_folder import TrainedModel

SAMPLES = 32  # noisy images of SmoothGrad
NOISE = 25.0  # standard deviation of the noise, in grey levels: 10 % of the range
TOLERANCE = 0.01  # largest relative error of the sum of integrated gradients
MOST_POINTS = 512  # on the path of integrated gradients; fewer if the tolerance is reached
BATCH = 8


class Attribution(NamedTuple):
    """Maps (S, S, 3) float32: the share of each pixel's red, green and blue in a class's logit."""

    gradient: np.ndarray
    smooth: np.ndarray  # SmoothGrad
    integrated: np.ndarray  # integrated gradients
    difference: float  # of the logits of the photo and of the network's mean colour


def attribute(trained: TrainedModel, square_SSC: np.ndarray, index: int) -> Attribution:
    """Returns the attributions of the logit of class `index` to the pixels of a uint8 square.

    Integrated gradients begin at the mean colour of the preprocessing. Points are added to their
    path until their sum is within 1 % of the difference of the logits, or to at most 512 points.
    """

    @jax.jit
    def run(variables: Any, images_BSSC: jax.Array) -> tuple[jax.Array, jax.Array]:
        def total(images_BSSC: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = preprocess(images_BSSC, preprocessing=trained.preprocessing)
            outputs: Any = trained.model.apply(variables, x)
            return outputs.logits[:, index].sum(), outputs.logits[:, index]

        gradients, logits_B = jax.grad(total, has_aux=True)(images_BSSC)
        return logits_B, gradients

    def mean_gradient(images_BSSC: np.ndarray) -> np.ndarray:
        starts = range(0, len(images_BSSC), BATCH)
        parts = [run(trained.variables, images_BSSC[start : start + BATCH])[1] for start in starts]
        return np.mean([np.asarray(part).mean(axis=0) for part in parts], axis=0)

    photo = square_SSC.astype(np.float32)
    p = trained.preprocessing
    base = np.broadcast_to(np.array(p.mean, np.float32)[CHANNEL_STEPS[p.channels]], photo.shape)
    ends = np.stack([base, photo] * (BATCH // 2))  # of the size that the other calls use
    logits_B, gradients = map(np.asarray, run(trained.variables, ends))
    difference = float(logits_B[1] - logits_B[0])
    noise = np.random.default_rng(0).normal(0, NOISE, (SAMPLES, *photo.shape))
    smooth = mean_gradient((photo + noise).astype(np.float32))
    points, integrated = 32, np.zeros_like(photo)
    while points <= MOST_POINTS:
        shares = (np.arange(points, dtype=np.float32) + 0.5) / points
        path = base + shares[:, None, None, None] * (photo - base)
        integrated = mean_gradient(path) * (photo - base)
        if abs(float(integrated.sum()) - difference) <= TOLERANCE * abs(difference):
            break
        points *= 2
    return Attribution(gradients[1], smooth, integrated, difference)


def randomised(trained: TrainedModel) -> TrainedModel:
    """Returns the model with newly initialised variables."""
    variables = init(trained.model, jax.random.key(0), trained.preprocessing.image_size)
    return dataclasses.replace(trained, variables=variables)


def similarity(a: ActivationMap | np.ndarray, b: ActivationMap | np.ndarray) -> float:
    """Returns Spearman's rank correlation of the strengths of two maps."""
    from scipy.stats import spearmanr

    found: Any = spearmanr(_strength(a).ravel(), _strength(b).ravel())
    return float(found.statistic)


def draw_attribution(
    trained: TrainedModel,
    picture: Image.Image,
    index: int | None = None,
    layer: str | None = None,
    *,
    sanity: bool = False,
) -> Figure:
    """Returns a figure of all attributions of a class, by default of the most probable one.

    It shows the map of each head at the block before it, and the main head's at `layer`, by
    default block 4e, or the last block of a network without it. With `sanity`, a second row shows
    the same for random weights, with the rank correlation of each map with the one above it. Raises
    UserError for an unknown layer or class.
    """
    if layer is None:
        blocks = list(trained.model.arch.widths)
        layer = f"inception_{'4e' if '4e' in blocks else blocks[-1]}"
    first = _panels(trained, picture, index, layer)
    rows = [first]
    if sanity:
        index = first["map of the main head"].guess["index"]
        rows.append(_panels(randomised(trained), picture, index, layer))
    figure = Figure(figsize=(2.6 * len(first), 3.4 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(first), squeeze=False)
    for row, axes_row in zip(rows, grid, strict=True):
        for axes, (name, found), trained_map in zip(
            axes_row, row.items(), first.values(), strict=True
        ):
            axes.set_axis_off()
            if isinstance(found, ActivationMap):
                axes.imshow(np.asarray(draw_activation(found)))
            else:
                strength = _strength(found)
                axes.imshow(strength, cmap="gray", vmin=0, vmax=np.quantile(strength, 0.995))
            if row is not first:
                name = f"random weights:\nrank correlation {similarity(found, trained_map):.2f}"
            axes.set_title(name, fontsize=9)
    return figure


def _panels(
    trained: TrainedModel, picture: Image.Image, index: int | None, layer: str
) -> dict[str, Any]:
    at_layer = ActivationMapper(trained, layer=layer)
    maps = ActivationMapper(trained)(picture, index)
    main = maps["main"]
    found = attribute(trained, main.square, main.guess["index"])
    sums = f"sum {found.integrated.sum():.2f} of {found.difference:.2f}"
    panels: dict[str, Any] = {f"map of the {head} head": each for head, each in maps.items()}
    panels[f"Grad-CAM at {layer}"] = at_layer(picture, main.guess["index"])["main"]
    panels |= {"gradient": found.gradient, "SmoothGrad": found.smooth}
    return panels | {f"integrated gradients\n({sums})": found.integrated}


def _strength(found: ActivationMap | np.ndarray) -> np.ndarray:
    """Returns the absolute values of a map, summed over the colours if it has any."""
    if isinstance(found, ActivationMap):
        return np.abs(found.evidence)
    return np.abs(found).sum(axis=-1)
